"""What could not be settled with the upstream is tried again, with the session of who began it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from twisted.internet import defer, task
from twisted.logger import Logger

from ..together import started

AGAIN = 30.0
"""Seconds between attempts."""


class Settling:
    """`settle_all` at once and again and again; `left` is said where it fails unexpectedly."""

    log = Logger()

    def __init__(self, settle_all: Callable[[], Awaitable[None]], clock: Any, left: str) -> None:
        self._settle_all = settle_all
        self._left = left
        self._loop = task.LoopingCall(self._settle)
        self._loop.clock = clock

    def start(self) -> None:
        self._loop.start(AGAIN)

    def stop(self) -> None:
        if self._loop.running:
            self._loop.stop()

    def _settle(self) -> defer.Deferred[None]:
        work = started(self._settle_all())
        work.addErrback(lambda failure: self.log.failure("{left}", failure, left=self._left))
        return work
