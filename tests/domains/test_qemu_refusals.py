"""A disk refuses requests for a while: the guest waits for it, whoever asks meanwhile, and nothing is lost."""

from __future__ import annotations

import socket

import pytest
from pytest_twisted import ensureDeferred

from tests.domains.hosts import Hosts, sleep, tcp_pair, until
from xapi_migrate.domains.interfaces import DomainState
from xapi_migrate.domains.qemu_config import DomainTimeouts, QEMUConfig
from xapi_migrate.errors import DomainError
from xapi_migrate.testing.guests import ticker

pytestmark = pytest.mark.system

CONFIG = QEMUConfig(timeouts=DomainTimeouts(retry=0.2))


async def goes_on(hosts, disk, *specs):
    await hosts.ticks(*specs)
    console = hosts.console(*specs)
    assert console.breaks == []
    assert console.anomalies == []
    assert ticker.Ticker().lost(disk.image, console.counters) == []


@ensureDeferred
async def test_it_runs_to_everybody_and_goes_on_by_itself(place):
    async with Hosts(place, CONFIG) as hosts:
        spec, disk = await hosts.running()
        await disk.gate(False)
        await hosts.refused(spec)
        for _ in range(10):
            assert await hosts.sender.state(spec.domain_id) is DomainState.RUNNING
            await sleep(0.1)
        await disk.gate(True)
        await goes_on(hosts, disk, spec)
        assert hosts.told == []


@ensureDeferred
async def test_the_daemon_is_restarted_meanwhile(place):
    async with Hosts(place, CONFIG) as hosts:
        spec, disk = await hosts.running()
        await disk.gate(False)
        await hosts.refused(spec)
        await hosts.restart_sender()
        assert await hosts.sender.state(spec.domain_id) is DomainState.RUNNING
        await disk.gate(True)
        await goes_on(hosts, disk, spec)


@ensureDeferred
async def test_a_pause_is_one_or_is_refused(place):
    """One that is refused leaves the guest waiting for its disk; one that is not outlives the daemon."""
    async with Hosts(place, CONFIG) as hosts:
        spec, disk = await hosts.running()
        for _ in range(10):
            await disk.gate(False)
            await hosts.refused(spec)
            try:
                await hosts.sender.pause(spec.domain_id)
            except DomainError as failure:
                assert "refuses requests" in str(failure)
                assert await hosts.sender.state(spec.domain_id) is DomainState.RUNNING
                await disk.gate(True)
                await goes_on(hosts, disk, spec)
                continue
            await disk.gate(True)
            await hosts.restart_sender()
            assert await hosts.sender.state(spec.domain_id) is DomainState.PAUSED
            ticks = len(hosts.console(spec).counters)
            await sleep(0.5)
            assert len(hosts.console(spec).counters) == ticks
            await hosts.sender.unpause(spec.domain_id)
            await goes_on(hosts, disk, spec)


@ensureDeferred
async def test_it_moves_while_it_waits_and_does_not_run_before_it_may(place):
    """The refused request moves with it. The receiver's domain is paused; the sender's stands still to its end."""
    async with Hosts(place, CONFIG) as hosts:
        spec, disk = await hosts.running()
        there = hosts.there(spec)
        await disk.gate(False)
        await hosts.refused(spec)
        await hosts.send_memory(spec, there, tcp_pair)
        await disk.gate(True)
        stood = len(hosts.console(spec, there).counters)
        for _ in range(10):
            assert await hosts.sender.state(spec.domain_id) is DomainState.SUSPENDED
            assert await hosts.receiver.state(there.domain_id) is DomainState.PAUSED
            await sleep(0.1)
        assert len(hosts.console(spec, there).counters) == stood
        await hosts.receiver.unpause(there.domain_id)
        await goes_on(hosts, disk, spec, there)


@pytest.mark.parametrize("heals_first", [False, True])
@ensureDeferred
async def test_a_suspend_that_fails_meanwhile(place, heals_first):
    """Rolled back while the disk refuses, or when it does no longer."""
    async with Hosts(place, CONFIG) as hosts:
        spec, disk = await hosts.running()
        await disk.gate(False)
        await hosts.refused(spec)
        near, far = socket.socketpair()
        with near:
            suspension = await hosts.sender.suspend(spec.domain_id, near.fileno(), live=heals_first)
            far.close()
            await until(lambda: suspension.over, "the failure of the stream")
        await disk.gate(heals_first)
        await suspension.cancel()
        await hosts.sender.resume(spec.domain_id)
        await disk.gate(True)
        await goes_on(hosts, disk, spec)
