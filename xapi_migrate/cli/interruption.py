"""SIGINT and SIGTERM for commands that have something to finish."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from types import FrameType


class Interrupted(BaseException):
    """SIGINT or SIGTERM came."""


@contextlib.contextmanager
def interruptible(clean_up: Callable[[], None]) -> Iterator[None]:
    """Inside, the first SIGINT or SIGTERM raises Interrupted, and later ones do nothing. At the end `clean_up` is
    called in any case, and nothing interrupts it: it has to take up what was begun inside."""

    def ignore() -> None:
        for which in before:
            signal.signal(which, signal.SIG_IGN)

    def interrupted(number: int, frame: FrameType | None) -> None:
        ignore()
        raise Interrupted

    before = {which: signal.getsignal(which) for which in (signal.SIGINT, signal.SIGTERM)}
    for which in before:
        signal.signal(which, interrupted)
    try:
        yield
    finally:
        try:
            with contextlib.suppress(Interrupted):  # this very moment; it is ignored from then on
                ignore()
            clean_up()
        finally:
            for which, action in before.items():
                signal.signal(which, action)


@contextlib.contextmanager
def noticing() -> Iterator[Callable[[], bool]]:
    """Inside, the first SIGINT is noted, and what is yielded tells of it from then on; the second one raises
    KeyboardInterrupt. An exception within a call would leave a broken connection, and it unknown whether the server
    had the call. A SIGINT that is not Python's own (ignored in the background, or somebody's who cleans up) stays
    what it is."""
    noted: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if noted:
            raise KeyboardInterrupt
        noted.append(number)

    ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if ours:
        signal.signal(signal.SIGINT, note)
    try:
        yield lambda: bool(noted)
    finally:
        if ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)
