"""A file system (FUSE) that passes everything on to a folder, and that answers reads and writes of its files with an
I/O error while it is told to. `python -m tests.faults.passing_on BEHIND MOUNTPOINT` is its process."""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from pathlib import Path
from typing import Any

import mfusepy

from tests.faults.failing_disk import FAILS, SYNC_FAILS


class PassedOn(mfusepy.Operations):  # type: ignore[misc]
    """The file system's calls."""

    use_ns = True

    def __init__(self, behind: Path) -> None:
        self._root = behind / "files"
        self._fails = behind / FAILS
        self._sync_fails = behind / SYNC_FAILS
        self._fallocate = ctypes.CDLL(None, use_errno=True).fallocate
        self._fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]

    def _at(self, path: str) -> Path:
        return self._root / path[1:]

    def _works(self) -> None:
        if self._fails.exists():
            raise OSError(errno.EIO, "told to fail")

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        self._works()
        return os.pread(fh, size, offset)

    def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
        self._works()
        return os.pwrite(fh, data, offset)

    def fallocate(self, path: str, mode: int, offset: int, size: int, fh: int) -> int:
        self._works()
        if self._fallocate(fh, mode, offset, size) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        return 0

    def fsync(self, path: str, datasync: int, fh: int) -> int:
        if self._sync_fails.exists():
            raise OSError(errno.EIO, "told to fail")
        return 0

    def open(self, path: str, flags: int) -> int:
        return os.open(self._at(path), flags & ~(os.O_DIRECT | os.O_CREAT | os.O_EXCL))

    def create(self, path: str, mode: int, flags: int = os.O_RDWR) -> int:
        return os.open(self._at(path), os.O_RDWR | os.O_CREAT, mode)

    def release(self, path: str, fh: int) -> int:
        os.close(fh)
        return 0

    def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
        found = self._at(path).lstat()
        kept = ("mode", "nlink", "uid", "gid", "size", "blocks", "ino")
        times = {f"st_{name}": getattr(found, f"st_{name}_ns") for name in ("atime", "mtime", "ctime")}
        return {f"st_{name}": getattr(found, f"st_{name}") for name in kept} | times

    def truncate(self, path: str, length: int, fh: int | None = None) -> int:
        self._works()
        os.truncate(self._at(path), length)
        return 0

    def readdir(self, path: str, fh: int) -> list[str]:
        return [".", "..", *(found.name for found in self._at(path).iterdir())]

    def statfs(self, path: str) -> dict[str, int]:
        found = os.statvfs(self._root)
        return {name: getattr(found, name) for name in dir(found) if name.startswith("f_")}

    def rename(self, old: str, new: str) -> int:
        self._at(old).rename(self._at(new))
        return 0

    def unlink(self, path: str) -> int:
        self._at(path).unlink()
        return 0

    def mkdir(self, path: str, mode: int) -> int:
        self._at(path).mkdir(mode)
        return 0

    def rmdir(self, path: str) -> int:
        self._at(path).rmdir()
        return 0

    def chmod(self, path: str, mode: int) -> int:
        self._at(path).chmod(mode)
        return 0

    def utimens(self, path: str, times: tuple[int, int] | None = None) -> int:
        os.utime(self._at(path), ns=times)
        return 0


def main(behind: str, folder: str) -> None:
    """Until it is unmounted. Nothing is cached: neither data, nor names, nor sizes."""
    mfusepy.FUSE(
        PassedOn(Path(behind)), folder, foreground=True, direct_io=True, hard_remove=True, attr_timeout=0,
        entry_timeout=0, fsname="failing_disk", max_threads=4,
    )  # fmt: skip


if __name__ == "__main__":
    main(*sys.argv[1:])
