"""VDI.copy when something dies or stands still. The guest must never notice."""

from __future__ import annotations

import errno
import os
import signal
import uuid
from pathlib import Path

import attrs
import pytest
import pytest_twisted
from twisted.internet import defer, reactor, task

from tests.sm.two_hosts import (
    MIB,
    QUICK,
    begin_copy,
    compare,
    guest_on,
    image,
    make_disk,
    two_hosts,
    until,
)  # fmt: skip
from xapi_migrate.errors import CopyFailed, HandleInvalid
from xapi_migrate.sm import copy as copying
from xapi_migrate.sm import sr_copying
from xapi_migrate.sm.copier import Copier
from xapi_migrate.sm.copy_account import Kept, keep_copy
from xapi_migrate.sm.interfaces import CopyState, SameDiskProof, TargetUrl
from xapi_migrate.together import started

pytestmark = pytest.mark.system
SIZE = 128 * MIB
SLOW = attrs.evolve(QUICK, copy_speed=24 * MIB)


@pytest_twisted.ensureDeferred
async def test_killed_copier_is_replaced_and_the_same_job_goes_on(tmp_path: Path) -> None:
    async with two_hosts(tmp_path, timeouts=SLOW) as (ours, theirs):
        vdi = await make_disk(ours, SIZE, filled=64 * MIB)
        async with guest_on(ours, vdi) as guest:
            guest.pause = 0.05
            guest.start()
            fresh, _ = await begin_copy(ours, theirs, vdi, SIZE)
            await task.deferLater(reactor, 0.6)
            copier = ours.services.copies.get("copy-1").copier
            before, first = (await ours.sr.copy_state("copy-1")).copied, copier.pid
            assert 0 < before < 64 * MIB
            os.kill(first, signal.SIGKILL)
            await task.deferLater(reactor, 0.6)
            assert (await ours.sr.copy_state("copy-1")).copied >= before
            await until(ours, "copy-1", CopyState.READY)
            assert copier.pid != first
            await guest.stop()
            await ours.sr.vdi_deactivate(vdi)
            assert (await ours.sr.copy_state("copy-1")).state is CopyState.FINISHED
            assert guest.failed == 0
        await theirs.sr.vdi_close_url(fresh, "migration-1")
        await ours.services.copies.tidied(vdi)
        assert await compare(image(ours, vdi), image(theirs, fresh)) == ""


