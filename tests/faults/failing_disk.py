"""A disk that can fail: the file system of tests/faults/passing_on.py over a folder, and what it is told."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Self

FAILS = "fails"
SYNC_FAILS = "sync-fails"


class FailingDisk:
    """`folder`, what it holds being moved to a disk that can fail. What is on that is in `behind`, a new folder.

    It keeps nothing in memory: a write that it took is on the disk, and what is flushed (fsync) was there before."""

    def __init__(self, folder: Path, behind: Path) -> None:
        self.folder = folder
        self._behind = behind
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        shutil.copytree(self.folder, self._behind / "files")
        argv = [sys.executable, "-m", "tests.faults.passing_on", str(self._behind), str(self.folder)]
        self._process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until = time.monotonic() + 20
        while not self.folder.is_mount():
            assert self._process.poll() is None and time.monotonic() < until, f"nothing is mounted at {self.folder}"
            time.sleep(0.02)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.heal()
        if self.folder.is_mount():
            subprocess.run(["fusermount3", "-u", "-z", str(self.folder)], check=True)
        assert self._process is not None
        self._process.wait(10)

    def fail(self) -> None:
        """Reads and writes fail (EIO), until `heal`."""
        (self._behind / FAILS).touch()

    def fail_to_sync(self) -> None:
        """What is written is taken, but not its flush (fsync), until `heal`."""
        (self._behind / SYNC_FAILS).touch()

    def heal(self) -> None:
        """Works from now on."""
        for name in (FAILS, SYNC_FAILS):
            (self._behind / name).unlink(missing_ok=True)
