"""What is sm_lvm's own, on the stand-in for LVM's commands."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

import pytest
import pytest_twisted
from fake_group import MIB, SR, FakeGroup
from sm_lvm.commands import run
from sm_lvm.driver import LVMDriver
from twisted.internet import defer, reactor, task

from xapi_migrate.errors import InvalidValue, SrBackendFailure, SrFull, VdiMissing
from xapi_migrate.sm.interfaces import ImageFormat, ImageLocation, SRConfig

VDI = "11111111-2222-4333-8444-555555555555"
ODD = 8 * MIB + 512
HERE = os.uname().nodename


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"volume_group": ""},
        {"volume_group": "-vg"},
        {"volume_group": ".."},
        {"volume_group": "vg0/lv"},
        {"volume_group": "vg0 vg1"},
        {"volume_group": "vg0", "thin_pool": "--yes"},
        {"volume_group": "vg0", "format": "qcow2"},
    ],
)
def test_wrong_device_config_is_said(config: dict[str, str]) -> None:
    with pytest.raises(InvalidValue):
        LVMDriver().open_sr(SRConfig(SR, "lvm", config))


@pytest_twisted.ensureDeferred
async def test_the_commands_of_a_creation(group: FakeGroup) -> None:
    await group.sr().vdi_create(VDI, ODD)
    assert [call for call in group.calls() if not call.startswith(("lvm lvs", "lvm vgs"))] == [
        f"lvm lvcreate --yes --name {VDI} --activate n --type linear --size {ODD}b --zero n --wipesignatures n "
        f"--addtag xapi_migrate.draft={HERE} vg0",
        f"lvm lvchange --activate sy vg0/{VDI}",
        f"blkdiscard --zeroout --step 134217728 {group.home}/dev/vg0/{VDI}",
        f"lvm lvchange --activate n vg0/{VDI}",
        f"lvm lvchange --deltag xapi_migrate.draft={HERE} --addtag xapi_migrate.size={ODD} vg0/{VDI}",
    ]


@pytest_twisted.ensureDeferred
async def test_the_size_that_was_asked_for_is_kept(group: FakeGroup) -> None:
    backend = group.sr()
    await backend.vdi_create(VDI, ODD)
    assert group.state()["volumes"][VDI]["size"] == 12 * MIB
    assert [(info.virtual_size, info.used) for info in await backend.scan()] == [(ODD, 12 * MIB)]
    place = group.home / "dev/vg0" / VDI
    assert await backend.vdi_location(VDI) == ImageLocation(place, ImageFormat.RAW, ODD)
    assert (await backend.stat()).free == (128 - 12) * MIB
    whole = str(uuid.uuid4())
    await backend.vdi_create(whole, 8 * MIB)
    assert (await backend.vdi_location(whole)).size == 0
    with pytest.raises(InvalidValue):
        await backend.vdi_create(VDI, 8 * MIB)


@pytest_twisted.ensureDeferred
async def test_a_pool_promises_no_more_than_it_has(group: FakeGroup) -> None:
    backend = group.sr(thin_pool="pool")
    await backend.attach()
    await backend.vdi_create(VDI, 40 * MIB)
    assert (await backend.stat()).free == 24 * MIB
    with pytest.raises(SrFull) as full:
        await backend.vdi_create(str(uuid.uuid4()), 25 * MIB)
    assert (full.value.requested, full.value.available) == (25 * MIB, 24 * MIB)
    await backend.vdi_attach(VDI)
    assert f"lvm lvchange --activate ey vg0/{VDI}" in group.calls()


@pytest_twisted.ensureDeferred
async def test_what_is_wrong_with_a_group_is_said_at_attach(group: FakeGroup) -> None:
    record = SRConfig(SR, "lvm", {"volume_group": "absent"})
    with pytest.raises(SrBackendFailure, match=rf'SR {SR} \(lvm vgs .*absent\).*Volume group "absent" not found'):
        await LVMDriver().open_sr(record).attach()
    with pytest.raises(SrBackendFailure, match="vg0 has no thin pool lake"):
        await group.sr(thin_pool="lake").attach()
    pool = group.state()["volumes"]["pool"]
    group.change(volumes={"pool": {**pool, "zero": False}})
    with pytest.raises(SrBackendFailure, match="old content"):
        await group.sr(thin_pool="pool").attach()
    group.change(missing=2)
    with pytest.raises(SrBackendFailure, match="2 of the physical volumes of vg0 are missing"):
        await group.sr().attach()


@pytest_twisted.ensureDeferred
async def test_a_volume_of_somebody_else_is_left_alone(group: FakeGroup) -> None:
    stranger = {"size": 8 * MIB, "tags": ["backup"], "pool": "", "thin_pool": False, "zero": False}
    group.change(volumes={**group.state()["volumes"], VDI: stranger})
    backend = group.sr()
    await backend.vdi_destroy(VDI)
    await backend.vdi_detach(VDI)
    await backend.vdi_keep([])
    assert await backend.scan() == []
    for refused, call in ((VdiMissing, backend.vdi_attach(VDI)), (SrBackendFailure, backend.vdi_create(VDI, MIB))):
        with pytest.raises(refused):
            await call
    assert group.state()["volumes"][VDI] == stranger


@pytest.mark.parametrize("fails", ["lvcreate", "lvchange"])
@pytest_twisted.ensureDeferred
async def test_a_creation_that_fails_leaves_nothing(group: FakeGroup, fails: str) -> None:
    group.change(fails=fails)
    with pytest.raises(SrBackendFailure, match=rf"SR {SR} \(lvm {fails} .*/dev/sdz has an I/O error"):
        await group.sr().vdi_create(VDI, ODD)
    assert set(group.state()["volumes"]) == {"pool"}


@pytest_twisted.ensureDeferred
async def test_a_creation_that_is_cut_off_leaves_nothing(group: FakeGroup) -> None:
    group.change(hangs="--zeroout")
    creation = defer.ensureDeferred(group.sr().vdi_create(VDI, ODD))
    while not any(call.startswith("blkdiscard") for call in group.calls()):
        await task.deferLater(reactor, 0.02)
    creation.cancel()
    with pytest.raises(defer.CancelledError):
        await creation
    assert set(group.state()["volumes"]) == {"pool"} and group.active() == []


@pytest_twisted.ensureDeferred
async def test_a_draft_is_no_vdi_and_goes_when_its_host_comes_back(group: FakeGroup) -> None:
    other = str(uuid.uuid4())
    draft = {"size": 8 * MIB, "pool": "", "thin_pool": False, "zero": False}
    mine, theirs = {**draft, "tags": [f"xapi_migrate.draft={HERE}"]}, {**draft, "tags": ["xapi_migrate.draft=else"]}
    group.change(volumes={**group.state()["volumes"], VDI: mine, other: theirs})
    for one in (VDI, other):
        (group.home / f"{one}.data").write_bytes(bytes(8 * MIB))
    backend = group.sr()
    assert await backend.scan() == []
    with pytest.raises(VdiMissing):
        await backend.vdi_attach(VDI)
    await backend.vdi_keep([])
    assert set(group.state()["volumes"]) == {"pool", other}
    await backend.vdi_create(other, 4 * MIB)  # a repeat begins anew
    assert [(info.uuid, info.virtual_size) for info in await backend.scan()] == [(other, 4 * MIB)]


@pytest_twisted.ensureDeferred
async def test_a_volume_that_somebody_has_open_keeps_no_sr_from_being_attached(group: FakeGroup) -> None:
    backend = group.sr()
    await backend.vdi_create(VDI, 8 * MIB)
    await backend.vdi_attach(VDI)
    group.change(open=[VDI])
    await backend.vdi_keep([])
    assert group.active() == [VDI]
    with pytest.raises(SrBackendFailure, match="in use"):
        await backend.vdi_detach(VDI)


@pytest_twisted.ensureDeferred
async def test_a_command_that_hangs_is_killed(group: FakeGroup) -> None:
    group.change(hangs="vgs")
    with pytest.raises(SrBackendFailure, match=rf"SR {SR} \(lvm vgs vg0\): no answer for 0.5 s"):
        await run(SR, "lvm", "vgs", "vg0", limit=0.5)
    asked = defer.ensureDeferred(group.sr().attach())
    reactor.callLater(0.3, asked.cancel)
    with pytest.raises(defer.CancelledError):
        await asked
    alive = [one.read_bytes() for one in _command_lines()]
    assert [line for line in alive if str(group.home.parent / "bin").encode() in line] == []


def _command_lines() -> list[Path]:
    return [path for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]


@pytest.mark.parametrize("vdi", ["../escape", "", "--yes", "@all", "11111111-2222-3333-4444-55555555555Z"])
@pytest_twisted.ensureDeferred
async def test_names_that_are_none_reach_no_command(group: FakeGroup, vdi: str) -> None:
    backend = group.sr()
    for call in (backend.vdi_create(vdi, MIB), backend.nonce_write("a,b", "x"), backend.nonce_read("../x")):
        with pytest.raises(InvalidValue):
            await call
    await backend.vdi_destroy(vdi)
    await backend.vdi_detach(vdi)
    with pytest.raises(VdiMissing):
        await backend.vdi_location(vdi)
    assert group.calls() == []


@pytest_twisted.ensureDeferred
async def test_a_program_that_is_not_there_is_said() -> None:
    with pytest.raises(SrBackendFailure, match=f"SR {SR}"):
        await run(SR, "no-such-program-here")