@pytest.mark.parametrize("full", ["while it begins", "when it has begun", "when the LUN is asked"])
@pytest_twisted.ensureDeferred
async def test_a_copy_while_nothing_can_be_written_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full: str
) -> None:
    """It has failed before it has begun, and says why; one that has begun goes on."""
    async with two_hosts(tmp_path) as (ours, theirs):
        vdi = await make_disk(ours, 4 * MIB, filled=MIB)

        def refuse(*_: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        def write(folder: Path, kept: Kept) -> None:
            (keep_copy if full == "when it has begun" and not kept.begun else refuse)(folder, kept)

        monkeypatch.setattr(copying, "keep_copy", write)
        if full == "when the LUN is asked":
            monkeypatch.setattr(sr_copying, "read_identity", refuse)
        fresh, _ = await begin_copy(ours, theirs, vdi, 4 * MIB)
        if full != "when it has begun":
            failed = await ours.sr.copy_state("copy-1")
            assert failed.state is CopyState.FAILED and "No space left on device" in failed.error
            await ours.services.copies.tidied(vdi)
            assert ours.services.alive().nothing
            return
        await until(ours, "copy-1", CopyState.READY)
        await ours.sr.copy_replace("copy-1", await theirs.sr.vdi_get_url(fresh, "migration-1", "127.0.0.1"))
        await ours.sr.copy_finish("copy-1")
        assert (await ours.sr.copy_state("copy-1")).state is CopyState.FINISHED
        await theirs.sr.vdi_close_url(fresh, "migration-1")
        assert await compare(image(ours, vdi), image(theirs, fresh)) == ""


@pytest.mark.parametrize("deaths", [1, 2])
@pytest_twisted.ensureDeferred
async def test_a_copier_that_dies_while_it_opens_the_disk(tmp_path: Path, deaths: int) -> None:
    """The first has a successor; when that dies too, the copy cannot begin."""
    async with two_hosts(tmp_path) as (_, theirs):
        vdi = await make_disk(theirs, SIZE)
        url = await theirs.sr.vdi_get_url(vdi, "migration-1", "127.0.0.1")
        copier = Copier(reactor, tmp_path / "copier", vdi, QUICK)
        copier.folder.mkdir()
        tgtd = theirs.services.iscsi.pid
        os.kill(tgtd, signal.SIGSTOP)  # so it waits for the disk
        try:
            beginning = started(copier.start(url))
            killed = {0}
            for _ in range(deaths):
                while copier.pid in killed:
                    await task.deferLater(reactor, 0.02)
                killed.add(copier.pid)
                os.kill(copier.pid, signal.SIGKILL)
        finally:
            os.kill(tgtd, signal.SIGCONT)
        try:
            if deaths == 1:
                await beginning
                assert copier.alive
            else:
                with pytest.raises(CopyFailed, match="its copier died"):
                    await beginning
                assert not copier.alive
        finally:
            await copier.end()


@pytest.mark.parametrize("blow", [signal.SIGSTOP, signal.SIGKILL])
@pytest.mark.parametrize("times", [1, 2])
@pytest_twisted.ensureDeferred
async def test_a_copier_is_struck_when_it_has_opened_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, blow: signal.Signals, times: int
) -> None:
    """The mirror would wait for it. The first has a successor; a second one more and the copy cannot begin."""
    start, struck = Copier.start, []

    async def start_and_strike(copier: Copier, url: TargetUrl) -> None:
        await start(copier, url)
        if len(struck) < times:
            struck.append(copier.pid)
            os.kill(copier.pid, blow)

    monkeypatch.setattr(Copier, "start", start_and_strike)
    async with two_hosts(tmp_path, timeouts=attrs.evolve(QUICK, attach=2.0)) as (ours, theirs):
        vdi = await make_disk(ours, SIZE, filled=8 * MIB)
        async with guest_on(ours, vdi) as guest:
            guest.start()
            fresh, _ = await begin_copy(ours, theirs, vdi, SIZE)
            if times == 1:
                await until(ours, "copy-1", CopyState.READY)
            else:
                status = await until(ours, "copy-1", CopyState.FAILED)
                why = "died" if blow is signal.SIGKILL else "did not answer for 2 s"
                assert status.error == f"its copier {why}, and so did the one before"
                assert ours.services.alive().copiers == ()
            await guest.stop()
            assert guest.failed == 0 and guest.slowest < 1.0
            await ours.sr.vdi_deactivate(vdi)
        await theirs.sr.vdi_close_url(fresh, "migration-1")
        await ours.services.copies.tidied(vdi)
        if times == 1:
            assert await compare(image(ours, vdi), image(theirs, fresh)) == ""


@pytest_twisted.ensureDeferred
async def test_silent_target_fails_the_copy_and_not_the_guest(tmp_path: Path) -> None:
    async with two_hosts(tmp_path, timeouts=SLOW) as (ours, theirs):
        vdi = await make_disk(ours, SIZE, filled=64 * MIB)
        async with guest_on(ours, vdi) as guest:
            guest.start()
            await begin_copy(ours, theirs, vdi, SIZE)
            await task.deferLater(reactor, 0.5)
            os.kill(theirs.services.iscsi.pid, signal.SIGSTOP)
            status = await until(ours, "copy-1", CopyState.FAILED)
            assert "new copiers did not help: the disk at 127.0.0.1:" in status.error
            assert ours.services.alive().copiers == ()
            before = guest.written
            await task.deferLater(reactor, 0.3)
            assert guest.written > before and guest.failed == 0
            assert guest.slowest < 1.0
            await guest.stop()


