"""Something that happens once and that several may wait for."""

from __future__ import annotations

from typing import Generic, TypeVar

from twisted.internet import defer
from twisted.python.failure import Failure

T = TypeVar("T")


class Outcome(Generic[T]):
    """Succeeds or fails once; later calls are ignored. A failure that nobody waits for is no dropped error: whoever
    holds the outcome decides whether it matters."""

    def __init__(self) -> None:
        self._waiting: list[defer.Deferred[T]] = []
        self._result: list[T | Failure] = []

    @property
    def done(self) -> bool:
        return bool(self._result)

    @property
    def failed(self) -> bool:
        return bool(self._result) and isinstance(self._result[0], Failure)

    def wait(self) -> defer.Deferred[T]:
        """A Deferred of its own for each call; cancelling it disturbs nobody else."""
        if self._result:
            result = self._result[0]
            return defer.fail(result) if isinstance(result, Failure) else defer.succeed(result)
        waiting: defer.Deferred[T] = defer.Deferred(self._waiting.remove)
        self._waiting.append(waiting)
        return waiting

    def succeed(self, value: T) -> None:
        self._settle(value)

    def fail(self, error: BaseException) -> None:
        self._settle(Failure(error))

    def _settle(self, result: T | Failure) -> None:
        if self._result:
            return
        self._result.append(result)
        waiting, self._waiting = self._waiting, []
        for each in waiting:
            # a copy each: a Failure is emptied by the first that handles it
            each.errback(Failure(result.value)) if isinstance(result, Failure) else each.callback(result)
