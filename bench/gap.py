"""How long a guest stood still, as its console shows it."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Self

_LOOK = 0.001


class Gap:
    """`with Gap(old, new) as gap:` around a move. The guest prints into the file `old` before and into `new` after it;
    `seconds` lies between its last character here and its first there, by the files' times, so it includes the time
    between two of the guest's lines."""

    def __init__(self, old: Path, new: Path) -> None:
        self._old = old
        self._new = new
        self._before = new.stat().st_size if new.exists() else 0
        self._first = self._last = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._thread.join(10)
        self._ended.set()
        self._thread.join()

    @property
    def seconds(self) -> float:
        return (self._first - self._last) / 1e9

    @property
    def stopped_at(self) -> float:
        """Seconds since 1970."""
        return self._last / 1e9

    @property
    def ran_at(self) -> float:
        """Seconds since 1970."""
        return self._first / 1e9

    def _watch(self) -> None:
        # Linux stamps a file that is looked at more finely, so both are.
        while not self._ended.is_set():
            self._last = self._old.stat().st_mtime_ns
            if self._new.exists():
                new = self._new.stat()
                if new.st_size > self._before:
                    self._first = new.st_mtime_ns
                    return
            time.sleep(_LOOK)
