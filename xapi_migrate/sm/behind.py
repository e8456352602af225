"""Work that nobody waits for at first: what is tidied away while a guest that was waiting runs again."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from twisted.internet import defer
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger

SECONDS = 1.0
"""How long it is put off: its processor time is better spent on the guest."""


class Behind:
    """One piece of work per key. It begins after a moment, or when somebody needs it `done`."""

    log = Logger()

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self._waiting: dict[str, tuple[IDelayedCall, Callable[[], Awaitable[None]]]] = {}
        self._running: dict[str, defer.DeferredLock] = {}

    def later(self, key: str, work: Callable[[], Awaitable[None]]) -> None:
        """Put `work` off; whoever had put off something under this key has waited for it."""
        timer = self._reactor.callLater(SECONDS, lambda: defer.ensureDeferred(self._now(key)))
        self._waiting[key] = (timer, work)

    async def done(self, key: str) -> None:
        """Fires when nothing is put off or under way under this key. Raises what the work raises."""
        lock = self._running.setdefault(key, defer.DeferredLock())
        await lock.acquire()
        try:
            timer, work = self._waiting.pop(key, (None, None))
            if timer is not None and timer.active():
                timer.cancel()
            if work is not None:
                await work()
        finally:
            lock.release()
            if not lock.locked:
                self._running.pop(key, None)

    async def all_done(self) -> None:
        """As `done`, for every key; failures are logged."""
        for key in {*self._waiting, *self._running}:
            await self._now(key)

    def let_go(self) -> None:
        """What has not begun never does."""
        for timer, _ in self._waiting.values():
            if timer.active():
                timer.cancel()
        self._waiting.clear()

    async def _now(self, key: str) -> None:
        try:
            await self.done(key)
        except Exception:
            self.log.failure("tidying up after {what}", what=key)
