"""The work of a machine's state: one piece at a time, told to the machine when it ends."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from twisted.internet import defer, task
from twisted.logger import Logger
from twisted.python.failure import Failure

from ..errors import MigrateError
from ..together import started

log = Logger()
T = TypeVar("T")


def exception_of(failure: Failure) -> Exception:
    """What went wrong, for the machine."""
    return failure.value if isinstance(failure.value, Exception) else RuntimeError(str(failure))


class OneWork:
    """Beginning one work stops the one before; what was stopped is never told."""

    def __init__(self, clock: Any, migration: str) -> None:
        self._clock = clock
        self._migration = migration
        self._current: defer.Deferred[None] | None = None
        self._left = False

    def do(self, work: Awaitable[None], then: Callable[[], None], otherwise: Callable[[Exception], None]) -> None:
        """Begin `work`; `then` when it has ended well, `otherwise` with what went wrong."""
        self.stop()
        if self._left:
            if isinstance(work, Coroutine):
                work.close()
            return
        self._current = running = started(work)

        def ended(_: None) -> None:
            if self._current is running:
                self._current = None
                then()

        def turn(result: object) -> defer.Deferred[object]:
            # The machine moves in a turn of its own: this may be told from within work that it will stop.
            return task.deferLater(self._clock, 0, lambda: result)

        def failed(failure: Failure) -> None:
            if self._current is running:
                self._current = None
                if not isinstance(failure.value, MigrateError):
                    log.failure("unexpected in migration {id}", failure, id=self._migration)
                otherwise(exception_of(failure))

        running.addBoth(turn)
        running.addCallbacks(ended, failed)
        running.addErrback(lambda failure: log.failure("migration {id}", failure, id=self._migration))

    def stop(self) -> None:
        """Cancel the work that is under way."""
        current, self._current = self._current, None
        if current is not None:
            current.cancel()

    def leave(self) -> None:
        """Cancel it, and begin none any more: the daemon ends, and what a work would need is closed after this. A
        message that still comes moves the machine, but is answered by the next daemon."""
        self._left = True
        self.stop()

    async def answer(self, asked: Coroutine[Any, Any, T]) -> T:
        """What is done for a message outside of the machine. Once this has been left there is no answer: the connection
        breaks with the daemon, and the next one is asked again."""
        try:
            if not self._left:
                return await asked
            asked.close()
        except Exception:
            if not self._left:
                raise
        never: defer.Deferred[T] = defer.Deferred()
        return await never
