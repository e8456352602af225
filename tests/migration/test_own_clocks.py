"""One host's clock alone leaps, or the host stands still while the other goes on, as a virtual host does that is
suspended. Its migrations may fail of that, but by the rule."""

from __future__ import annotations

import pytest
from twisted.internet.task import Clock

from tests.migration.restarting import at_step
from tests.migration.test_crashes import host_of, settle
from xapi_migrate.testing.two_hosts import TIMES, TwoHosts

STEPS = ["1.5", "2.1", "3.6", "4.1", "4.3", "4.5", "5.1", "5.3"]
SHORT, LONG = TIMES.heartbeat_lost - 2, TIMES.heartbeat_lost + 5


@pytest.mark.parametrize("seconds", [SHORT, LONG, TIMES.offer + 1])
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("side", ["source", "destination"])
def test_a_clock_leaps(side: str, step: str, seconds: float) -> None:
    world = TwoHosts(Clock(), own_clocks=True)
    settle(world, at_step(world, step, lambda: host_of(world, side).clock.advance(seconds)))


@pytest.mark.parametrize("seconds", [SHORT, LONG])
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("side", ["source", "destination"])
def test_a_host_stands_still(side: str, step: str, seconds: float) -> None:
    world = TwoHosts(Clock(), own_clocks=True)

    def strike() -> None:
        world.stopped.append(host_of(world, side).clock)
        world.clock.callLater(seconds, world.stopped.clear)

    settle(world, at_step(world, step, strike))
