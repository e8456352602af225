"""Real guests move between two drivers: nothing is lost on the way."""

from __future__ import annotations

import os
import socket

import attrs
import pytest
from pytest_twisted import ensureDeferred

from tests.domains.hosts import MIB, Hosts, tcp_pair
from xapi_migrate.domains.interfaces import DomainState
from xapi_migrate.domains.qemu_config import DomainTimeouts, QEMUConfig
from xapi_migrate.errors import DomainError
from xapi_migrate.testing.guests import ticker

pytestmark = pytest.mark.system


async def migrate(hosts, here, there, pair=socket.socketpair):
    """The whole of it; the suspension."""
    suspension = await hosts.send_memory(here, there, pair)
    await hosts.receiver.unpause(there.domain_id)
    await hosts.sender.destroy(here.domain_id)
    return suspension


@pytest.mark.parametrize("pair", [socket.socketpair, tcp_pair])
@ensureDeferred
async def test_live_migration_loses_no_tick(place, pair):
    async with Hosts(place) as hosts:
        first, second = await hosts.disk(), await hosts.disk()
        here = hosts.spec(first, second)
        there = hosts.there(here)
        await hosts.sender.start(here)
        await hosts.ticks(here, more=30)
        suspension = await migrate(hosts, here, there, pair)
        await hosts.ticks(here, there, more=30)
        await hosts.receiver.pause(there.domain_id)
        console = hosts.console(here, there)
        assert console.breaks == []
        assert console.anomalies == []
        guest = ticker.Ticker()
        assert guest.lost(first.image, console.counters) == []
        assert guest.lost(second.image, console.counters) == []
        sent, total = suspension.progress()
        assert 0 < sent == total


@pytest.mark.parametrize(("exact", "state"), [(True, DomainState.RUNNING), (False, DomainState.PAUSED)])
@ensureDeferred
async def test_a_domain_that_would_lose_writes_stands_still(place, exact, state):
    slow = QEMUConfig(exact_memory=True, bandwidth=64 << 10)
    async with Hosts(place, slow) as hosts:
        here, _ = await hosts.running()
        hosts.config = attrs.evolve(slow, exact_memory=exact)
        await hosts.restart_sender()
        with (place / "suspend-image").open("wb") as file:
            suspension = await hosts.sender.suspend(here.domain_id, file.fileno())
            assert await hosts.sender.state(here.domain_id) is state
            await suspension.cancel()
        await hosts.sender.resume(here.domain_id)
        await hosts.ticks(here)


@ensureDeferred
async def test_states_on_the_way(place):
    async with Hosts(place) as hosts:
        here, _ = await hosts.running()
        there = hosts.there(here)
        near, far = socket.socketpair()
        with near, far:
            restoration = await hosts.receiver.restore(there, far.fileno())
            await restoration.accepting()
            assert await hosts.receiver.state(there.domain_id) is DomainState.INCOMING
            with pytest.raises(DomainError, match="it is incoming"):
                await hosts.receiver.unpause(there.domain_id)
            suspension = await hosts.sender.suspend(here.domain_id, near.fileno())
            with pytest.raises(DomainError, match="already"):
                await hosts.sender.suspend(here.domain_id, near.fileno())
            await suspension.suspended()
            assert await hosts.sender.state(here.domain_id) is DomainState.SUSPENDED
            assert await hosts.receiver.state(there.domain_id) is DomainState.INCOMING
            silent = hosts.console(here).counters
            await suspension.proceed()
            await suspension.finished()
            await restoration.finished()
            assert await hosts.sender.state(here.domain_id) is DomainState.SUSPENDED
            assert await hosts.receiver.state(there.domain_id) is DomainState.PAUSED
            assert hosts.console(here).counters == silent
            with pytest.raises(DomainError, match="it is suspended"):
                await hosts.sender.unpause(here.domain_id)
            assert hosts.told == []


@ensureDeferred
async def test_memory_arrives_while_the_guest_dirties_it(place):
    async with Hosts(place) as hosts:
        guest = ticker.ram(64 * MIB, megabytes_per_second=40, working_set=16 * MIB)
        here, _ = await hosts.running(guest)
        there = hosts.there(here)
        await migrate(hosts, here, there)
        await hosts.ticks(here, there, more=60)
        assert hosts.console(here, there).anomalies == []
        assert hosts.console(here, there).breaks == []


def busy(beyond):
    """A stream far too slow for what the guest dirties."""
    return QEMUConfig(
        bandwidth=16 * MIB, downtime_limits=((0, 10),), beyond=beyond,
        timeouts=DomainTimeouts(final_suspend=3, poll=0.1),
    )  # fmt: skip


BUSY_GUEST = ticker.ram(64 * MIB, megabytes_per_second=100, working_set=16 * MIB)


@ensureDeferred
async def test_a_guest_too_busy_is_stopped_at_last(place):
    async with Hosts(place, busy("stop")) as hosts:
        here, _ = await hosts.running(BUSY_GUEST)
        there = hosts.there(here)
        suspension = await migrate(hosts, here, there)
        assert suspension.measures() == "it is stopped for as long as the rest of its memory takes"
        await hosts.ticks(here, there)
        assert hosts.console(here, there).breaks == []
        assert hosts.console(here, there).anomalies == []


@ensureDeferred
async def test_a_guest_too_busy_is_left_where_it_is(place):
    async with Hosts(place, busy("fail")) as hosts:
        here, _ = await hosts.running(BUSY_GUEST)
        there = hosts.there(here)
        with pytest.raises(DomainError, match="faster than the stream"):
            await migrate(hosts, here, there)
        assert await hosts.sender.state(here.domain_id) is DomainState.RUNNING
        await hosts.ticks(here)
        assert hosts.console(here).breaks == []


@pytest.mark.parametrize("keep", [0, 400 << 10])
@ensureDeferred
async def test_a_stream_that_breaks_off_leaves_no_domain(place, keep):
    async with Hosts(place) as hosts:
        here, _ = await hosts.running()
        image = place / "suspend-image"
        with image.open("wb") as file:
            suspension = await hosts.sender.suspend(here.domain_id, file.fileno())
            await suspension.suspended()
            await suspension.proceed()
            await suspension.finished()
        os.truncate(image, keep)
        there = hosts.there(here)
        with image.open("rb") as file:
            restoration = await hosts.receiver.restore(there, file.fileno())
            with pytest.raises(DomainError, match="receiver could not take its memory in: QEMU ended"):
                await restoration.finished()
        assert await hosts.receiver.state(there.domain_id) is DomainState.ABSENT
        assert await hosts.receiver.domains() == []
        assert list((place / "receiver" / "domains").iterdir()) == []


@ensureDeferred
async def test_a_restore_is_cancelled(place):
    async with Hosts(place) as hosts:
        disk = await hosts.disk()
        for wait in (False, True):
            spec = hosts.spec(disk, host="receiver")
            near, far = socket.socketpair()
            near.settimeout(5)
            with near, far:
                restoration = await hosts.receiver.restore(spec, far.fileno())
                if wait:
                    await restoration.accepting()
                await restoration.cancel()
                await restoration.cancel()
                with pytest.raises(DomainError, match="it was cancelled"):
                    await restoration.finished()
                far.close()
                assert near.recv(1) == b""  # nobody holds the other end any more
            assert await hosts.receiver.state(spec.domain_id) is DomainState.ABSENT
