"""VDI.copy over the real path: datapath, copier, iSCSI, tgtd, with a guest that writes all the time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor, task

from tests.sm.two_hosts import (
    MIB,
    begin_copy,
    command_lines,
    compare,
    guest_on,
    image,
    make_disk,
    say,
    two_hosts,
    until,
)
from xapi_migrate.sm.interfaces import CopyState

pytestmark = pytest.mark.system


@pytest.mark.parametrize("sender", ["raw", "qcow2"])
@pytest.mark.parametrize("receiver", ["raw", "qcow2"])
@pytest_twisted.ensureDeferred
async def test_copy_under_writes_is_equal(tmp_path: Path, sender: str, receiver: str, request: Any) -> None:
    size = 256 * MIB
    async with two_hosts(tmp_path, sender, receiver) as (ours, theirs):
        vdi = await make_disk(ours, size, filled=64 * MIB)
        async with guest_on(ours, vdi) as guest:
            guest.start()
            began = reactor.seconds()
            fresh, url = await begin_copy(ours, theirs, vdi, size)
            lines = command_lines()
            status = await until(ours, "copy-1", CopyState.READY, CopyState.FAILED)
            assert status.state is CopyState.READY, status
            took = reactor.seconds() - began
            await task.deferLater(reactor, 0.5)
            await guest.stop()
            before = reactor.seconds()
            await ours.sr.vdi_deactivate(vdi)
            finish = reactor.seconds() - before
            status = await ours.sr.copy_state("copy-1")
            assert status.state is CopyState.FINISHED, status
            assert status.copied == status.total >= 64 * MIB
            before = reactor.seconds()
            await theirs.sr.vdi_close_url(fresh, "migration-1")
            close = reactor.seconds() - before
        assert guest.written > 100 and guest.failed == 0
        assert url.password not in lines and len(url.password) >= 32
        await ours.services.copies.tidied(vdi)
        assert await compare(image(ours, vdi), image(theirs, fresh)) == ""
        say(
            request,
            f"ready {took:.2f} s, {guest.written} writes, slowest {guest.slowest * 1e3:.0f} ms, "
            f"deactivate+finish {finish * 1e3:.1f} ms, close LUN {close * 1e3:.1f} ms, "
            f"{status.total / MIB / took:.0f} MiB/s",
        )
        await ours.sr.vdi_detach(vdi)
        await ours.sr.copy_cancel("copy-1")


@pytest_twisted.ensureDeferred
async def test_receiver_that_rounds_up_and_one_that_is_too_small(tmp_path: Path) -> None:
    async with two_hosts(tmp_path, "qcow2", "raw") as (ours, theirs):
        vdi = await make_disk(ours, 32 * MIB, filled=4 * MIB)
        larger, _ = await begin_copy(ours, theirs, vdi, 36 * MIB, "larger")
        await until(ours, "larger", CopyState.READY)
        await ours.sr.copy_finish("larger")
        assert (await ours.sr.copy_state("larger")).state is CopyState.FINISHED
        await begin_copy(ours, theirs, vdi, 16 * MIB, "smaller")
        status = await until(ours, "smaller", CopyState.FAILED, timeout=10)
        assert "size" in status.error
        await theirs.sr.vdi_close_url(larger, "migration-1")
        with image(theirs, larger).open("r+b") as file:
            file.truncate(32 * MIB)
        assert await compare(image(ours, vdi), image(theirs, larger)) == ""


@pytest_twisted.ensureDeferred
async def test_two_disks_of_one_migration(tmp_path: Path) -> None:
    async with two_hosts(tmp_path, "raw", "qcow2") as (ours, theirs):
        disks = [await make_disk(ours, 64 * MIB, filled=8 * MIB) for _ in range(2)]
        fresh = [
            (await begin_copy(ours, theirs, vdi, 64 * MIB, f"copy-{number}"))[0] for number, vdi in enumerate(disks)
        ]
        for number in range(2):
            await until(ours, f"copy-{number}", CopyState.READY)
            await ours.sr.copy_finish(f"copy-{number}")
            assert (await ours.sr.copy_state(f"copy-{number}")).state is CopyState.FINISHED
        for ours_vdi, theirs_vdi in zip(disks, fresh, strict=True):
            await theirs.sr.vdi_close_url(theirs_vdi, "migration-1")
            assert await compare(image(ours, ours_vdi), image(theirs, theirs_vdi)) == ""
