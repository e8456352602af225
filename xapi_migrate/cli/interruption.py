"""SIGINT and SIGTERM for commands that have much to clean up."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType


class Interrupted(BaseException):
    """SIGINT or SIGTERM came."""


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Inside, the first SIGINT or SIGTERM raises Interrupted, and later ones do nothing, so that the clean-up that
    follows is whole."""

    def interrupted(number: int, frame: FrameType | None) -> None:
        for which in before:
            signal.signal(which, signal.SIG_IGN)
        raise Interrupted

    before = {which: signal.getsignal(which) for which in (signal.SIGINT, signal.SIGTERM)}
    for which in before:
        signal.signal(which, interrupted)
    try:
        yield
    finally:
        for which, action in before.items():
            signal.signal(which, action)
