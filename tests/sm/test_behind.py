"""What is put off while a guest waits is done all the same: soon, before anybody needs it, or by the next daemon."""

from __future__ import annotations

from pathlib import Path

import pytest
import pytest_twisted
from twisted.internet import defer, reactor, task

from tests.sm.test_restart import restart
from tests.sm.two_hosts import MIB, begin_copy, guest_on, make_disk, two_hosts, until
from xapi_migrate.sm.behind import Behind
from xapi_migrate.sm.interfaces import CopyState, Purpose

SIZE = 16 * MIB


def test_work_begins_after_a_moment_or_when_it_is_needed() -> None:
    clock = task.Clock()
    behind = Behind(clock)
    done: list[str] = []

    async def work(name: str) -> None:
        done.append(name)

    behind.later("a", lambda: work("a"))
    behind.later("b", lambda: work("b"))
    assert done == []
    needed = defer.ensureDeferred(behind.done("b"))
    assert done == ["b"] and needed.called
    clock.advance(5)
    assert done == ["b", "a"]
    behind.later("c", lambda: work("c"))
    behind.let_go()
    clock.advance(5)
    assert done == ["b", "a"] and clock.getDelayedCalls() == []


def test_who_needs_it_waits_until_it_has_ended() -> None:
    clock = task.Clock()
    behind = Behind(clock)
    hold: defer.Deferred[None] = defer.Deferred()

    async def work() -> None:
        await hold

    behind.later("a", work)
    clock.advance(5)
    waiting = [defer.ensureDeferred(behind.done("a")), defer.ensureDeferred(behind.all_done())]
    assert not any(one.called for one in waiting)
    hold.callback(None)
    assert all(one.called for one in waiting)


@pytest.mark.system
@pytest.mark.parametrize("kind", ["raw", "qcow2"])
@pytest.mark.parametrize("restarted", [False, True])
@pytest_twisted.ensureDeferred
async def test_after_the_switch_everything_is_tidied_away(tmp_path: Path, kind: str, restarted: bool) -> None:
    async with two_hosts(tmp_path, kind, kind) as (ours, theirs):
        vdi = await make_disk(ours, SIZE, filled=MIB)
        async with guest_on(ours, vdi) as guest:
            guest.start()
            fresh, _ = await begin_copy(ours, theirs, vdi, SIZE)
            await until(ours, "copy-1", CopyState.READY)
            await theirs.sr.vdi_attach(fresh, Purpose.DOMAIN)
            await guest.stop()
            await ours.sr.vdi_deactivate(vdi)
            await theirs.sr.vdi_close_url(fresh, "migration-1")
            await theirs.sr.vdi_activate(fresh)
            assert theirs.services.iscsi.served() == set()
            assert ours.services.alive().copiers and theirs.services.iscsi.alive, "nothing was put off"
            for host in (ours, theirs):
                if restarted:
                    await restart(host, kind)
                else:
                    await host.services.behind.all_done()
            assert (await ours.sr.copy_state("copy-1")).state is CopyState.FINISHED
            assert ours.services.alive().copiers == ()
            assert (theirs.services.alive().tgtd, theirs.services.alive().mounts) == (0, ())
            assert set(theirs.services.datapaths.get(fresh).users) == {"domain"}
            assert set(ours.services.datapaths.get(vdi).users) == {"domain"}
            # and back: the guest goes on here after all
            await theirs.sr.vdi_detach(fresh)
            await ours.sr.copy_cancel("copy-1")
            await ours.sr.vdi_activate(vdi)
            await guest.client.write(0, b"back" * 1024)
            assert guest.failed == 0
        await ours.sr.vdi_detach(vdi)
        assert ours.services.alive().nothing and theirs.services.alive().nothing


@pytest.mark.system
@pytest_twisted.ensureDeferred
async def test_a_guest_that_comes_back_at_once_meets_an_open_gate(tmp_path: Path) -> None:
    async with two_hosts(tmp_path) as (ours, theirs):
        vdi = await make_disk(ours, SIZE, filled=MIB)
        async with guest_on(ours, vdi) as guest:
            await begin_copy(ours, theirs, vdi, SIZE)
            await until(ours, "copy-1", CopyState.READY)
            await ours.sr.vdi_deactivate(vdi)
            await ours.sr.vdi_activate(vdi)  # while the finished copy still holds its parts
            guest.start()
            await ours.services.behind.all_done()
            await task.deferLater(reactor, 0.1)
            await guest.stop()
            assert guest.written > 5 and guest.failed == 0
        await ours.sr.vdi_detach(vdi)
        assert ours.services.alive().nothing
