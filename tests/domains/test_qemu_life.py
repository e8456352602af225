"""Domains begin, end, and are found again; what happens to them by itself is told."""

from __future__ import annotations

import os
import signal
import socket
import time

import attrs
import pytest
from pytest_twisted import ensureDeferred

from tests.domains.hosts import Drain, Hosts, until
from xapi_migrate.domains.interfaces import DomainNic, DomainState
from xapi_migrate.errors import DomainError
from xapi_migrate.processes import child
from xapi_migrate.testing.guests import ticker

pytestmark = pytest.mark.system


def process(hosts, spec):
    from twisted.internet import reactor

    found = child.find(reactor, hosts.root / "sender" / "domains" / spec.domain_id)
    found.abandon()
    return found


@ensureDeferred
async def test_a_guest_boots_quickly_and_is_forgotten_without_a_trace(place):
    async with Hosts(place) as hosts:
        disk = await hosts.disk()
        spec = hosts.spec(disk)
        began = time.monotonic()
        await hosts.sender.start(spec)
        await hosts.ticks(spec, more=1)
        assert time.monotonic() - began < 30
        assert await hosts.sender.domains() == [spec.domain_id]
        await hosts.sender.start(spec)  # repeated: nothing happens
        await hosts.ticks(spec, more=10)
        assert hosts.console(spec).breaks == []
        with pytest.raises(DomainError, match="with this id already"):
            await hosts.sender.start(attrs.evolve(spec, memory=spec.memory * 2))
        folder = hosts.root / "sender" / "domains" / spec.domain_id
        assert folder.exists()
        await hosts.sender.destroy(spec.domain_id)
        await hosts.sender.destroy(spec.domain_id)
        assert not folder.exists()
        assert await hosts.sender.domains() == []
        assert await hosts.sender.state(spec.domain_id) is DomainState.ABSENT
        assert hosts.told == []


@ensureDeferred
async def test_a_domain_that_does_not_come_up_leaves_nothing(place):
    async with Hosts(place) as hosts:
        disk = await hosts.disk()
        spec = hosts.spec(disk)
        wrong = attrs.evolve(spec, disks=(attrs.evolve(spec.disks[0], export="there-is-none"),))
        with pytest.raises(DomainError, match="sender could not start: QEMU ended: .*there-is-none"):
            await hosts.sender.start(wrong)
        absent = attrs.evolve(spec, disks=(attrs.evolve(spec.disks[0], device="x"),))
        with pytest.raises(DomainError, match="there is no place for disk x"):
            await hosts.sender.start(absent)
        with pytest.raises(DomainError, match="its id is not one"):
            await hosts.sender.start(attrs.evolve(spec, domain_id="../escape"))
        assert await hosts.sender.domains() == []
        assert list((hosts.root / "sender").glob("domains/*")) == []
        await hosts.sender.start(spec)  # the same id is free
        await hosts.ticks(spec, more=1)


@ensureDeferred
async def test_pause_and_unpause(place):
    async with Hosts(place) as hosts:
        spec, disk = await hosts.running()
        await hosts.sender.pause(spec.domain_id)
        await hosts.sender.pause(spec.domain_id)
        assert await hosts.sender.state(spec.domain_id) is DomainState.PAUSED
        counters = hosts.console(spec).counters
        assert ticker.Ticker().lost(disk.image, counters) == []
        await hosts.sender.unpause(spec.domain_id)
        await hosts.sender.unpause(spec.domain_id)
        assert await hosts.sender.state(spec.domain_id) is DomainState.RUNNING
        await hosts.ticks(spec)
        assert hosts.console(spec).breaks == []
        assert hosts.told == []


@ensureDeferred
async def test_the_power_button(place):
    async with Hosts(place) as hosts:
        spec, _ = await hosts.running()
        await hosts.sender.shutdown(spec.domain_id)
        await until(lambda: hosts.told, "the power-off")
        assert hosts.told == [(spec.domain_id, DomainState.SHUTDOWN)]
        assert await hosts.sender.state(spec.domain_id) is DomainState.SHUTDOWN
        assert hosts.console(spec).powered_off
        await hosts.sender.resume(spec.domain_id)  # nothing to resume
        assert await hosts.sender.state(spec.domain_id) is DomainState.SHUTDOWN


