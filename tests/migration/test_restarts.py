"""What must hold over restarts, refusals and second attempts: nothing that has ended is done again, nothing that has
not is forgotten, and a domain goes on only with its disks."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from twisted.internet.task import Clock

from xapi_migrate.migration.journal import Mark
from xapi_migrate.testing.direct_peer import Fate
from xapi_migrate.testing.memory_journals import MemoryJournal
from xapi_migrate.testing.two_hosts import SimHost, SimTask, TwoHosts


@pytest.fixture
def world() -> TwoHosts:
    return TwoHosts(Clock())


def over(task: SimTask) -> bool:
    return task.status != "pending"


def restart(host: SimHost, down: float = 1.0) -> None:
    host.crash()
    host.clock.callLater(down, host.start)


def never_two(world: TwoHosts) -> None:
    assert world.most_running == 1, "two copies ran at once"


def lost(*messages: str) -> Callable[[int, str], Fate]:
    return lambda number, sent: Fate.REQUEST_LOST if sent in messages else Fate.DELIVERED


# -- DONE in the journal binds, said or not -------------------------------------------------------


@pytest.mark.parametrize("broken", [False, True], ids=["cancelled", "unwritable"])
def test_done_that_was_written_but_not_said_binds(world: TwoHosts, broken: bool) -> None:
    """It is in the journal, so a restarted daemon would say it: the domain may not have been resumed before."""
    journals = world.source.journals
    struck: list[Mark] = []

    def hook(journal: MemoryJournal, mark: Mark) -> None:
        if mark is Mark.DONE and not struck:
            struck.append(mark)
            world.wire.fate = lost("DELETE", "GET control", "HEAD")
            if not broken:
                assert task.cancel()
            else:
                journals.broken_after.add(mark)
            world.clock.callLater(2, restart, world.source)
            world.clock.callLater(2.5, setattr, world.wire, "fate", lambda number, sent: Fate.DELIVERED)

    journals.after = hook
    task = world.migrate(world.source.new_vm())
    assert world.run(60, lambda: bool(struck) and over(task))
    assert struck
    world.run(20)
    never_two(world)
    assert len(world.source.running()) + len(world.destination.running()) == 1


def test_a_cancel_that_the_receiver_grants_is_told_as_a_cancel(world: TwoHosts) -> None:
    world.wire.fate = lost("PUT control", "GET control")
    task = world.migrate(world.source.new_vm())
    assert world.run(30, lambda: "GET control" in world.wire.messages)
    assert task.cancel()
    assert world.run(30, lambda: over(task))
    assert task.status == "cancelled"
