"""Real guests move between two drivers: nothing is lost, whatever happens on the way."""

from __future__ import annotations

import socket

import pytest
from pytest_twisted import ensureDeferred

from tests.domains.hosts import Hosts, tcp_pair
from xapi_migrate.domains.interfaces import DomainState

pytestmark = pytest.mark.system


@pytest.mark.parametrize("pair", [socket.socketpair, tcp_pair])
@ensureDeferred
async def test_live_migration_loses_no_tick(pair):
    async with Hosts() as hosts:
        disk = await hosts.disk()
        here = hosts.spec(disk)
        there = hosts.there(here)
        await hosts.sender.start(here)
        await hosts.ticks(here, more=30)
        near, far = pair()
        restoration = await hosts.receiver.restore(there, far.fileno())
        await restoration.accepting()
        suspension = await hosts.sender.suspend(here.domain_id, near.fileno())
        await suspension.suspended()
        await suspension.proceed()
        await suspension.finished()
        await restoration.finished()
        assert await hosts.sender.state(here.domain_id) is DomainState.SUSPENDED
        assert await hosts.receiver.state(there.domain_id) is DomainState.PAUSED
        await hosts.receiver.unpause(there.domain_id)
        await hosts.sender.destroy(here.domain_id)
        await hosts.ticks(here, there, more=30)
        near.close()
        far.close()
        console = hosts.console(here, there)
        assert console.breaks == []
        assert console.anomalies == []
        sent, total = suspension.progress()
        assert 0 < sent == total
