"""What is sm_iscsi's own: several hosts at one catalogue, hosts that die, LUNs of somebody else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import attrs
import pytest
import pytest_twisted
from private_target import LUN, MIB, PASSWORD, PrivateTarget, private_target
from sm_iscsi.catalogue import Catalogue
from sm_iscsi.driver import ISCSIDriver, numbers
from twisted.internet import reactor, task

from xapi_migrate.errors import InvalidValue, SrBackendFailure, SrFull
from xapi_migrate.sm.interfaces import ISRBackend, Purpose, SRConfig
from xapi_migrate.sm.repository import open_repository
from xapi_migrate.sm.services import SMServices
from xapi_migrate.testing.nbd_guest import connect
from xapi_migrate.testing.sr_hosts import QUICK
from xapi_migrate.together import together

SR = str(uuid.uuid4())
GOOD = {"target": "127.0.0.1", "targetIQN": "iqn.2026-01.test:x", "luns": "1-3"}


def host(target: PrivateTarget, **changes: str) -> ISRBackend:
    return ISCSIDriver().open_sr(SRConfig(SR, "iscsi", target.config(**changes)))


async def attached(target: PrivateTarget, **changes: str) -> Any:
    backend = host(target, **changes)
    await backend.attach()
    return backend


@pytest.mark.parametrize(
    "wrong",
    [
        {"luns": "1"}, {"luns": "one"}, {"luns": "1-99999"}, {"luns": ""}, {"target": "a,b"}, {"target": ""},
        {"port": "x"}, {"targetIQN": "iqn.x,lun=3"}, {"chapuser": "a,b"}, {"initiatorIQN": "me"},
    ],
)  # fmt: skip
def test_wrong_device_config_is_said(wrong: dict[str, str]) -> None:
    with pytest.raises(InvalidValue):
        ISCSIDriver().open_sr(SRConfig(SR, "iscsi", {**GOOD, **wrong}))


def test_a_password_is_not_repeated() -> None:
    with pytest.raises(InvalidValue) as told:
        ISCSIDriver().open_sr(SRConfig(SR, "iscsi", {**GOOD, "chappassword": "sesam\n"}))
    assert "sesam" not in str(told.value)


def test_luns() -> None:
    assert numbers("7,1-3,2") == [7, 1, 2, 3]
    assert len(numbers("0-4095")) == 4096


@pytest.mark.parametrize("text", ["0-4096", ",".join(["0-99999"] * 1000), ",".join(["0-4095"] * 100_000)])
def test_a_list_of_luns_that_would_take_long_is_refused_at_once(text: str) -> None:
    begun = time.process_time()
    with pytest.raises(InvalidValue) as refused:
        numbers(text)
    assert time.process_time() - begun < 1.0
    assert len(str(refused.value)) < 1000


@pytest.mark.system
@pytest_twisted.ensureDeferred
async def test_hosts_at_one_catalogue(short_tmp: Path) -> None:
    """Each VDI gets a LUN of its own, whoever makes it; and each host sees all."""
    async with private_target(short_tmp, luns=7) as target:
        hosts = list(await together(*(attached(target) for _ in range(3))))
        vdis = [str(uuid.uuid4()) for _ in range(6)]
        await together(*(hosts[number % 3].vdi_create(vdi, MIB) for number, vdi in enumerate(vdis)))
        places = [(await hosts[0].vdi_location(vdi)).options["lun"] for vdi in vdis]
        assert sorted(places) == [2, 3, 4, 5, 6, 7]
        assert sorted(info.uuid for info in await hosts[1].scan()) == sorted(vdis)
        with pytest.raises(SrFull):
            await hosts[2].vdi_create(str(uuid.uuid4()), MIB)


@pytest.mark.system
@pytest_twisted.ensureDeferred
async def test_a_host_that_dies_with_the_catalogue_reserved(short_tmp: Path) -> None:
    """Others wait for it as long as its session lives, and no longer."""
    async with private_target(short_tmp) as target:
        backend = await attached(target)
        session = attrs.asdict(backend._target)
        program = (
            "import json, sys, time\nfrom sm_iscsi.libiscsi import Session\n"
            "session = Session(**json.loads(sys.stdin.readline()))\nsession.reserve(1)\nprint('held', flush=True)\n"
            "time.sleep(600)"
        )
        other = subprocess.Popen(
            [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ
        )
        try:
            assert other.stdin is not None and other.stdout is not None
            other.stdin.write(json.dumps(session) + "\n")
            other.stdin.flush()
            assert other.stdout.readline() == "held\n"
            ended: list[Any] = []
            creating = together(backend.vdi_create(str(uuid.uuid4()), MIB))
            running = task.deferLater(reactor, 0, lambda: None)
            running.addCallback(lambda _: pytest_twisted.defer.Deferred.fromCoroutine(creating))
            running.addCallback(ended.append)
            await task.deferLater(reactor, 1.0)
            assert ended == []
            other.kill()
            await running
            assert len(ended) == 1
        finally:
            other.kill()
            other.wait()


@pytest.mark.system
@pytest_twisted.ensureDeferred
async def test_what_lies_on_the_first_lun_is_not_written_over(short_tmp: Path) -> None:
    async with private_target(short_tmp) as target:
        with target.lun(1).open("r+b") as file:
            file.write(b"somebody's file system")
        with pytest.raises(SrBackendFailure, match="holds something else"):
            await attached(target)
        assert target.lun(1).read_bytes().startswith(b"somebody's file system")


@pytest.mark.system
@pytest_twisted.ensureDeferred
async def test_what_was_in_a_lun_is_gone_when_it_is_taken_again(short_tmp: Path) -> None:
    """Behind the end of a VDI too, once it is resized."""
    async with private_target(short_tmp, luns=2) as target:
        with target.lun(2).open("r+b") as file:
            file.write(os.urandom(LUN))
        backend, vdi = await attached(target), str(uuid.uuid4())
        await backend.vdi_create(vdi, 4 * MIB)
        assert target.lun(2).read_bytes()[: 4 * MIB] == bytes(4 * MIB)
        await backend.vdi_resize(vdi, 8 * MIB)
        content = target.lun(2).read_bytes()
        assert content[: 8 * MIB] == bytes(8 * MIB) and content[8 * MIB :] != bytes(LUN - 8 * MIB)
        with pytest.raises(SrFull):
            await backend.vdi_resize(vdi, LUN + 512)


@pytest.mark.system
@pytest_twisted.ensureDeferred
async def test_a_creation_that_fails_leaves_the_lun_free(short_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with private_target(short_tmp, luns=2) as target:
        backend = await attached(target)
        true = backend._zero
        backend._zero = lambda *_: (_ for _ in ()).throw(SrBackendFailure("zeroes", "no"))
        with pytest.raises(SrBackendFailure):
            await backend.vdi_create(str(uuid.uuid4()), MIB)
        assert await backend.scan() == [] and (await backend.stat()).free == LUN
        backend._zero = true
        await backend.vdi_create(str(uuid.uuid4()), MIB)


@pytest.mark.system
@pytest_twisted.ensureDeferred
async def test_the_wrong_account_is_said(short_tmp: Path) -> None:
    async with private_target(short_tmp) as target:
        with pytest.raises(SrBackendFailure, match="no session with"):
            await attached(target, chappassword="wrong password")


@pytest.mark.system
@pytest_twisted.ensureDeferred
async def test_the_password_is_in_no_command_line_and_no_file(short_tmp: Path) -> None:
    """And the datapath of a restarted daemon opens the image without being told it again."""
    async with private_target(short_tmp / "t") as target:
        record, vdi = SRConfig(SR, "iscsi", target.config()), str(uuid.uuid4())
        services = SMServices(reactor, short_tmp / "state", QUICK)
        sr = open_repository(ISCSIDriver(), record, services)
        await sr.attach()
        await sr.vdi_create(vdi, MIB)
        await sr.vdi_attach(vdi, Purpose.DOMAIN)
        services.let_go()
        services = SMServices(reactor, short_tmp / "state", QUICK)
        await services.recover()
        sr = open_repository(ISCSIDriver(), record, services)
        try:
            await sr.attach()
            attachment = await sr.vdi_attach(vdi, Purpose.DOMAIN)
            await sr.vdi_activate(vdi)
            guest = await connect(reactor, attachment.socket_path, attachment.export)
            await guest.write(0, b"a" * 512)
            guest.close()
            files = [path for path in (short_tmp / "state").rglob("*") if path.is_file()]
            assert files and not [path for path in files if PASSWORD.encode() in path.read_bytes()]
            lines = b"".join(path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if _alive(path))
            assert PASSWORD.encode() not in lines
        finally:
            await services.stop()
            assert services.alive().nothing


def _alive(path: Path) -> bool:
    try:
        path.read_bytes()
    except OSError:
        return False
    return True


def test_the_table_holds_as_many_vdis_as_a_target_has_luns() -> None:
    table = Catalogue()
    luns = dict.fromkeys(range(2, 1026), MIB)
    for _ in range(1024):
        table.claim(str(uuid.uuid4()), MIB, luns, 0)
    assert len(table.packed()) > 0
