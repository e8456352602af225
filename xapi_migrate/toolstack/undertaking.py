"""Work for a client that is written down before it is done: undone if it fails or is cancelled, left to the next daemon
when this one ends in the middle of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

from twisted.internet import defer

from xapi_migrate.migration.host import TaskHandle
from xapi_migrate.together import started

T = TypeVar("T")


async def attempt(task: TaskHandle, work: Awaitable[T], undo: Callable[[], Awaitable[None]]) -> T:
    """The value of `work`, which the client may cancel meanwhile. Its failure, or CancelledError, comes after `undo`.
    What is cancelled because the daemon ends is not undone."""
    waiting = started(work)
    asked: list[bool] = []

    def cancel() -> None:
        asked.append(True)
        waiting.cancel()

    task.on_cancel(cancel)
    try:
        value = await waiting
    except defer.CancelledError:
        if asked:
            await undo()
        raise
    except Exception:
        await undo()
        raise
    task.on_cancel(None)
    return value


async def uncancelled(work: Awaitable[T]) -> T:
    """Whoever waits may be cancelled; the work goes on."""
    waiting: defer.Deferred[T] = defer.Deferred()
    started(work).addCallbacks(waiting.callback, waiting.errback)
    return await waiting