@pytest.mark.parametrize("busy", [False, True])
@pytest_twisted.ensureDeferred
async def test_deactivate_with_a_silent_target_returns_within_the_guard(tmp_path: Path, busy: bool) -> None:
    async with two_hosts(tmp_path) as (ours, theirs):
        vdi = await make_disk(ours, SIZE, filled=16 * MIB)
        async with guest_on(ours, vdi) as guest:
            await begin_copy(ours, theirs, vdi, SIZE)
            await until(ours, "copy-1", CopyState.READY)
            os.kill(theirs.services.iscsi.pid, signal.SIGSTOP)
            if busy:  # the mirror has writes in flight that nobody answers: draining must not wait for them for ever
                for number in range(64):
                    await guest.client.write(number * MIB, b"x" * MIB)
                await task.deferLater(reactor, 0.3)
            began = reactor.seconds()
            await ours.sr.vdi_deactivate(vdi)
            assert reactor.seconds() - began < 2 * QUICK.guard + 10
            status = await ours.sr.copy_state("copy-1")
            if busy:
                assert status.state is CopyState.FAILED
                assert "did not answer" in status.error or "did not confirm" in status.error
            else:  # everything had been written and flushed before the target fell silent
                assert status.state is CopyState.FINISHED
            await ours.sr.vdi_activate(vdi)  # rollback
            await guest.client.write(0, b"y" * 512)
            assert await guest.client.read(0, 512) == b"y" * 512


@pytest_twisted.ensureDeferred
async def test_killed_target_fails_the_copy(tmp_path: Path) -> None:
    async with two_hosts(tmp_path, timeouts=SLOW) as (ours, theirs):
        vdi = await make_disk(ours, SIZE, filled=64 * MIB)
        async with guest_on(ours, vdi) as guest:
            guest.start()
            fresh, _ = await begin_copy(ours, theirs, vdi, SIZE)
            await task.deferLater(reactor, 0.3)
            os.kill(theirs.services.iscsi.pid, signal.SIGKILL)
            status = await until(ours, "copy-1", CopyState.FAILED)
            assert status.error and guest.failed == 0
            await guest.stop()
            await theirs.sr.vdi_close_url(fresh, "migration-1")


@pytest_twisted.ensureDeferred
async def test_wrong_password_fails_at_once(tmp_path: Path) -> None:
    async with two_hosts(tmp_path) as (ours, theirs):
        vdi = await make_disk(ours, SIZE)
        fresh, url = await begin_copy(ours, theirs, vdi, SIZE, "right")
        await until(ours, "right", CopyState.READY)
        await ours.sr.copy_cancel("right")
        wrong = attrs.evolve(url, password="w" * 43)
        await ours.sr.vdi_copy(vdi, wrong, "wrong", None)
        status = await ours.sr.copy_state("wrong")
        assert status.state is CopyState.FAILED
        assert "w" * 43 not in status.error and url.password not in status.error


@pytest_twisted.ensureDeferred
async def test_cancel_at_any_moment_leaves_the_guest_alone(tmp_path: Path) -> None:
    async with two_hosts(tmp_path, timeouts=SLOW) as (ours, theirs):
        vdi = await make_disk(ours, SIZE, filled=32 * MIB)
        async with guest_on(ours, vdi) as guest:
            guest.start()
            fresh, url = await begin_copy(ours, theirs, vdi, SIZE, "one")
            for number, wait in enumerate((0.0, 0.05, 0.4, 3.0)):
                ref = f"copy-{number}"
                await ours.sr.copy_cancel("one" if not number else f"copy-{number - 1}")
                await ours.sr.vdi_copy(vdi, url, ref, None)
                await task.deferLater(reactor, wait)
            await ours.sr.copy_cancel(ref)
            await ours.sr.copy_cancel(ref)
            with pytest.raises(HandleInvalid):
                await ours.sr.copy_state(ref)
            assert guest.failed == 0 and guest.slowest < 1.0
            await guest.stop()
            assert await ours.services.datapaths.get(vdi).daemon.job("copy") is None
            assert (await ours.sr.vdi_deactivate(vdi)) is None
        assert list((tmp_path / "T/state/copiers").iterdir()) == []


