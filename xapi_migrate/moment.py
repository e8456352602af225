"""Something that happens once and that any number of callers wait for."""

from __future__ import annotations

from typing import Generic, TypeVar

from twisted.internet import defer
from twisted.python.failure import Failure

T = TypeVar("T")


class Moment(Generic[T]):
    """It happens with a value, or fails; waiters that come later are told at once. Only the first end counts. A
    failure that nobody waits for is no dropped error: whoever holds the moment decides whether it matters."""

    def __init__(self) -> None:
        self._waiting: list[defer.Deferred[T]] = []
        self._value: T | None = None
        self._failure: BaseException | None = None
        self.happened = False

    @property
    def failed(self) -> bool:
        return self._failure is not None

    def wait(self) -> defer.Deferred[T]:
        """Cancelling one waiter does not disturb the others."""
        done: defer.Deferred[T] = defer.Deferred(self._forget)
        self._waiting.append(done)
        if self.happened:
            self._tell()
        return done

    def happen(self, value: T) -> None:
        if not self.happened:
            self.happened, self._value = True, value
            self._tell()

    def fail(self, failure: BaseException) -> None:
        if not self.happened:
            self.happened, self._failure = True, failure
            self._tell()

    def _forget(self, done: defer.Deferred[T]) -> None:
        if done in self._waiting:
            self._waiting.remove(done)

    def _tell(self) -> None:
        waiting, self._waiting = self._waiting, []
        for done in waiting:
            if self._failure is not None:
                done.errback(Failure(self._failure))
            else:
                done.callback(self._value)  # type: ignore[arg-type]
