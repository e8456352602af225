"""A suspend fails or is given up at every moment: the guest goes on where it was, and nothing is lost."""

from __future__ import annotations

import socket
import time

import pytest
from pytest_twisted import ensureDeferred

from tests.domains.hosts import MIB, Drain, Hosts
from xapi_migrate.domains.interfaces import DomainState
from xapi_migrate.domains.qemu_config import DomainTimeouts, QEMUConfig
from xapi_migrate.errors import DomainError
from xapi_migrate.testing.guests import ticker

pytestmark = pytest.mark.system

FULL = ticker.ram(64 * MIB, megabytes_per_second=100, working_set=24 * MIB)
"""Its memory is not zero, so that a stalled stream really waits, and much of it is dirty at the end."""


async def goes_on(hosts, spec, disk=None):
    """The guest runs, and has always run on."""
    assert await hosts.sender.state(spec.domain_id) is DomainState.RUNNING
    await hosts.ticks(spec)
    console = hosts.console(spec)
    assert console.breaks == []
    assert console.anomalies == []
    if disk is not None:
        assert ticker.Ticker().lost(disk.image, console.counters) == []


@ensureDeferred
async def test_cancelled_while_it_runs(place):
    async with Hosts(place) as hosts:
        spec, disk = await hosts.running(FULL)
        near, far = socket.socketpair()
        with near, far:
            suspension = await hosts.sender.suspend(spec.domain_id, near.fileno())
            await hosts.ticks(spec, more=5)
            began = time.monotonic()
            await suspension.cancel()
            await suspension.cancel()
            assert time.monotonic() - began < 10
            with pytest.raises(DomainError, match="could not suspend: it was cancelled"):
                await suspension.suspended()
            with pytest.raises(DomainError, match="it was cancelled"):
                await suspension.finished()
            await hosts.sender.resume(spec.domain_id)
            await goes_on(hosts, spec, disk)


@ensureDeferred
async def test_cancelled_at_the_suspend_point(place):
    async with Hosts(place) as hosts:
        spec, disk = await hosts.running()
        near, far = socket.socketpair()
        with near, far:
            drain = Drain(far)
            suspension = await hosts.sender.suspend(spec.domain_id, near.fileno())
            await suspension.suspended()
            await suspension.cancel()
            with pytest.raises(DomainError, match="it was cancelled"):
                await suspension.finished()
            drain.rest()
            await hosts.sender.resume(spec.domain_id)
            await goes_on(hosts, spec, disk)


@pytest.mark.parametrize("how", ["cancel", "shutdown", "close"])
@ensureDeferred
async def test_given_up_while_the_monitor_is_silent(place, how):
    """The guest is stopped, the last of its memory goes out, and the reader has stopped reading."""
    quick = QEMUConfig(timeouts=DomainTimeouts(question=0.5, cancel=1.5))
    async with Hosts(place, quick) as hosts:
        spec, disk = await hosts.running(FULL)
        near, far = socket.socketpair()
        with near, far:
            drain = Drain(far)
            suspension = await hosts.sender.suspend(spec.domain_id, near.fileno())
            await suspension.suspended()
            drain.rest()
            await suspension.proceed()
            assert await hosts.sender.state(spec.domain_id) is DomainState.SUSPENDED
            began = time.monotonic()
            if how == "cancel":
                await suspension.cancel()
            elif how == "shutdown":
                near.shutdown(socket.SHUT_RDWR)
            else:
                far.close()
            with pytest.raises(DomainError):
                await suspension.finished()
            assert time.monotonic() - began < 20
            await hosts.sender.resume(spec.domain_id)
            await goes_on(hosts, spec, disk)


@ensureDeferred
async def test_the_receiver_dies_while_it_reads(place):
    async with Hosts(place) as hosts:
        spec, disk = await hosts.running(FULL)
        there = hosts.there(spec)
        near, far = socket.socketpair()
        with near, far:
            restoration = await hosts.receiver.restore(there, far.fileno())
            await restoration.accepting()
            suspension = await hosts.sender.suspend(spec.domain_id, near.fileno())
            await hosts.receiver.destroy(there.domain_id)
            with pytest.raises(DomainError, match="receiver could not take its memory in"):
                await restoration.finished()
            far.close()  # the last holder of that end
            with pytest.raises(DomainError, match="sender could not suspend"):
                await suspension.suspended()
            await goes_on(hosts, spec, disk)


