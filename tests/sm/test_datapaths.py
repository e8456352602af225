"""The processes of datapaths: none is left that nobody knows of."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import attrs
import pytest
import pytest_twisted
from twisted.internet import defer, reactor, task

from tests.sm.two_hosts import MIB, QUICK, make_disk, two_hosts
from xapi_migrate.errors import SrBackendFailure
from xapi_migrate.processes import remains
from xapi_migrate.sm import storage_daemon
from xapi_migrate.sm.datapath import Datapath
from xapi_migrate.sm.interfaces import Purpose
from xapi_migrate.together import started

pytestmark = pytest.mark.system


@pytest.mark.parametrize("dead", [False, True], ids=["the first", "after one that died"])
@pytest_twisted.ensureDeferred
async def test_an_attachment_is_cancelled_while_its_process_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dead: bool
) -> None:
    async with two_hosts(tmp_path) as (ours, _):
        vdi = await make_disk(ours, MIB)
        if dead:  # it serves the disk, and a domain is attached next
            await ours.sr.vdi_get_url(vdi, "migration-1", "127.0.0.1")
            child = ours.services.datapaths.get(vdi).daemon.child
            os.kill(child.pid, signal.SIGKILL)
            await child.ended()
        reached: defer.Deferred[None] = defer.Deferred()

        async def build(datapath: Datapath) -> None:
            reactor.callLater(0, reached.callback, None)
            await task.deferLater(reactor, 3600)

        monkeypatch.setattr(Datapath, "build", build)
        attaching = started(ours.sr.vdi_attach(vdi, Purpose.DOMAIN))
        await reached
        attaching.cancel()
        with pytest.raises(defer.CancelledError):
            await attaching
        monkeypatch.undo()
        await ours.sr.vdi_close_url(vdi, "migration-1")
        assert remains.children(tmp_path / "T" / "state" / "datapaths") == {}
        await ours.sr.vdi_attach(vdi, Purpose.DOMAIN)
        await ours.sr.vdi_detach(vdi)


DIES = 'n=$(cat times 2>/dev/null || echo 0); echo $((n + 1)) > times; [ $n -ge {times} ] || kill -SEGV $$; exec "$@"'


@pytest.mark.parametrize("times", [2, 3])
@pytest_twisted.ensureDeferred
async def test_a_storage_daemon_dies_at_its_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    """As QEMU 7.2's does now and then: another one is started, and if that does not help there is none."""
    monkeypatch.setattr(storage_daemon, "ARGV", ("sh", "-c", DIES.format(times=times), "sh", *storage_daemon.ARGV))
    async with two_hosts(tmp_path) as (ours, _):
        vdi = await make_disk(ours, MIB)
        if times == 2:
            await ours.sr.vdi_attach(vdi, Purpose.DOMAIN)
            await ours.sr.vdi_detach(vdi)
        else:
            with pytest.raises(SrBackendFailure, match="ended before its monitor answered"):
                await ours.sr.vdi_attach(vdi, Purpose.DOMAIN)


@pytest.mark.parametrize("busy", [False, True])
@pytest_twisted.ensureDeferred
async def test_no_client_comes_before_the_monitor_is_set_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, busy: bool
) -> None:
    """QEMU 7.2 would read its commands in two threads."""
    asked: list[bool] = []

    def at_work(pid: int) -> bool:
        asked.append(storage_daemon.find(reactor, tmp_path / "p") is not None)
        return busy or len(asked) < 5

    monkeypatch.setattr(storage_daemon, "_at_work", at_work)
    monkeypatch.setattr(storage_daemon, "connect", None)
    with pytest.raises(TimeoutError if busy else TypeError):  # a client that comes would be a TypeError
        await storage_daemon.StorageDaemon.start(reactor, tmp_path / "p", attrs.evolve(QUICK, start=1.0))
    assert asked[:5] == [True] * 5
    child = storage_daemon.find(reactor, tmp_path / "p")
    if child is not None:
        await child.kill()


@pytest_twisted.ensureDeferred
async def test_whether_a_thread_of_a_process_is_at_work(tmp_path: Path) -> None:
    spin = "import threading; threading.Thread(target=lambda: [None for _ in iter(int, 1)]).start()"
    busy = await storage_daemon.spawn(reactor, tmp_path / "busy", [sys.executable, "-c", spin])
    idle = await storage_daemon.spawn(reactor, tmp_path / "idle", storage_daemon.ARGV)
    try:
        while not storage_daemon._at_work(busy.pid) or not (idle.folder / storage_daemon.UP).exists():
            await task.deferLater(reactor, 0.01)
        while storage_daemon._at_work(idle.pid):
            await task.deferLater(reactor, 0.01)
    finally:
        await busy.kill()
        await idle.kill()
    assert not storage_daemon._at_work(idle.pid)
