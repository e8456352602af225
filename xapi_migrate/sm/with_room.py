"""Small records that are written again while much depends on them: each leaves room for the next. A file system that is
full by then refuses neither the end of a copy nor a guest's disks that are to be used again."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

from xapi_migrate.whole_file import naming

RESERVED = 8 << 10
"""Bytes that a record has room for: it is padded to them with spaces."""


def write_with_room(path: Path, text: str) -> None:
    """The whole of it or nothing, for the daemon's user only. OSError."""
    draft = path.with_name(f"{path.name}.new")
    padded = text.encode().ljust(RESERVED)
    with naming(path.parent), _reserved(draft, len(padded)) as file:
        file.write(padded)
        file.truncate()
    draft.replace(path)
    try:
        _reserved(draft, RESERVED).close()
    except OSError:
        pass  # the next one tries again


def _reserved(path: Path, size: int) -> BinaryIO:
    file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), "r+b")
    try:
        os.posix_fallocate(file.fileno(), 0, size)
    except BaseException:
        file.close()
        raise
    return file
