"""Daemons of the simulation that are restarted, and what is seen then."""

from __future__ import annotations

from collections.abc import Callable

from tests.migration.findings import Finding, never
from tests.migration.test_crashes import settle
from xapi_migrate.testing.direct_peer import Fate
from xapi_migrate.testing.two_hosts import SimHost, SimTask, TwoHosts


def restart(host: SimHost, down: float = 1.0) -> None:
    host.crash()
    host.clock.callLater(down, host.start)


def never_two(world: TwoHosts) -> None:
    assert world.most_running == 1, "two copies ran at once"


def lost(*messages: str) -> Callable[[int, str], Fate]:
    return lambda number, sent: Fate.REQUEST_LOST if sent in messages else Fate.DELIVERED


def at_step(world: TwoHosts, step: str, strike: Callable[[], object]) -> SimTask:
    """A migration that is struck when the sender comes to this step."""
    struck: list[str] = []

    def look(told: str) -> None:
        if told.startswith(step) and not struck:
            struck.append(told)
            world.clock.callLater(0, strike)

    world.source.tasks.begun = lambda task: setattr(task, "at_step", look)
    task = world.migrate(world.source.new_vm())
    assert world.run(30, lambda: bool(struck))
    return task


def has_moved(world: TwoHosts, task: SimTask) -> None:
    settle(world, task)
    never(task.status != "success", Finding.STAYED, task.value)
