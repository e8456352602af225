"""Image files: what their names and first bytes say. Nothing else of them is trusted, and none is probed."""

from __future__ import annotations

import os
from pathlib import Path

from xapi_migrate.sm.interfaces import ImageFormat, VDIInfo

SUFFIX = {ImageFormat.RAW: ".raw", ImageFormat.QCOW2: ".qcow2", ImageFormat.VHD: ".vhd"}
_QCOW2_MAGIC = b"QFI\xfb"
_VHD_MAGIC = b"conectix"
_VHD_DIFFERENCING = (4).to_bytes(4, "big")
_VHD_SIZED = (b"win ", b"qem2", b"d2v ", b"tap\0", b"CTXS", b"wa\0\0")
"""Creators whose VHDs have the size that the footer says; QEMU takes others for as large as their geometry."""


def format_of(path: Path) -> ImageFormat:
    return next(format for format, suffix in SUFFIX.items() if suffix == path.suffix)


def info_of(path: Path) -> VDIInfo:
    """Raw is as long as it is, the others say it in their header. ValueError if they have none."""
    there = path.stat()
    size = there.st_size
    with path.open("rb") as file:
        match format_of(path):
            case ImageFormat.QCOW2:
                size = _qcow2_size(file.read(32))
            case ImageFormat.VHD:
                size = _vhd_size(file.read(512))
    return VDIInfo(path.stem, size, there.st_blocks * 512, not os.access(path, os.W_OK))


def _qcow2_size(header: bytes) -> int:
    if header[:4] != _QCOW2_MAGIC:
        raise ValueError("no qcow2 image")
    return int.from_bytes(header[24:32], "big")


def _vhd_size(footer: bytes) -> int:
    """A dynamic VHD begins with a copy of its footer."""
    if footer[:8] != _VHD_MAGIC or len(footer) < 512:
        raise ValueError("no dynamic VHD")
    if footer[28:32] in _VHD_SIZED:
        return int.from_bytes(footer[48:56], "big")
    return int.from_bytes(footer[56:58], "big") * footer[58] * footer[59] * 512


def builds_on_another(path: Path) -> bool:
    """Whether it is a differencing VHD: QEMU would show zeroes in the place of what is in its parent."""
    if format_of(path) is not ImageFormat.VHD:
        return False
    with path.open("rb") as file:
        return file.read(64)[60:64] == _VHD_DIFFERENCING


def make_sparse(path: Path, size: int) -> None:
    with path.open("wb") as file:
        file.truncate(size)
