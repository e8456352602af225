"""The links between the hosts fail one at a time: storage's, the one of the first URI, the one of the messages while
nothing else goes on. What only the heartbeat sees."""

from __future__ import annotations

import pytest
from twisted.internet.task import Clock

from tests.migration.findings import Finding, never
from tests.migration.restarting import at_step, has_moved, restart
from tests.migration.test_crashes import over, settle
from xapi_migrate.testing.direct_peer import address_of
from xapi_migrate.testing.two_hosts import SimTask, TwoHosts

STEPS = ["3.1", "3.6", "3.7", "4.1", "4.3", "4.4"]
LONG = 25.0
"""Seconds: more than twice what a heartbeat may be lost for."""


def copying(world: TwoHosts) -> SimTask:
    """A migration whose copies stand still, because there is so much to copy."""
    world.source.srs[world.source.sr].stalled = True
    task = world.migrate(world.source.new_vm())
    assert world.run(20, lambda: "GET disk/1" in world.wire.messages)
    world.run(1)
    return task


def go_on(world: TwoHosts) -> None:
    world.source.srs[world.source.sr].stalled = False


@pytest.mark.parametrize("step", STEPS)
def test_the_storage_network_is_away(step: str) -> None:
    world = TwoHosts(Clock())

    def strike() -> None:
        world.luns.unreachable = ""
        world.clock.callLater(3, setattr, world.luns, "unreachable", None)

    settle(world, at_step(world, step, strike))


def test_a_receiver_comes_back_without_its_targets_and_copies_do_not_tell() -> None:
    world = TwoHosts(Clock())
    task = copying(world)
    restart(world.destination)
    for lun in world.luns.luns.values():
        lun.open = False
    world.run(LONG, step=0.05)
    never(not over(task), Finding.ENDLESS)
    settle(world, task)


def test_a_copy_takes_longer_than_a_heartbeat_may_be_lost() -> None:
    world = TwoHosts(Clock())
    task = copying(world)
    world.run(LONG, step=0.05)
    go_on(world)
    has_moved(world, task)


def test_the_receiver_is_gone_for_good_while_disks_are_copied() -> None:
    """Storage does not tell: the copies only stand still."""
    world = TwoHosts(Clock())
    task = copying(world)
    world.destination.crash()
    world.run(LONG, step=0.05)
    never(not over(task), Finding.ENDLESS)
    never(not world.source.running(), Finding.NONE)
    left = [item for item in world.source.srs[world.source.sr].left_behind if "copy" in item]
    never(left, Finding.LEFT, left)


@pytest.mark.parametrize("storage", [False, True], ids=["messages", "messages and storage"])
def test_the_first_uri_is_cut(storage: bool) -> None:
    """The receiver's daemon and its targets are reached by another one."""
    world = TwoHosts(Clock(), ways=2)
    task = copying(world)
    world.wire.cut_ways = {0}
    if storage:
        world.luns.unreachable = address_of(0)
        go_on(world)
    world.run(LONG, step=0.05)
    go_on(world)
    has_moved(world, task)
