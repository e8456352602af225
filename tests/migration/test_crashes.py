"""The rule, by enumeration: a crash of either daemon before and after every journal write and around every message, and
every fate of every message. Never two running copies; when all is well again exactly one, and nothing left behind."""

from __future__ import annotations

import random

import pytest
from twisted.internet.task import Clock

from tests.faults.points import MARKS
from tests.migration.findings import Finding, never
from xapi_migrate.migration.journal import Mark
from xapi_migrate.testing.direct_peer import Fate
from xapi_migrate.testing.memory_journals import Crash, MemoryJournal
from xapi_migrate.testing.two_hosts import SimHost, SimTask, TwoHosts

DOWN = 4.0
MESSAGES = ["HEAD", "PUT metadata", "GET disk/0", "GET disk/1", "PUT memory", "PUT control", "DELETE"]
FATES = [fate for fate in Fate if fate is not Fate.DELIVERED]
ROLES = {"source": "sender", "destination": "receiver"}
WRITES = [
    ("source", Mark.BEGUN),
    ("source", Mark.MEMORY),
    ("source", Mark.DONE),
    ("source", Mark.COMMITTED),
    ("source", Mark.ENDED),
    ("destination", Mark.BEGUN),
    ("destination", Mark.PREPARED),
    ("destination", Mark.OFFERED),
    ("destination", Mark.MEMORY),
    ("destination", Mark.COMMITTED),
    ("destination", Mark.ENDED),
]
UNDOING = [("source", Mark.UNDONE), ("destination", Mark.UNDONE), ("destination", Mark.ABORTED)]
"""What is written when a migration is cancelled in its bulk copy."""
WITHDRAWING = [("source", Mark.ABORTED)]
"""What is written when one is cancelled whose `done` did not arrive."""
ALL_WRITES = [*WRITES, *UNDOING, *WITHDRAWING]


def over(task: SimTask) -> bool:
    return task.status != "pending"


def host_of(world: TwoHosts, side: str) -> SimHost:
    return world.source if side == "source" else world.destination


def settle(world: TwoHosts, task: SimTask) -> None:
    """Let everything heal, then look: one copy, its disks as it wrote them, the other host empty, no journal. Found."""
    hosts = (world.source, world.destination)
    world.run(90, lambda: over(task) and not any(host.journals.all for host in hosts), 0.02)
    world.run(30, step=0.05)
    running = [host for host in hosts for _ in host.running()]
    never(world.most_running > 1 or len(running) > 1, Finding.TWO)
    never(not running, Finding.NONE)
    never(world.open_twice, Finding.OPEN_TWICE)
    [here] = running
    [there] = [host for host in hosts if host is not here]
    printed = [number for host in hosts for console in host.hypervisor.consoles.values() for number in console]
    never(len(printed) > len(set(printed)), Finding.BACK)
    never(len(printed) <= max(printed) - min(printed), Finding.GAP)
    for host in hosts:
        never(host.lost, Finding.LOST, host.lost)
    told_as_it_is(world, task)
    left = there.left_behind() + [item for item in here.srs[here.sr].left_behind if "copy" in item]
    left += [f"journal of the {role}" for host in hosts for role, _ in host.journals.all]
    never(left, Finding.LEFT, left)


def told_as_it_is(world: TwoHosts, task: SimTask) -> None:
    """The client is told that the VM moved if, and only if, it runs at the receiver. Found."""
    never(not over(task), Finding.ENDLESS)
    moved = bool(world.destination.running())
    never((task.status == "success") != moved, Finding.TOLD_WRONG, f"{task.status} ({task.value}), moved: {moved}")


def crash(world: TwoHosts, side: str) -> None:
    host = host_of(world, side)
    if host.up:
        host.crash()
        world.clock.callLater(DOWN, host.start)


def crash_at(world: TwoHosts, side: str, mark: Mark, when: str, victims: str = "the writer") -> list[Mark]:
    """Crash `the writer`, `the other` daemon or `both` once, `before` or `after` that side writes `mark`; what is
    returned is not empty from then on."""
    crashed: list[Mark] = []

    def hook(journal: MemoryJournal, written: Mark) -> None:
        if written is mark and not crashed:
            crashed.append(written)
            for other in ROLES:
                if victims == "both" or (other == side) is (victims == "the writer"):
                    crash(world, other)
            if victims != "the other":
                raise Crash

    setattr(host_of(world, side).journals, when, hook)
    return crashed


def begin_for(world: TwoHosts, side: str, mark: Mark) -> SimTask:
    """A migration on which `side` will write `mark`."""
    task = world.migrate(world.source.new_vm())
    if (side, mark) in UNDOING:
        task.at_step = lambda step: world.clock.callLater(0, task.cancel) and None if step.startswith("3.6") else None
    if (side, mark) in WITHDRAWING:
        lost: list[str] = []

        def hook(number: int, sent: str) -> Fate:
            if sent != "PUT control" or lost:
                return Fate.DELIVERED
            lost.append(sent)
            world.clock.callLater(0.1, task.cancel)
            return Fate.REQUEST_LOST

        world.wire.fate = hook
    return task


def test_every_journal_write_is_struck() -> None:
    """Who may write what is in points.py, which a test compares with the journal's marks."""
    assert sorted((ROLES[side], mark.value) for side, mark in ALL_WRITES) == sorted(
        (role, mark.value) for role, marks in MARKS.items() for mark in marks
    )


