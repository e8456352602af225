"""Images that are being filled are flushed all the while, not only at the end, when a guest waits for it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from twisted.internet import defer, task, threads
from twisted.logger import Logger


class Flushing:
    """Flushes images again and again, in a thread, one at a time on the whole host."""

    log = Logger()

    def __init__(self, reactor: Any, pause: float) -> None:
        self._reactor = reactor
        self._pause = pause
        self._one_at_a_time = defer.DeferredLock()
        self._running: dict[str, defer.Deferred[None]] = {}

    def begin(self, vdi: str, image: Path) -> None:
        """Flush this image from now on, with pauses."""
        if vdi not in self._running:
            running = self._running[vdi] = defer.ensureDeferred(self._flush(image))
            running.addErrback(lambda failure: self._ended(vdi, failure))

    def end(self, vdi: str) -> None:
        """No more; one that is under way may still take its time."""
        running = self._running.pop(vdi, None)
        if running is not None:
            running.cancel()

    def let_go(self) -> None:
        """As `end`, for all."""
        for vdi in list(self._running):
            self.end(vdi)

    async def _flush(self, image: Path) -> None:
        while True:
            await task.deferLater(self._reactor, self._pause)
            await self._one_at_a_time.run(threads.deferToThread, flush, image)

    def _ended(self, vdi: str, failure: Any) -> None:
        self._running.pop(vdi, None)
        if not failure.check(defer.CancelledError):
            self.log.warn("VDI {vdi} is not flushed while it is filled: {reason}", vdi=vdi, reason=str(failure.value))


def flush(image: Path) -> None:
    """What the kernel has of this file is on its disk. Blocks."""
    descriptor = os.open(image, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fdatasync(descriptor)
    finally:
        os.close(descriptor)