@pytest_twisted.ensureDeferred
async def test_cancel_while_a_copy_is_being_begun_ends_it(tmp_path: Path) -> None:
    async with two_hosts(tmp_path) as (ours, theirs):
        vdi = await make_disk(ours, SIZE)
        fresh = str(uuid.uuid4())
        await theirs.sr.vdi_create(fresh, SIZE)
        url = await theirs.sr.vdi_get_url(fresh, "migration-1", "127.0.0.1")
        async with guest_on(ours, vdi) as guest:
            guest.start()
            for number, wait in enumerate((0.0, 0.003, 0.01, 0.03, 0.1)):
                beginning = started(ours.sr.vdi_copy(vdi, url, f"copy-{number}", None))
                await task.deferLater(reactor, wait)
                beginning.cancel()
                # as a sender that rolls back: it does not wait for what it has cancelled
                await started(ours.sr.copy_cancel(f"copy-{number}")).addTimeout(10, reactor)
                try:
                    await beginning
                except defer.CancelledError:
                    pass
            assert guest.failed == 0
            await guest.stop()
        assert list((tmp_path / "T/state/copiers").iterdir()) == []


@pytest_twisted.ensureDeferred
async def test_deactivating_before_ready_fails_the_copy(tmp_path: Path) -> None:
    async with two_hosts(tmp_path, timeouts=SLOW) as (ours, theirs):
        vdi = await make_disk(ours, SIZE, filled=64 * MIB)
        async with guest_on(ours, vdi):
            await begin_copy(ours, theirs, vdi, SIZE)
            await ours.sr.vdi_deactivate(vdi)
            status = await ours.sr.copy_state("copy-1")
            assert status.state is CopyState.FAILED and "before all of it" in status.error


@pytest_twisted.ensureDeferred
async def test_same_disk_needs_the_proof(tmp_path: Path) -> None:
    async with two_hosts(tmp_path) as (ours, _):
        vdi = await make_disk(ours, SIZE)
        url = await ours.sr.vdi_dummy_url(vdi, SIZE, "migration-2", "127.0.0.1")
        proof = await ours.sr.same_disk_proof("migration-2")
        await ours.sr.vdi_copy(vdi, url, "same", proof)
        status = await ours.sr.copy_state("same")
        assert status.state is CopyState.FINISHED and status.same_disk
        assert ours.services.alive().datapaths == ()  # the image was opened by neither
        for ref, given, force in (
            ("none", None, False),
            ("clone", SameDiskProof(proof.name, "0" * 32), False),
            ("absent", SameDiskProof("0" * 8, proof.value), False),
            ("forced", proof, True),
        ):
            await ours.sr.vdi_copy(vdi, url, ref, given, force)
            status = await ours.sr.copy_state(ref)
            assert status.state is CopyState.FAILED and not status.same_disk and status.error
        await ours.sr.forget_proof("migration-2")
        await ours.sr.vdi_copy(vdi, url, "late", proof)
        assert (await ours.sr.copy_state("late")).state is CopyState.FAILED
        await ours.sr.vdi_close_url(vdi, "migration-2")


@pytest_twisted.ensureDeferred
async def test_halted_vm_is_copied_without_a_domain(tmp_path: Path) -> None:
    async with two_hosts(tmp_path, "qcow2", "raw") as (ours, theirs):
        vdi = await make_disk(ours, 512 * MIB, filled=32 * MIB)
        fresh, _ = await begin_copy(ours, theirs, vdi, 512 * MIB)
        await until(ours, "copy-1", CopyState.READY)
        await ours.sr.copy_finish("copy-1")
        assert (await ours.sr.copy_state("copy-1")).state is CopyState.FINISHED
        assert ours.services.alive().nothing
        await theirs.sr.vdi_close_url(fresh, "migration-1")
        assert theirs.services.alive().nothing
        assert await compare(image(ours, vdi), image(theirs, fresh)) == ""
        assert image(theirs, fresh).stat().st_blocks * 512 < 40 * MIB  # a hole stays a hole


@pytest_twisted.ensureDeferred
async def test_cancel_just_when_the_job_fails_by_itself(tmp_path: Path) -> None:
    async with two_hosts(tmp_path) as (ours, theirs):
        vdi = await make_disk(ours, 32 * MIB)
        for wait in (0.0, 0.001, 0.002, 0.005, 0.01, 0.03):
            await begin_copy(ours, theirs, vdi, 16 * MIB)  # too small: the mirror gives up at once
            await task.deferLater(reactor, wait)
            began = reactor.seconds()
            await ours.sr.copy_cancel("copy-1")
            assert reactor.seconds() - began < 5.0
            assert ours.services.alive().nothing
