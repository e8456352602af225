"""SRs of the stand-in: image files as xapi's `ext` holds them, raw ones, or disks in memory."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Protocol

SR_MOUNT = Path("/run/sr-mount")
"""Below it xapi mounts SRs of images."""


class Storage(Protocol):
    """Where the VDIs of one SR are."""

    def create(self, uuid: str, size: int) -> int:
        """The size that it has: storage may round up."""

    def destroy(self, uuid: str) -> None: ...


class MemoryDisks:
    """`disks` are bytes by uuid."""

    def __init__(self, disks: dict[str, bytearray]) -> None:
        self.disks = disks

    def create(self, uuid: str, size: int) -> int:
        self.disks[uuid] = bytearray(size)
        return size

    def destroy(self, uuid: str) -> None:
        self.disks.pop(uuid, None)


class Images:
    """Files in a folder; `kind` is vhd or raw. VHDs come in pieces of 2 MiB."""

    def __init__(self, folder: Path, kind: str) -> None:
        self.folder = folder
        self._kind = kind

    def path(self, uuid: str) -> Path:
        return self.folder / f"{uuid}.{self._kind}"

    def create(self, uuid: str, size: int) -> int:
        if self._kind == "raw":
            with self.path(uuid).open("xb") as file:
                file.truncate(size)
            return size
        size = -(-size // (2 << 20)) * (2 << 20)
        how = ["qemu-img", "create", "-q", "-f", "vpc", "-o", "subformat=dynamic,force_size=on"]
        subprocess.run([*how, str(self.path(uuid)), str(size)], check=True)
        return size

    def destroy(self, uuid: str) -> None:
        self.path(uuid).unlink(missing_ok=True)
