"""The work of a machine's state: one piece at a time, told to the machine when it ends."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from twisted.internet import defer, task
from twisted.logger import Logger
from twisted.python.failure import Failure

from ..errors import MigrateError
from ..together import started

log = Logger()


def exception_of(failure: Failure) -> Exception:
    """What went wrong, for the machine."""
    return failure.value if isinstance(failure.value, Exception) else RuntimeError(str(failure))


class OneWork:
    """Beginning one work stops the one before; what was stopped is never told."""

    def __init__(self, clock: Any, migration: str) -> None:
        self._clock = clock
        self._migration = migration
        self._current: defer.Deferred[None] | None = None

    def do(self, work: Awaitable[None], then: Callable[[], None], otherwise: Callable[[Exception], None]) -> None:
        """Begin `work`; `then` when it has ended well, `otherwise` with what went wrong."""
        self.stop()
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
