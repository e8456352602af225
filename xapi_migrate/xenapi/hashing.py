"""Password hashes are meant to be slow and large: few are computed at once, and not many wait for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

from twisted.internet import defer

from xapi_migrate.processes.in_thread import in_thread

AT_ONCE = 2
"""Of the reactor's ten threads: the others are for journals and the like."""
MOST_WAITING = 100

P = ParamSpec("P")
T = TypeVar("T")


class TooManyLogins(Exception):
    """This one has not been looked at."""


class Hashing:
    """The turns of all checkers of one server."""

    def __init__(self) -> None:
        self._turns = defer.DeferredSemaphore(AT_ONCE)

    async def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """`work` in a thread, when it is its turn. TooManyLogins."""
        if len(self._turns.waiting) >= MOST_WAITING:
            raise TooManyLogins
        await self._turns.acquire()
        try:
            return await in_thread(work, *args, **kwargs)
        finally:
            self._turns.release()
