"""A folder that one process at a time works in."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Any

from twisted.internet.task import deferLater

NAME = "lock"
PATIENCE = 5.0
"""Seconds for which a process that is just ending may still have the folder."""
_ASK = 0.1


class FolderTaken(Exception):
    """Another process has the folder; the text is a sentence."""


class FolderLock:
    """The kernel lets go of the lock with the process, however it ends. Children do not inherit it."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / NAME
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    async def take(self, reactor: Any) -> None:
        """FolderTaken after PATIENCE; nothing is left open then."""
        end = reactor.seconds() + PATIENCE
        try:
            while not self._taken():
                if reactor.seconds() > end:
                    raise FolderTaken(
                        f"Another daemon ({self._holder()}) works in {self._path.parent}: two of them would decide "
                        "differently about the same VMs. Stop it first, or give this one a state folder of its own."
                    )
                await deferLater(reactor, _ASK)
        except BaseException:
            self.release()
            raise
        os.truncate(self._file, 0)
        os.pwrite(self._file, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Let the next one have it. The file stays: to remove it would let two have one of each."""
        if self._file >= 0:
            os.close(self._file)
        self._file = -1

    def _taken(self) -> bool:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _holder(self) -> str:
        pid = os.pread(self._file, 20, 0).decode("ascii", "replace").strip()
        return f"process {pid}" if pid.isdecimal() else "a process"
