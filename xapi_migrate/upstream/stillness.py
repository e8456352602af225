"""Whether what should move does: a transport that is full, and a watch that ends what stands still for too long."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IPushProducer
from zope.interface import implementer

LEAST = 1024
"""Bytes that count as a sign of life: fewer might be somebody's who means to hold a connection."""


class Watch:
    """`who` says what has to move now, "" if nothing has to; `cut` is called with it when nothing has moved for `idle`
    seconds."""

    def __init__(self, clock: Any, idle: float, who: Callable[[], str], cut: Callable[[str], None]) -> None:
        self._clock = clock
        self._idle = idle
        self._who = who
        self._cut = cut
        self._last = 0.0
        self._few = 0
        self._next: Any = None

    def begin(self) -> None:
        """More than once is once."""
        if self._next is None:
            self.moved()
            self._next = self._clock.callLater(self._idle, self._look)

    def end(self) -> None:
        if self._next is not None and self._next.active():
            self._next.cancel()

    def moved(self, size: int = LEAST) -> None:
        """So many bytes have; or it is another's turn now."""
        self._few += size
        if self._few >= LEAST:
            self._few = 0
            self._last = self._clock.seconds()

    def _look(self) -> None:
        left = self._last + self._idle - self._clock.seconds()
        who = self._who()
        if who and left <= 0:
            self._cut(who)
        else:
            self._next = self._clock.callLater(left if left > 0 else self._idle, self._look)


@implementer(IPushProducer)
class Paced:
    """A transport that reads no faster than another writes. That the other has gone is no reason to close it. `full`:
    the other takes nothing at the moment; `turned` is called when that begins."""

    def __init__(self, transport: Any, turned: Callable[[], None]) -> None:
        self._transport = transport
        self._turned = turned
        self.full = False

    def pauseProducing(self) -> None:
        self.full = True
        self._turned()
        self._transport.pauseProducing()

    def resumeProducing(self) -> None:
        self.full = False
        self._transport.resumeProducing()

    def stopProducing(self) -> None:
        """Whoever uses the transport decides that."""
