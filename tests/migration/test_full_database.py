"""A database that takes nothing for a while, as where the disk of a daemon's state is full: nothing is lost, no guest
waits for room before the decision, and all is settled when there is room again."""

from __future__ import annotations

import pytest
from twisted.internet import defer
from twisted.internet.task import Clock

from tests.migration.test_crashes import host_of, over, settle
from xapi_migrate.testing.direct_peer import Fate
from xapi_migrate.testing.two_hosts import SimHost, TwoHosts, Unwritten


class Full(Unwritten):
    """Takes nothing until there is `room`."""

    def __init__(self) -> None:
        self.room = True
        self._waiting: list[defer.Deferred[None]] = []

    def flush(self) -> defer.Deferred[None]:
        if self.room:
            return defer.succeed(None)
        waiting: defer.Deferred[None] = defer.Deferred(self._waiting.remove)
        self._waiting.append(waiting)
        return waiting

    def make_room(self) -> None:
        self.room = True
        waiting, self._waiting = self._waiting, []
        for one in waiting:
            one.callback(None)


def database_of(host: SimHost) -> Full:
    host.records._database = full = Full()  # type: ignore[assignment]
    return full


@pytest.mark.parametrize("message", ["PUT metadata", "GET disk/0", "PUT memory", "PUT control"])
@pytest.mark.parametrize("side", ["source", "destination"])
def test_the_guest_does_not_wait_for_room(side: str, message: str) -> None:
    """From this message on."""
    world = TwoHosts(Clock())
    full = database_of(host_of(world, side))

    def hook(number: int, sent: str) -> Fate:
        if sent == message:
            full.room = False
        return Fate.DELIVERED

    world.wire.fate = hook
    task = world.migrate(world.source.new_vm())
    assert world.run(20, lambda: not full.room)
    world.run(40, lambda: over(task), 0.02)
    world.run(5)
    assert len(world.source.running()) + len(world.destination.running()) == 1, "it waits for room"
    if side == "source":
        assert world.destination.running(), "the sender's database is no matter of the decision"
    else:
        assert task.status == "failure"
    if side == "destination" and message == "PUT control":
        assert "The database of host destination took nothing for 10 s" in str(task.value)
    full.make_room()
    settle(world, task)
