"""Migrations of one host that wait for each other: so many at once, first come first served."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet import defer

from ..moment import Moment


class Turn:
    """One migration's place in a queue. `told` is called with `behind` each time that this changes."""

    def __init__(self, queue: Queue, told: Callable[[int], None]) -> None:
        self._queue = queue
        self._came: Moment[None] = Moment()
        self.told = told
        self.behind = 0
        """How many came before and have not ended, those whose turn it is among them; 0 from the own turn on."""

    @property
    def has_come(self) -> bool:
        return self._came.happened

    def wait(self) -> defer.Deferred[None]:
        """Fires when the turn comes. Who stops waiting says `end`."""
        return self._came.wait()

    def come(self) -> None:
        self.behind = 0
        self._came.happen(None)

    def end(self) -> None:
        """The next one's turn. Leaves the queue if the own turn has not come; a second time without effect."""
        self._queue.leave(self)


class Queue:
    """`at_once` migrations have their turn; 0: all that come."""

    def __init__(self, at_once: int) -> None:
        self._at_once = at_once
        self._line: list[Turn] = []
        """All that have not ended, in the order in which they came; the first `at_once` have their turn."""

    def join(self, told: Callable[[int], None] = lambda behind: None) -> Turn:
        """A place at the end. The turn may have come when this returns."""
        turn = Turn(self, told)
        self._line.append(turn)
        self._go_on()
        return turn

    def leave(self, turn: Turn) -> None:
        if turn in self._line:
            self._line.remove(turn)
            self._go_on()

    def _go_on(self) -> None:
        # Those that are told may join or leave meanwhile: each is looked at as the line is then.
        for turn in list(self._line):
            if turn.has_come or turn not in self._line:
                continue
            place = self._line.index(turn)
            if not self._at_once or place < self._at_once:
                turn.come()
            elif place != turn.behind:
                turn.behind = place
                turn.told(place)
