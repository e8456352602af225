"""Stops, for tests of faults: a daemon that halts in the middle of a migration, at a point that a test has named. Those
of storage motion are the entries of its journal (`motion-before-committed`).

A point is a role and a name: a step's id (`3.6`), a state of that role's machine (`Activating`), or an entry of its
journal (`before-done`, `after-done`). Where a file `ROLE-NAME` is in the folder, the daemon removes it and stops itself
by SIGSTOP: nothing of it moves any more, while domains, datapaths and copies go on. Whoever named the point then kills
something, and lets the daemon go on by SIGCONT.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

FOLDER = "stops"


class Stops:
    """`folder` need not be there."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __call__(self, role: str, name: str) -> None:
        """The daemon is at this point now."""
        try:
            (self._folder / f"{role}-{name}").unlink()
        except OSError:
            return
        os.kill(os.getpid(), signal.SIGSTOP)


def nowhere(role: str, name: str) -> None:
    """Stops at no point."""
