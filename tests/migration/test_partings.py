"""One side goes its own way: a client that cancels in doubt, a sender that never comes back, a receiver that is away
for long."""

from __future__ import annotations

import pytest
from twisted.internet.task import Clock

from tests.migration.findings import Finding, never
from tests.migration.test_crashes import settle
from xapi_migrate.testing.direct_peer import Fate
from xapi_migrate.testing.two_hosts import TwoHosts

BEFORE_DONE = ["HEAD", "PUT metadata", "GET disk/0", "GET disk/1", "PUT memory"]


@pytest.mark.parametrize("fate", list(Fate), ids=lambda fate: fate.name)
def test_cancelled_in_doubt(fate: Fate) -> None:
    """`done` is lost, and the DELETE that the cancel makes of it meets with `fate`."""
    world = TwoHosts(Clock())
    struck: list[str] = []

    def hook(number: int, sent: str) -> Fate:
        if sent not in ("PUT control", "DELETE") or sent in struck:
            return Fate.DELIVERED
        struck.append(sent)
        return Fate.REQUEST_LOST if sent == "PUT control" else fate

    world.wire.fate = hook
    task = world.migrate(world.source.new_vm())
    assert world.run(20, lambda: "PUT control" in struck)
    task.cancel()
    settle(world, task)
    assert "DELETE" in struck


@pytest.mark.parametrize("message", BEFORE_DONE)
def test_a_sender_that_never_comes_back(message: str) -> None:
    """The receiver hears nothing, gives up and cleans up by itself; the guest goes on where it runs."""
    world = TwoHosts(Clock())

    def hook(number: int, sent: str) -> Fate:
        if sent == message and world.source.up:
            world.source.crash()
        return Fate.DELIVERED

    world.wire.fate = hook
    world.migrate(world.source.new_vm())
    world.run(300, step=0.05)
    assert not world.source.up
    never(world.most_running > 1, Finding.TWO)
    never(not world.source.running(), Finding.NONE)
    never(world.destination.left_behind(), Finding.LEFT, world.destination.left_behind())


@pytest.mark.parametrize("message", [*BEFORE_DONE, "PUT control", "DELETE"])
def test_a_receiver_that_is_away_for_longer_than_the_heartbeat(message: str) -> None:
    """It is down when the message comes, and comes back long after the sender has given it up."""
    world = TwoHosts(Clock())
    struck: list[str] = []

    def hook(number: int, sent: str) -> Fate:
        if sent == message and not struck:
            struck.append(sent)
            world.destination.crash()
            world.clock.callLater(200, world.destination.start)
        return Fate.DELIVERED

    world.wire.fate = hook
    task = world.migrate(world.source.new_vm())
    world.run(20, lambda: bool(struck))
    assert struck
    world.run(200, step=0.05)
    settle(world, task)
