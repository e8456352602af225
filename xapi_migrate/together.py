"""Waiting: for several things at once, for a connection."""

from __future__ import annotations

from collections.abc import Awaitable, Coroutine
from typing import Any, TypeVar

from twisted.internet import defer
from twisted.internet.error import ConnectingCancelledError
from twisted.python.failure import Failure

T = TypeVar("T")


def started(work: Awaitable[T]) -> defer.Deferred[T]:
    """A Deferred for something awaitable, which begins now."""
    if isinstance(work, defer.Deferred):
        return work
    if isinstance(work, Coroutine):
        return defer.Deferred.fromCoroutine(work)

    async def wait() -> T:
        return await work

    return defer.Deferred.fromCoroutine(wait())


async def together(*works: Awaitable[T]) -> list[T]:
    """Run all side by side and wait for every one to end; their values in order, or the first failure. Cancelling this
    cancels them all."""
    running = [started(work) for work in works]
    try:
        ended: list[Any] = await defer.DeferredList(running, consumeErrors=True)
    except BaseException:
        for work in running:
            work.cancel()
        raise
    for succeeded, value in ended:
        if not succeeded:
            raise _error(value)
    return [value for _, value in ended]


async def connected(connecting: Awaitable[T]) -> T:
    """The protocol that an endpoint connects. That it was cancelled an endpoint says by an error of its own; here it is
    the usual CancelledError."""
    try:
        return await connecting
    except ConnectingCancelledError:
        raise defer.CancelledError from None


async def unless(work: Awaitable[T], spoiler: defer.Deferred[Any]) -> T:
    """The value of `work`; but if `spoiler` fails before, `work` is cancelled and that failure raised. `spoiler` goes
    on, and can still be awaited."""
    main = started(work)
    result: defer.Deferred[T] = defer.Deferred(lambda _: main.cancel())

    def spoiled(failure: Failure) -> Failure:
        if not result.called:
            result.errback(Failure(_error(failure)))
            main.addErrback(lambda _: None)
            main.cancel()
        return failure

    def ended(value: T) -> None:
        if not result.called:
            result.callback(value)

    def failed(failure: Failure) -> None:
        if not result.called:
            result.errback(failure)

    spoiler.addErrback(spoiled)
    main.addCallbacks(ended, failed)
    return await result


def _error(failure: Failure) -> BaseException:
    return failure.value if failure.value is not None else RuntimeError(str(failure))