@pytest.mark.parametrize("victims", ["the writer", "the other", "both"])
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(("side", "mark"), ALL_WRITES, ids=lambda value: getattr(value, "value", value))
def test_a_crash_at_a_journal_write(side: str, mark: Mark, when: str, victims: str) -> None:
    world = TwoHosts(Clock())
    crashed = crash_at(world, side, mark, when, victims)
    task = begin_for(world, side, mark)
    world.run(20, lambda: bool(crashed))
    assert crashed, "that write never came"
    if mark is Mark.BEGUN and side == "source" and when == "before" and victims != "the other":
        task.status = "failure"  # nothing was promised and the client's call ended with the daemon
    settle(world, task)


@pytest.mark.parametrize("delay", [0.0, 0.0005, 0.0015, 0.0025])
@pytest.mark.parametrize("message", MESSAGES)
@pytest.mark.parametrize("side", ["source", "destination"])
def test_a_crash_around_a_message(side: str, message: str, delay: float) -> None:
    world = TwoHosts(Clock())
    crashed: list[str] = []

    def hook(number: int, sent: str) -> Fate:
        if sent == message and not crashed:
            crashed.append(sent)
            world.clock.callLater(delay, crash, world, side)
        return Fate.DELIVERED

    world.wire.fate = hook
    task = world.migrate(world.source.new_vm())
    world.run(20, lambda: bool(crashed))
    assert crashed
    world.run(0.01, step=0.0005)
    settle(world, task)


QUIET = [
    "HEAD", "PUT metadata", "GET disk/0", "GET disk/1", "HEAD", "PUT memory", "PUT control", "DELETE",
]  # fmt: skip
"""The messages of a migration that nothing disturbs."""


def test_a_quiet_migration() -> None:
    world = TwoHosts(Clock())
    task = world.migrate(world.source.new_vm())
    settle(world, task)
    never(task.status != "success", Finding.STAYED, task.value)
    never(world.wire.messages != QUIET, Finding.DETOUR, world.wire.messages)


@pytest.mark.parametrize("fate", FATES, ids=lambda fate: fate.name)
@pytest.mark.parametrize("number", range(len(QUIET)), ids=lambda number: f"{number} {QUIET[number]}")
def test_the_fate_of_each_message(number: int, fate: Fate) -> None:
    world = TwoHosts(Clock())
    world.wire.fate = lambda sent, message: fate if sent == number else Fate.DELIVERED
    settle(world, world.migrate(world.source.new_vm()))
    assert len(world.wire.messages) > number


@pytest.mark.parametrize("fate", FATES, ids=lambda fate: fate.name)
@pytest.mark.parametrize("message", ["GET control"])
def test_the_fate_of_a_question(message: str, fate: Fate) -> None:
    """That is asked only when `done` is unanswered."""
    world = TwoHosts(Clock())
    struck: list[str] = []

    def hook(number: int, sent: str) -> Fate:
        if sent not in ("PUT control", message) or sent in struck:
            return Fate.DELIVERED
        struck.append(sent)
        return Fate.REQUEST_LOST if sent == "PUT control" else fate

    world.wire.fate = hook
    task = world.migrate(world.source.new_vm())
    world.run(40, lambda: message in struck, 0.01)
    assert message in struck
    settle(world, task)


@pytest.mark.parametrize("fate", [Fate.REQUEST_LOST, Fate.ANSWER_LOST], ids=lambda fate: fate.name)
@pytest.mark.parametrize("side", ["source", "destination"])
def test_done_is_lost_and_then_a_daemon_crashes(side: str, fate: Fate) -> None:
    world = TwoHosts(Clock())
    struck: list[str] = []

    def hook(number: int, sent: str) -> Fate:
        if sent == "PUT control" and not struck:
            struck.append(sent)
            world.clock.callLater(1.0, crash, world, side)
            return fate
        return Fate.DELIVERED

    world.wire.fate = hook
    task = world.migrate(world.source.new_vm())
    world.run(20, lambda: bool(struck))
    assert struck
    settle(world, task)


STRIKES = ["cancel the sender", "cancel the receiver", "crash source", "crash destination"]


def strike(world: TwoHosts, what: str, task: SimTask) -> None:
    if what == "cancel the sender":
        task.cancel()
    elif what == "cancel the receiver":
        for receiving in world.destination.tasks.all:
            receiving.cancel()
    else:
        crash(world, what.removeprefix("crash "))


@pytest.mark.parametrize("seed", range(24))
def test_two_blows_at_any_moment_on_a_bad_wire(seed: int) -> None:
    chance = random.Random(seed)
    world = TwoHosts(Clock())
    fates = [Fate.DELIVERED] * 10 + list(Fate)
    world.wire.fate = lambda number, sent: chance.choice(fates) if world.clock.seconds() < 30 else Fate.DELIVERED
    task = world.migrate(world.source.new_vm())
    first = chance.uniform(0, 0.9)
    for what, moment in zip(chance.sample(STRIKES, 2), (first, first + chance.uniform(0, 0.5)), strict=True):
        world.clock.callLater(moment, strike, world, what, task)
    world.run(1.5, step=0.0005)
    settle(world, task)