@ensureDeferred
async def test_the_receiver_dies_at_the_suspend_point(place):
    async with Hosts(place) as hosts:
        spec, disk = await hosts.running(FULL)
        there = hosts.there(spec)
        near, far = socket.socketpair()
        with near, far:
            restoration = await hosts.receiver.restore(there, far.fileno())
            await restoration.accepting()
            suspension = await hosts.sender.suspend(spec.domain_id, near.fileno())
            await suspension.suspended()
            await hosts.receiver.destroy(there.domain_id)
            far.close()
            await suspension.proceed()
            with pytest.raises(DomainError, match="sender could not suspend"):
                await suspension.finished()
            await hosts.sender.resume(spec.domain_id)
            await goes_on(hosts, spec, disk)


@ensureDeferred
async def test_resumed_after_the_whole_stream(place):
    async with Hosts(place) as hosts:
        spec, disk = await hosts.running()
        near, far = socket.socketpair()
        with near, far:
            drain = Drain(far)
            suspension = await hosts.sender.suspend(spec.domain_id, near.fileno())
            await suspension.suspended()
            await suspension.proceed()
            await suspension.finished()
            assert await hosts.sender.state(spec.domain_id) is DomainState.SUSPENDED
            near.close()
            drain.rest()
            await suspension.cancel()
            await hosts.sender.resume(spec.domain_id)
            await hosts.sender.resume(spec.domain_id)
            await goes_on(hosts, spec, disk)


@ensureDeferred
async def test_a_second_try_after_a_failure(place):
    async with Hosts(place) as hosts:
        spec, disk = await hosts.running()
        for _ in range(2):
            near, far = socket.socketpair()
            with near, far:
                suspension = await hosts.sender.suspend(spec.domain_id, near.fileno())
                far.close()
                with pytest.raises(DomainError):
                    await suspension.finished()
            await hosts.sender.resume(spec.domain_id)
        near, far = socket.socketpair()
        with near, far:
            drain = Drain(far)
            suspension = await hosts.sender.suspend(spec.domain_id, near.fileno())
            await suspension.suspended()
            await suspension.proceed()
            await suspension.finished()
            near.close()
            drain.rest()
        await hosts.sender.resume(spec.domain_id)
        await goes_on(hosts, spec, disk)


@ensureDeferred
async def test_a_guest_that_runs_on_with_its_disk_gone_loses_no_write(place):
    """QEMU lets the guest go on by itself when the stream fails, here before its disk is active again."""
    async with Hosts(place) as hosts:
        spec, disk = await hosts.running()
        near, far = socket.socketpair()
        with near, far:
            drain = Drain(far)
            suspension = await hosts.sender.suspend(spec.domain_id, near.fileno())
            await suspension.suspended()
            await disk.gate(False)
            await suspension.cancel()
            drain.rest()
        await hosts.refused(spec)
        await disk.gate(True)
        await hosts.sender.resume(spec.domain_id)
        await hosts.ticks(spec, more=50)
        await hosts.sender.pause(spec.domain_id)
        console = hosts.console(spec)
        assert console.breaks == []
        assert console.anomalies == []
        assert ticker.Ticker().lost(disk.image, console.counters) == []


@ensureDeferred
async def test_resumed_in_the_moment_of_a_refused_write(place):
    """The gate opens and `resume` comes while the guest is being refused writes, at many different moments."""
    async with Hosts(place) as hosts:
        spec, disk = await hosts.running(ticker.Ticker(ticks=500))
        for _ in range(20):
            await disk.gate(False)
            await hosts.refused(spec)
            await disk.gate(True)
            await hosts.sender.resume(spec.domain_id)
            await hosts.ticks(spec, more=5)
        console = hosts.console(spec)
        assert console.breaks == []
        assert console.anomalies == []
        assert ticker.Ticker().lost(disk.image, console.counters) == []
