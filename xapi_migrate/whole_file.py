"""Files that are written as a whole: a reader finds what was there before or what is there now, and never a part."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

DRAFT = ".new"
"""What the name of a file ends with until it is whole. One that a daemon left which was killed is written over."""


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


def write_whole(path: Path, content: str | bytes, mode: int = 0o600, durable: bool = True) -> None:
    """`durable`: it outlives the machine's loss of power from here on, its name too; not needed for what tells of
    processes, which do not. Until it is whole it is its owner's alone. Blocks. OSError, and then the old one is there,
    and no draft."""
    draft = path.with_name(path.name + DRAFT)
    draft.unlink(missing_ok=True)
    try:
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with naming(path.parent), os.fdopen(descriptor, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fchmod(file.fileno(), mode)
            if durable:
                os.fsync(file.fileno())
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    if durable:
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """The names in it are on disk when this returns. OSError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
