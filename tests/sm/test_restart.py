"""Everything outlives the daemon; a new one finds it again."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from pathlib import Path

import attrs
import pytest
import pytest_twisted
from twisted.internet import defer, reactor, task
from twisted.internet.error import ConnectionDone

from tests.sm.two_hosts import (
    MIB,
    QUICK,
    Host,
    begin_copy,
    compare,
    guest_on,
    image,
    make_disk,
    open_sr,
    two_hosts,
    until,
)  # fmt: skip
from xapi_migrate.processes.child import find
from xapi_migrate.sm.copy import CANCELLED, Copy
from xapi_migrate.sm.interfaces import CopyState, CopyStatus
from xapi_migrate.sm.services import SMServices
from xapi_migrate.sm.timeouts import SMTimeouts
from xapi_migrate.together import started

pytestmark = pytest.mark.system
SIZE = 128 * MIB
SLOW = attrs.evolve(QUICK, copy_speed=24 * MIB)


async def restart(host: Host, kind: str, timeouts: SMTimeouts = SLOW) -> None:
    """The daemon goes, another one comes."""
    host.services.let_go()
    host.services = SMServices(reactor, host.folder / "state", timeouts)
    await host.services.recover()
    host.sr = open_sr(host.services, host.folder / "sr", kind, host.sr.uuid)
    await host.sr.attach()


@pytest.mark.parametrize("kind", ["raw", "qcow2"])
@pytest_twisted.ensureDeferred
async def test_both_daemons_restart_in_mid_copy(tmp_path: Path, kind: str) -> None:
    async with two_hosts(tmp_path, kind, kind, timeouts=SLOW) as (ours, theirs):
        vdi = await make_disk(ours, SIZE, filled=48 * MIB)
        async with guest_on(ours, vdi) as guest:
            guest.pause = 0.05
            guest.start()
            fresh, url = await begin_copy(ours, theirs, vdi, SIZE)
            await task.deferLater(reactor, 0.3)
            for host in (ours, theirs):
                alive = host.services.alive()
                await restart(host, kind)
                assert host.services.alive() == alive
            assert (await ours.sr.copy_state("copy-1")).state is CopyState.PENDING
            assert await theirs.sr.vdi_get_url(fresh, "migration-1", "127.0.0.1") == url
            await until(ours, "copy-1", CopyState.READY)
            await restart(ours, kind)
            await guest.stop()
            await ours.sr.vdi_deactivate(vdi)
            assert (await ours.sr.copy_state("copy-1")).state is CopyState.FINISHED
            await restart(ours, kind)
            assert (await ours.sr.copy_state("copy-1")).state is CopyState.FINISHED
            assert guest.failed == 0 and not guest.client.lost
            await ours.sr.copy_cancel("copy-1")
        await theirs.sr.vdi_close_url(fresh, "migration-1")
        await ours.services.copies.tidied(vdi)
        assert await compare(image(ours, vdi), image(theirs, fresh)) == ""


@pytest_twisted.ensureDeferred
async def test_a_datapath_that_died_meanwhile_fails_its_copy(tmp_path: Path) -> None:
    async with two_hosts(tmp_path, timeouts=SLOW) as (ours, theirs):
        vdi = await make_disk(ours, SIZE, filled=48 * MIB)
        await begin_copy(ours, theirs, vdi, SIZE)
        child = ours.services.datapaths.get(vdi).daemon.child
        ours.services.let_go()

        await find(reactor, child.folder).kill()
        await restart(ours, "raw")
        status = await ours.sr.copy_state("copy-1")
        assert status.state is CopyState.FAILED and "died" in status.error
        assert ours.services.alive().nothing


MOMENTS: dict[str, Callable[[Copy], bool]] = {
    "it is known": lambda copy: True,
    "its LUN is asked who it is": lambda copy: (copy.folder / "identity" / "serial" / "process.json").exists(),
    "its copier runs": lambda copy: copy.copier.alive,
    "its mirror begins": lambda copy: copy._mirror is not None,
}


@pytest.mark.parametrize("waits", [True, False], ids=["waits", "does not wait"])
@pytest.mark.parametrize("moment", MOMENTS)
@pytest_twisted.ensureDeferred
async def test_a_copy_that_a_stopping_daemon_cancelled_begins_anew(tmp_path: Path, moment: str, waits: bool) -> None:
    async with two_hosts(tmp_path, timeouts=SLOW) as (ours, theirs):
        vdi, fresh = await make_disk(ours, SIZE, filled=8 * MIB), str(uuid.uuid4())
        await theirs.sr.vdi_create(fresh, SIZE)
        url = await theirs.sr.vdi_get_url(fresh, "migration-1", "127.0.0.1")
        beginning = started(ours.sr.vdi_copy(vdi, url, "copy-1", None))
        end = reactor.seconds() + 20
        while (copy := ours.services.copies.of_vdi(vdi)) is None or not MOMENTS[moment](copy):
            assert reactor.seconds() < end and not beginning.called
            await task.deferLater(reactor, 0)
        beginning.cancel()
        if not waits:  # its connections are closed while the copy cleans up
            ours.services.let_go()
        with pytest.raises((defer.CancelledError, ConnectionDone)):
            await beginning
        await restart(ours, "raw")
        await ours.sr.vdi_copy(vdi, url, "copy-1", None)
        await until(ours, "copy-1", CopyState.READY)
        await ours.sr.copy_cancel("copy-1")
        await theirs.sr.vdi_close_url(fresh, "migration-1")


@pytest.mark.parametrize("idle", [True, False])
@pytest_twisted.ensureDeferred
async def test_a_copy_that_was_being_given_up_when_the_daemon_ended_has_let_go_of_its_disk(
    tmp_path: Path, idle: bool
) -> None:
    """Its job runs and its copier lives, though it is told to have failed: both have to go, whether there is anything
    to copy or not, before the disk is used again."""
    speed = QUICK.copy_speed if idle else SLOW.copy_speed
    async with two_hosts(tmp_path, timeouts=attrs.evolve(SLOW, copy_speed=speed)) as (ours, theirs):
        vdi = await make_disk(ours, SIZE, filled=48 * MIB)
        async with guest_on(ours, vdi) as guest:
            fresh, url = await begin_copy(ours, theirs, vdi, SIZE)
            if idle:
                await until(ours, "copy-1", CopyState.READY)
            copy = ours.services.copies.get("copy-1")
            ours.services.let_go()
            copy.end_at_once(CopyStatus(CopyState.FAILED, error=CANCELLED))
            await restart(ours, "raw")
            assert (await ours.services.datapaths.get(vdi).daemon.execute("query-jobs")) == []
            assert ours.services.copies.alive() == []
            guest.pause = 0.05
            guest.start()
            await ours.sr.vdi_copy(vdi, url, "copy-1", None)
            await until(ours, "copy-1", CopyState.READY)
            await guest.stop()
            assert guest.failed == 0 and not guest.client.lost
            await ours.sr.copy_cancel("copy-1")
        await theirs.sr.vdi_close_url(fresh, "migration-1")


class Killed(Exception):
    """The daemon is not there any more, and nothing of it runs on."""


@pytest.mark.parametrize("copier", ["lives", "is gone"])
@pytest.mark.parametrize("command", ["blockdev-add", "blockdev-mirror"])
@pytest.mark.parametrize("done", [False, True])
@pytest_twisted.ensureDeferred
async def test_a_daemon_is_killed_when_the_mirror_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, done: bool, copier: str
) -> None:
    """Where the mirror runs it goes on, else the copy begins anew; either way by its old name, and at once."""
    async with two_hosts(tmp_path, timeouts=SLOW) as (ours, theirs):
        vdi, fresh = await make_disk(ours, SIZE, filled=16 * MIB), str(uuid.uuid4())
        await theirs.sr.vdi_create(fresh, SIZE)
        url = await theirs.sr.vdi_get_url(fresh, "migration-1", "127.0.0.1")
        async with guest_on(ours, vdi) as guest:
            guest.pause = 0.05
            guest.start()
            daemon = ours.services.datapaths.get(vdi).daemon
            execute, reached = daemon.execute, defer.Deferred[None]()

            def struck(name: str, *rest: object, **more: object) -> defer.Deferred[object]:
                if reached.called:
                    raise Killed
                if name != command or "copy" not in str(rest):  # the guest's brake adds a node too
                    return execute(name, *rest, **more)
                sent = execute(name, *rest, **more) if done else defer.succeed(None)
                sent.addCallback(lambda _: reactor.callLater(0, reached.callback, None))
                return sent.addCallback(lambda _: defer.Deferred())

            monkeypatch.setattr(daemon, "execute", struck)
            beginning = started(ours.sr.vdi_copy(vdi, url, "copy-1", None))
            await reached
            copy = ours.services.copies.get("copy-1")
            monkeypatch.setattr(copy, "_conclude", _killed)
            monkeypatch.setattr(copy, "end_at_once", lambda _: None)
            beginning.cancel()
            with pytest.raises(Killed):
                await beginning
            if copier == "is gone":
                await find(reactor, copy.folder).kill()
            began = reactor.seconds()
            await restart(ours, "raw", attrs.evolve(SLOW, guard=10.0))
            assert reactor.seconds() - began < 5
            assert (command == "blockdev-mirror" and done) is (ours.services.copies.of_vdi(vdi) is not None)
            await ours.sr.vdi_copy(vdi, url, "copy-1", None)
            await until(ours, "copy-1", CopyState.READY)
            await guest.stop()
            assert guest.failed == 0
            await ours.sr.vdi_deactivate(vdi)
        await theirs.sr.vdi_close_url(fresh, "migration-1")
        await ours.services.copies.tidied(vdi)
        assert await compare(image(ours, vdi), image(theirs, fresh)) == ""


async def _killed(*_: object, **__: object) -> None:
    raise Killed


@pytest_twisted.ensureDeferred
async def test_a_killed_datapath_leaves_no_mount(tmp_path: Path) -> None:
    async with two_hosts(tmp_path, receiver="qcow2") as (_, theirs):
        vdi = await make_disk(theirs, SIZE)
        await theirs.sr.vdi_get_url(vdi, "m", "127.0.0.1")
        assert len(theirs.services.alive().mounts) == 1
        await theirs.services.datapaths.get(vdi).daemon.child.kill()
        await restart(theirs, "qcow2")
        assert theirs.services.alive().mounts == ()


@pytest_twisted.ensureDeferred
async def test_a_copy_that_was_being_forgotten_is_forgotten(tmp_path: Path) -> None:
    async with two_hosts(tmp_path, timeouts=SLOW) as (ours, theirs):
        vdi = await make_disk(ours, SIZE, filled=48 * MIB)
        await begin_copy(ours, theirs, vdi, SIZE)
        copy = ours.services.copies.get("copy-1")
        await copy.cancel()
        assert copy.folder.exists()
        await restart(ours, "raw")
        assert not copy.folder.exists()