@ensureDeferred
async def test_a_killed_domain_is_told_as_crashed(place):
    async with Hosts(place) as hosts:
        spec, _ = await hosts.running()
        near, far = socket.socketpair()
        with near, far:
            suspension = await hosts.sender.suspend(spec.domain_id, near.fileno())
            os.kill(process(hosts, spec).pid, signal.SIGKILL)
            with pytest.raises(DomainError, match="QEMU ended"):
                await suspension.finished()
        await until(lambda: hosts.told, "the crash")
        assert hosts.told == [(spec.domain_id, DomainState.CRASHED)]
        assert await hosts.sender.state(spec.domain_id) is DomainState.CRASHED
        with pytest.raises(DomainError, match="sender could not run again: QEMU ended"):
            await hosts.sender.resume(spec.domain_id)
        await hosts.restart_sender()
        assert await hosts.sender.state(spec.domain_id) is DomainState.CRASHED
        await hosts.sender.destroy(spec.domain_id)
        assert await hosts.sender.state(spec.domain_id) is DomainState.ABSENT


@ensureDeferred
async def test_found_again_after_a_restart(place):
    async with Hosts(place) as hosts:
        spec, _ = await hosts.running()
        pid = process(hosts, spec).pid
        await hosts.restart_sender()
        assert await hosts.sender.domains() == [spec.domain_id]
        assert await hosts.sender.state(spec.domain_id) is DomainState.RUNNING
        assert process(hosts, spec).pid == pid
        await hosts.sender.start(spec)  # its description was kept too
        there = hosts.there(spec)
        await hosts.send_memory(spec, there)
        await hosts.receiver.unpause(there.domain_id)
        await hosts.ticks(spec, there)
        assert hosts.console(spec, there).breaks == []
        # of the moved one too: a stopped source stays one
        await hosts.restart_sender()
        assert await hosts.sender.state(spec.domain_id) is DomainState.SUSPENDED


@ensureDeferred
async def test_a_suspend_that_lost_its_daemon_is_rolled_back(place):
    async with Hosts(place) as hosts:
        spec, disk = await hosts.running()
        near, far = socket.socketpair()
        with near, far:
            drain = Drain(far)
            suspension = await hosts.sender.suspend(spec.domain_id, near.fileno())
            await suspension.suspended()
            await hosts.restart_sender()
            with pytest.raises(DomainError, match="let go of the domain"):
                await suspension.finished()
            assert await hosts.sender.state(spec.domain_id) is DomainState.SUSPENDED
            await hosts.sender.resume(spec.domain_id)
            drain.rest()
        await hosts.ticks(spec)
        assert hosts.console(spec).breaks == []
        assert ticker.Ticker().lost(disk.image, hosts.console(spec).counters) == []


@ensureDeferred
async def test_an_incoming_domain_that_lost_its_daemon(place):
    async with Hosts(place) as hosts:
        disk = await hosts.disk()
        spec = hosts.spec(disk)
        near, far = socket.socketpair()
        with near, far:
            restoration = await hosts.sender.restore(spec, far.fileno())
            await restoration.accepting()
            await hosts.restart_sender()
            with pytest.raises(DomainError, match="let go of the domain"):
                await restoration.finished()
            assert await hosts.sender.state(spec.domain_id) is DomainState.INCOMING
            await hosts.sender.destroy(spec.domain_id)
            assert await hosts.sender.domains() == []


@ensureDeferred
async def test_a_start_that_is_given_up_leaves_nothing(place):
    from twisted.internet import defer

    async with Hosts(place) as hosts:
        disk = await hosts.disk()
        spec = hosts.spec(disk)
        for rounds in (0, 1, 5, 30):
            starting = defer.Deferred.fromCoroutine(hosts.sender.start(spec))
            for _ in range(rounds):
                await until_later()
            if rounds == 30 and starting.called:  # on a quick machine the domain is up by then
                await hosts.sender.destroy(spec.domain_id)
                continue
            starting.cancel()
            with pytest.raises(defer.CancelledError):
                await starting
            assert await hosts.sender.domains() == []
            await until(lambda: not list((hosts.root / "sender").glob("domains/*")), "the folder's end")


async def until_later():
    from tests.domains.hosts import sleep

    await sleep(0.001)


@ensureDeferred
async def test_a_network_interface_that_is_connected_to_nothing(place):
    async with Hosts(place) as hosts:
        disk = await hosts.disk()
        spec = attrs.evolve(hosts.spec(disk), nics=(DomainNic("0", "52:54:00:12:34:56"),))
        await hosts.sender.start(spec)
        await hosts.ticks(spec)
        there = hosts.there(spec)
        near, far = socket.socketpair()
        with near, far:
            restoration = await hosts.receiver.restore(there, far.fileno())
            await restoration.accepting()
            suspension = await hosts.sender.suspend(spec.domain_id, near.fileno())
            await suspension.suspended()
            await suspension.proceed()
            await restoration.finished()
        await hosts.receiver.unpause(there.domain_id)
        await hosts.ticks(spec, there)
        assert hosts.console(spec, there).breaks == []
