"""Whether a copy stands still, and what is to be done about it: a decision without I/O."""

from __future__ import annotations

import enum

import attrs


class Verdict(enum.Enum):
    """On one look at a copy."""

    MOVES = "moves"
    REPLACE = "its copier is to be replaced"
    HOPELESS = "new copiers do not help"


@attrs.define
class Standstill:
    """Of one copy. `stall`: seconds without a change after which its copier counts as dead. `replacements`: how many
    new copiers it gets without a byte of progress in between."""

    stall: float
    replacements: int
    replaced: int = 0
    why: str = ""
    """What is wrong with the copier, as the last look saw it."""
    _last: tuple[int, int] = (-1, -1)
    _moved: float | None = None

    def look(self, now: float, done: int, total: int, *, idle: bool, alive: bool) -> Verdict:
        """`done` of `total` bytes are copied. `idle`: there is nothing to copy at present; `alive`: the copier is."""
        if (done, total) != self._last or idle or self._moved is None:
            if done > self._last[0]:
                self.replaced = 0
            self._last, self._moved = (done, total), now
        if alive and now - self._moved <= self.stall:
            return Verdict.MOVES
        self.why = f"no progress for {self.stall:g} s" if alive else "its copier died"
        if self.replaced >= self.replacements:
            return Verdict.HOPELESS
        self.replaced += 1
        return Verdict.REPLACE

    def tried(self, now: float) -> None:
        """Another copier has been started, or could not be: it has its time from now on."""
        self._moved = now
