"""Signs of life. The sender sends HEAD at an interval; the receiver only listens for any request."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from twisted.internet import defer, task

from ..config import MigrationTimes
from ..errors import HeartbeatLost, MigrateError, MigrationAborted
from ..together import started
from .interfaces import IPeer
from .story import Story


class Pulse:
    """The sender's half: HEAD every `heartbeat_interval` (1.5). One that fails is repeated sooner; after
    half of `heartbeat_lost` without an answer the other URIs are tried; if none has answered by the end of it, or the
    receiver has aborted: `lost`."""

    def __init__(
        self,
        clock: Any,
        times: MigrationTimes,
        peer: IPeer,
        story: Story,
        moved: Callable[[], Awaitable[None]],
        lost: Callable[[Exception], None],
    ) -> None:
        self._clock = clock
        self._times = times
        self._peer = peer
        self._story = story
        self._moved = moved
        self._lost = lost
        self._running: defer.Deferred[Any] | None = None

    def start(self) -> None:
        running: defer.Deferred[Any] = started(self._beat())
        self._running = running

        def over(reason: Exception) -> None:
            if self._running is running:
                self._running = None
                self._lost(reason)

        running.addCallbacks(over, lambda failure: failure.trap(defer.CancelledError) and None)

    def stop(self) -> None:
        running, self._running = self._running, None
        if running is not None:
            running.cancel()

    async def _beat(self) -> Exception:
        heard = self._clock.seconds()
        wait = self._times.heartbeat_interval
        while True:
            await task.deferLater(self._clock, wait)
            try:
                await self._peer.head()
                heard = self._clock.seconds()
                wait = self._times.heartbeat_interval
                continue
            except MigrationAborted as word:
                return word
            except MigrateError as silence:
                self._story.note(f"no answer to HEAD: {silence}")
            wait = min(self._times.heartbeat_interval, self._times.heartbeat_lost / 10)
            if self._clock.seconds() - heard < self._times.heartbeat_lost / 2:
                continue
            if await self._peer.fail_over():
                self._story.note(f"failed over to {self._peer.destination}")
                heard = self._clock.seconds()
                await self._moved()
            elif self._clock.seconds() - heard >= self._times.heartbeat_lost:
                step = self._story.last.id if self._story.last else "none"
                return HeartbeatLost(self._times.heartbeat_lost, step, f"The receiving host {self._peer.destination}")


class Listening:
    """The receiver's half: `lost` when nothing came for `heartbeat_lost` seconds."""

    def __init__(self, clock: Any, seconds: float, story: Story, lost: Callable[[Exception], None]) -> None:
        self._clock = clock
        self._seconds = seconds
        self._story = story
        self._lost = lost
        self._timer: Any = None

    def start(self) -> None:
        self._timer = self._clock.callLater(self._seconds, self._silence)

    def touch(self) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.reset(self._seconds)

    def stop(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None and timer.active():
            timer.cancel()

    def _silence(self) -> None:
        self._timer = None
        self._lost(HeartbeatLost(self._seconds, self._story.last.id if self._story.last else "none"))
