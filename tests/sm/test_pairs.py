"""Every kind of storage as the source of a live copy into every other, itself included, while a guest writes."""

from __future__ import annotations

import random
import sys
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
import pytest_twisted
from sm_file.driver import FileDriver
from sm_iscsi.driver import ISCSIDriver
from sm_lvm.driver import LVMDriver
from twisted.internet import reactor, task

from tests.sm.two_hosts import Guest
from xapi_migrate.sm.interfaces import CopyState, ISMDriver, Purpose
from xapi_migrate.testing.nbd_guest import connect
from xapi_migrate.testing.sm_contract import SRKit, state_of
from xapi_migrate.testing.sr_hosts import Scratch, two_srs

PLUGINS = Path(__file__).resolve().parents[2] / "plugins"
for _name in ("sm_iscsi", "sm_lvm"):
    sys.path.append(str(PLUGINS / _name / "tests"))

from fake_group import make_group  # noqa: E402
from private_target import private_target  # noqa: E402

pytestmark = pytest.mark.system
MIB = 1 << 20
SIZE = 8 * MIB + 512  # neither whole extents, nor a geometry
SEVERAL = 60
"""Writes that are waited for, before the copy begins and after it is ready."""

Side = tuple[ISMDriver, Scratch]


@asynccontextmanager
async def files(kind: str, folder: Path, patch: pytest.MonkeyPatch) -> AsyncIterator[Side]:
    yield FileDriver(), lambda place: {"location": str(place), "format": kind}


@asynccontextmanager
async def iscsi(folder: Path, patch: pytest.MonkeyPatch) -> AsyncIterator[Side]:
    async with private_target(folder, luns=2) as target:
        yield ISCSIDriver(), lambda place: target.config()


@asynccontextmanager
async def lvm(folder: Path, patch: pytest.MonkeyPatch) -> AsyncIterator[Side]:
    """On the stand-in for LVM's commands."""
    folder.mkdir()
    _, environment = make_group(folder)
    for name, value in environment.items():
        patch.setenv(name, value)
    yield LVMDriver(), lambda place: {"volume_group": "vg0"}


KINDS = {
    "raw": lambda *where: files("raw", *where),
    "qcow2": lambda *where: files("qcow2", *where),
    "vhd": lambda *where: files("vhd", *where),
    "lvm": lvm,
    "iscsi": iscsi,
}


async def until(what: Callable[[], bool]) -> None:
    for _ in range(6000):
        if what():
            return
        await task.deferLater(reactor, 0.01)
    raise AssertionError("it never came true")


async def whole_disk(sr: object, vdi: str) -> bytes:
    attachment = await sr.vdi_attach(vdi, Purpose.DOMAIN)  # type: ignore[attr-defined]
    await sr.vdi_activate(vdi)  # type: ignore[attr-defined]
    client = await connect(reactor, attachment.socket_path, attachment.export)
    try:
        assert client.size == SIZE
        parts = [await client.read(at, min(MIB, SIZE - at)) for at in range(0, SIZE, MIB)]
    finally:
        client.close()
    await sr.vdi_detach(vdi)  # type: ignore[attr-defined]
    return b"".join(parts)


async def copy_under_writes(kit: SRKit) -> None:
    vdi, fresh = str(uuid.uuid4()), str(uuid.uuid4())
    await kit.ours.vdi_create(vdi, SIZE)
    await kit.theirs.vdi_create(fresh, SIZE)
    attachment = await kit.ours.vdi_attach(vdi, Purpose.DOMAIN)
    await kit.ours.vdi_activate(vdi)
    guest = Guest(await connect(reactor, attachment.socket_path, attachment.export))
    try:
        await guest.client.write(0, random.Random(2).randbytes(6 * MIB))
        guest.start()
        await until(lambda: guest.written >= SEVERAL)
        await kit.ours.vdi_copy(vdi, await kit.theirs.vdi_get_url(fresh, "m", "127.0.0.1"), "ref", None)
        await state_of(kit, "ref", CopyState.READY)
        written = guest.written
        await until(lambda: guest.written >= written + SEVERAL)
        await guest.stop()
        # what was copied as data is zeroes now: storage that only ignores discards would keep it
        await guest.client.trim(MIB, MIB)
        await guest.client.zeroes(3 * MIB, MIB)
        await guest.client.write(SIZE - 512, b"the last sector ".ljust(512, b"."))
        await kit.ours.vdi_deactivate(vdi)
        assert guest.failed == 0
    finally:
        guest.client.close()
    status = await kit.ours.copy_state("ref")
    assert status.state is CopyState.FINISHED and not status.same_disk, status
    await kit.theirs.vdi_close_url(fresh, "m")
    await kit.ours.vdi_detach(vdi)
    ours, theirs = await whole_disk(kit.ours, vdi), await whole_disk(kit.theirs, fresh)
    assert ours[-512:].startswith(b"the last sector")
    assert ours == theirs, f"they differ from byte {next(i for i in range(SIZE) if ours[i] != theirs[i])} on"
    await kit.ours.copy_cancel("ref")


@pytest.mark.parametrize("receiver", KINDS)
@pytest.mark.parametrize("sender", KINDS)
@pytest_twisted.ensureDeferred
async def test_disks_are_equal(sender: str, receiver: str, short_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with AsyncExitStack() as stack:
        ours: Side = await stack.enter_async_context(KINDS[sender](short_tmp / "a", monkeypatch))
        theirs: Side = ours
        if (sender, receiver) != ("lvm", "lvm"):  # its environment is the process's: one group for both
            theirs = await stack.enter_async_context(KINDS[receiver](short_tmp / "b", monkeypatch))
        await copy_under_writes(await stack.enter_async_context(two_srs(ours, theirs, short_tmp)))
