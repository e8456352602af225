"""What is in a suspend VDI: one block that says what follows, then the domain's stream.

The block is written last, when the stream behind it is on disk: an image that has none is not whole. It is JSON, filled
up with zeroes: `stream` the name of the stream's format, `length` its bytes, `vm` the uuid of the VM.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import attrs

HEAD = 4096
"""Bytes before the stream."""
MARGIN = 32 << 20
"""Bytes for firmware, devices and the stream's own marks, beside the guest's memory and a 64th of it."""
_GRAIN = 1 << 20
_FORM = 1


@attrs.frozen
class Head:
    """`length` in bytes."""

    stream: str
    length: int
    vm: str


def size_for(memory: int) -> int:
    """Bytes that the VDI needs for a guest of so much memory, which stands still while it is written."""
    return -(-(HEAD + memory + memory // 64 + MARGIN) // _GRAIN) * _GRAIN


def open_to_write(path: Path) -> int:
    """A descriptor that stands where the stream begins. Blocks."""
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    os.lseek(descriptor, HEAD, os.SEEK_SET)
    return descriptor


def seal(descriptor: int, size: int, stream: str, vm: str) -> None:
    """The stream ends where the descriptor stands: make all of it durable, then say so. Blocks. OSError; ValueError
    when it did not fit into the `size` bytes of the VDI."""
    end = os.lseek(descriptor, 0, os.SEEK_CUR)
    if end > size:
        raise ValueError(f"the stream took {end} bytes, and its VDI has {size}")
    os.fsync(descriptor)
    told = {"xapi_migrate": _FORM, "stream": stream, "length": end - HEAD, "vm": vm}
    os.pwrite(descriptor, json.dumps(told).encode().ljust(HEAD, b"\0"), 0)
    os.fsync(descriptor)


def open_to_read(path: Path, size: int) -> tuple[int, Head]:
    """A descriptor that stands where the stream begins, and what is said about it. Blocks. OSError; ValueError says why
    it is no whole image."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        head = _parse(os.pread(descriptor, HEAD, 0))
        if not 0 < head.length <= size - HEAD:
            raise ValueError(f"it says that it has {head.length} bytes, in a VDI of {size}")
        os.lseek(descriptor, HEAD, os.SEEK_SET)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor, head


def _parse(block: bytes) -> Head:
    if not block.strip(b"\0"):
        raise ValueError("it is not whole")
    try:
        told = json.loads(block.rstrip(b"\0"))
        if told["xapi_migrate"] == _FORM:
            return Head(str(told["stream"]), int(told["length"]), str(told["vm"]))
    except (ValueError, TypeError, KeyError, RecursionError):
        pass
    raise ValueError("it is not one of this program's")
