"""A receiver that waits its turn on this host; nothing is checked or made before it has come."""

from __future__ import annotations

from twisted.internet import defer

from ..together import started, unless
from .incoming import Incoming
from .queue import Queue, Turn
from .receiver_task import ReceiverTask

HOLD = 4
"""A PUT metadata that waits its turn is answered after so many times `poll`."""


class ReceiverTurn:
    """The place of one migration in the receiver's queue: taken with the first PUT metadata (2.1)."""

    def __init__(self, migration: Incoming, queue: Queue, task: ReceiverTask) -> None:
        self._migration = migration
        self._queue = queue
        self._task = task
        self._turn: Turn | None = None

    @property
    def behind(self) -> int:
        """How many migrations come before this one; 0 before it has joined, and from its turn on."""
        return self._turn.behind if self._turn else 0

    @property
    def is_waiting(self) -> bool:
        return self._turn is not None and not self._turn.has_come

    def join(self) -> Turn:
        self._turn = self._queue.join(self._told_place)
        return self._turn

    async def come(self) -> None:
        """Join, and fire when the turn has come."""
        turn = self.join()
        if not turn.has_come:
            await turn.wait()
            self._told_place(0)

    async def still_waits(self, over: defer.Deferred[None]) -> bool:
        """Whether other migrations still come before this one after a moment. Fails with what `over` fails with."""
        host = self._migration.host
        try:
            if self._turn is None or self._turn.has_come:
                return False
            turn = started(unless(self._turn.wait(), over))
            await turn.addTimeout(HOLD * host.config.times.poll, host.clock)
        except defer.TimeoutError:
            return True
        finally:
            over.addErrback(lambda _: None)
            over.cancel()
        return False

    def end(self) -> None:
        """The next one's turn."""
        if self._turn is not None:
            self._turn.end()

    def _told_place(self, behind: int) -> None:
        if behind:
            self._migration.story.note(f"waits behind {behind} other migrations to this host")
        self._task.tell_place(behind)
