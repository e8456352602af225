"""A reactor's time that no change of the host's clock can disturb.

Twisted's reactors measure by the wall clock: set forward by an hour it fires every timer, so that heartbeats are lost
and copies stand still, and set back it fires none for an hour. Here time goes on from the wall clock's at the start,
by the monotonic one: intervals are true, and moments are those of the clock at the start of the daemon.
"""

from __future__ import annotations

import time
from typing import Any


def make_steady(reactor: Any) -> None:
    """From now on `reactor.seconds` is steady. To be called before the reactor runs; timers that are set already keep
    their moment, for the two times are the same now."""
    offset = time.time() - time.monotonic()

    def seconds() -> float:
        return time.monotonic() + offset

    reactor.seconds = seconds
