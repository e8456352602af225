"""Work in a thread that is never left running unseen."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from twisted.internet import defer, threads

from xapi_migrate.moment import Moment

P = ParamSpec("P")
T = TypeVar("T")


async def in_thread(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run `work` in a thread of the reactor's pool.

    A thread cannot be stopped. Cancelled, this waits for its end all the same and then raises CancelledError: whoever
    cleans up next does not race with it.
    """
    outcome: Moment[T] = Moment()
    running = threads.deferToThread(work, *args, **kwargs)
    running.addCallbacks(outcome.happen, lambda failure: outcome.fail(failure.value))
    try:
        return await outcome.wait()
    except defer.CancelledError:
        with contextlib.suppress(Exception):
            await outcome.wait()
        raise
