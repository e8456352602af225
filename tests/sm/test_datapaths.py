"""The processes of datapaths: none is left that nobody knows of."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import pytest_twisted
from twisted.internet import defer, reactor, task

from tests.sm.two_hosts import MIB, make_disk, two_hosts
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
