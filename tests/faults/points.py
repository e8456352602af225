"""Where a migration can be struck: every state of both machines, every entry of both journals, every step.

They are in the order in which a migration passes them, so that it can be said which parts of it are there at each.
"""

from __future__ import annotations

import attrs

from xapi_migrate.migration.journal import Mark
from xapi_migrate.migration.machine_state import transitions
from xapi_migrate.migration.receiver import build_receiver
from xapi_migrate.migration.sender import build_sender
from xapi_migrate.steps import Step


@attrs.frozen
class Point:
    """`way`: what becomes of the migration: moved; cancelled in its bulk copy; withdrawn: its `done` does not arrive,
    and it is cancelled then."""

    role: str
    name: str
    way: str = "moved"

    @property
    def words(self) -> str:
        return f"{self.role} {self.name}"

    def __str__(self) -> str:
        return f"{self.role}-{self.name}{'' if self.way == 'moved' else '-' + self.way}"


def _points(way: str, *words: str) -> list[Point]:
    return [Point(role, name, way) for role, name in (one.split() for one in words)]


MOVED = _points(
    "moved",
    "sender 1.4", "sender before-begun", "sender after-begun", "sender 1.5", "sender Connecting", "sender 2.1",
    "sender Preparing", "receiver 2.1", "receiver Preparing", "receiver before-begun", "receiver after-begun",
    "receiver before-prepared", "receiver after-prepared", "receiver AwaitingMemory", "sender 2.2", "receiver 2.2",
    "receiver before-offered", "receiver after-offered", "receiver 2.3", "sender 2.3", "sender 2.4", "receiver 2.4",
    "receiver 2.5", "sender 2.5", "sender 3.1", "sender 3.2", "sender CopyingDisks", "sender 3.3", "sender 3.4",
    "sender 3.5", "sender 3.6", "sender 3.7", "sender SendingMemory", "sender before-memory", "sender after-memory",
    "sender 4.1", "receiver before-memory", "receiver ReceivingMemory", "receiver after-memory", "receiver 4.1",
    "receiver 4.2", "sender 4.3", "sender 4.4", "sender Releasing", "receiver AwaitingDone", "sender 4.5",
    "sender before-done", "sender WritingDone", "sender after-done", "sender 5.1", "sender SayingDone",
    "receiver Activating", "receiver before-committed", "receiver WritingCommit", "receiver after-committed",
    "receiver 5.2", "receiver Completing", "receiver before-ended", "receiver Committed", "receiver after-ended",
    "sender before-committed", "sender after-committed", "sender 5.3", "sender CleaningUp", "sender 5.4",
    "sender before-ended", "sender after-ended", "sender Completed", "receiver Gone",
)  # fmt: skip
"""In the order in which they are passed."""

CANCELLED = _points(
    "cancelled", "sender before-undone", "sender after-undone", "receiver before-undone", "receiver after-undone"
)

WITHDRAWN = _points(
    "withdrawn",
    "sender InDoubt", "sender Withdrawing", "receiver Shutting", "receiver before-aborted", "receiver WritingAbort",
    "receiver after-aborted", "receiver CleaningUp", "receiver Aborted", "sender before-aborted",
    "sender after-aborted", "sender RollingBack", "sender before-ended", "sender after-ended", "sender Failed",
)  # fmt: skip

EVERY = [*MOVED, *CANCELLED, *WITHDRAWN]

NOT_STRUCK = {
    "sender Idle": "nothing has begun",
    "receiver Offered": "nothing is there, and nothing was promised",
    "receiver Undecided": "room for the decision is reserved, so that only a journal that fails leads there: "
    "tests/migration/test_two_hosts.py::test_a_receiver_that_cannot_write_its_decision_decides_nothing, and "
    "tests/migration/test_journal.py::test_a_disk_that_is_full_at_the_moment_of_decision_takes_the_decision",
}
"""What of the machines' tables is not in the matrix, and why. A test looks whether the tests that are named exist."""


@attrs.frozen
class Span:
    """From one point of a move to another, both of them included; `undone`: and these points on the other ways; `but`:
    not at these, where it may be gone."""

    first: str = "sender 1.4"
    last: str = "receiver Gone"
    undone: tuple[str, ...] = ()
    but: tuple[str, ...] = ()

    def holds(self, point: Point) -> bool:
        if point.words in self.but:
            return False
        if point.way != "moved":
            return point.words in self.undone
        words = [one.words for one in MOVED]
        return words.index(self.first) <= words.index(point.words) <= words.index(self.last)


ALWAYS = Span(undone=tuple(point.words for point in [*CANCELLED, *WITHDRAWN]))


def expected() -> set[tuple[str, str]]:
    """(role, name) of all that the code says there is: states, journal entries of a move and its end, steps."""
    found = {(role, state) for role, build in (("sender", build_sender), ("receiver", build_receiver))
             for row in transitions(build) for state in (row[0], row[2])}  # fmt: skip
    found |= {(role, f"{when}-{mark.value}") for role, marks in MARKS.items() for mark in marks
              for when in ("before", "after")}  # fmt: skip
    return found


MARKS = {
    "sender": [mark for mark in Mark if mark not in (Mark.PREPARED, Mark.OFFERED)],
    "receiver": [mark for mark in Mark if mark is not Mark.DONE],
}
"""Who writes what."""

STEPS = [step for step in Step if step.id not in ("1.1", "1.2", "1.3")]
"""The steps of a migration: before them there is an offer only."""
