"""What carries a stream between libxl and the outside, in the process that calls libxl.

libxl gets a pipe of its own, for it makes its descriptor blocking and has no other way to be stopped than one that
breaks. In between bytes are spliced: they do not pass through Python.
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable

_CHUNK = 1 << 20
_REPORT = 0.25
"""Seconds between two reports of how far it is."""


class GivenUp(Exception):
    """The other end of `brake` was closed."""


def carry(source: int, sink: int, brake: int, report: Callable[[int], None]) -> int:
    """Move all bytes from source to sink, of which one is a pipe. How many there were.

    GivenUp as soon as `brake` can be read; OSError when an end breaks.
    """
    total, said = 0, time.monotonic()
    while True:
        _ready(source, select.POLLIN, brake)
        _ready(sink, select.POLLOUT, brake)
        try:
            moved = os.splice(source, sink, _CHUNK)
        except BlockingIOError:  # the reactor's sockets do not block; another poll tells when to come again
            continue
        if not moved:
            report(total)
            return total
        total += moved
        if time.monotonic() - said > _REPORT:
            said = time.monotonic()
            report(total)


def _ready(fd: int, event: int, brake: int) -> None:
    poller = select.poll()
    poller.register(fd, event)
    poller.register(brake, select.POLLIN)
    ready = dict(poller.poll())
    if brake in ready:
        raise GivenUp("it was given up")
