"""Errors of the file system that say what they are about."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """An OSError from inside names this path if it names none: the kernel's of write, fallocate and fsync do not, and
    who reads that no space is left has to know where."""
    try:
        yield
    except OSError as failure:
        if failure.filename is None:
            failure.filename = str(path)
        raise
