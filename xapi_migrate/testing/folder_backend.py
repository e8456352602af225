"""SR type "folder": VDIs are raw files in a folder that exists."""

from __future__ import annotations

import os
from pathlib import Path

from twisted.internet.threads import deferToThread
from zope.interface import implementer

from xapi_migrate.errors import InvalidValue, SrBackendFailure, SrFull, VdiMissing
from xapi_migrate.sm.interfaces import (
    GENERATION,
    ImageFormat,
    ImageLocation,
    ISMDriver,
    ISRBackend,
    SRConfig,
    SRStat,
    VDIInfo,
)


@implementer(ISMDriver)
class FolderDriver:
    """What xapi_migrate finds."""

    name = "folder"
    description = "Raw files in a folder"
    vendor = "xapi_migrate"
    version = "0.1"
    generation = GENERATION
    features = frozenset({"VDI_CREATE", "VDI_DESTROY"})
    formats = ("raw",)

    def open_sr(self, config: SRConfig) -> ISRBackend:
        location = Path(config.device_config.get("location", ""))
        if not location.is_absolute():
            raise InvalidValue("device_config:location", str(location))
        return ISRBackend(FolderBackend(config.uuid, location))

    def scratch(self, folder: Path) -> dict[str, str]:
        """The device_config of an SR for `xapi-migrate sm-check`, in a folder that is removed afterwards."""
        return {"location": str(folder)}


@implementer(ISRBackend)
class FolderBackend:
    """One SR. File calls may be slow and run in threads; the files are the only state."""

    def __init__(self, uuid: str, location: Path) -> None:
        self._uuid = uuid
        self._location = location

    async def attach(self) -> None:
        if not await deferToThread(os.access, self._location, os.W_OK | os.X_OK):
            raise SrBackendFailure(f"attaching SR {self._uuid}", f"{self._location} is no folder one can write to")

    async def detach(self) -> None:
        pass

    async def stat(self) -> SRStat:
        there = await deferToThread(os.statvfs, self._location)
        used = sum(info.used for info in await self.scan())
        return SRStat(there.f_blocks * there.f_frsize, there.f_bavail * there.f_frsize, used)

    async def scan(self) -> list[VDIInfo]:
        found: list[VDIInfo] = await deferToThread(self._scan)
        return found

    async def vdi_create(self, uuid: str, virtual_size: int) -> VDIInfo:
        size = -(-virtual_size // 512) * 512
        free = (await self.stat()).free
        if size > free:
            raise SrFull(self._uuid, size, free)
        path = self._location / f"{uuid}.raw"
        if not path.exists():
            await deferToThread(_make, path, size)
        return VDIInfo(uuid, path.stat().st_size)

    async def vdi_destroy(self, uuid: str) -> None:
        (self._location / f"{uuid}.raw").unlink(missing_ok=True)

    async def vdi_location(self, uuid: str) -> ImageLocation:
        path = self._location / f"{uuid}.raw"
        if not path.exists():
            raise VdiMissing(self._uuid, uuid)
        return ImageLocation(path, ImageFormat.RAW)

    async def nonce_write(self, name: str, value: str) -> None:
        path = self._location / f"{name}.nonce"
        if value:
            path.write_text(value)
        else:
            path.unlink(missing_ok=True)

    async def nonce_read(self, name: str) -> str:
        path = self._location / f"{name}.nonce"
        return path.read_text() if path.exists() else ""

    def _scan(self) -> list[VDIInfo]:
        there = [(path.stem, path.stat()) for path in sorted(self._location.glob("*.raw"))]
        return [VDIInfo(uuid, stat.st_size, stat.st_blocks * 512) for uuid, stat in there]


def _make(path: Path, size: int) -> None:
    """A sparse file, which takes its name when it is whole."""
    draft = path.with_suffix(".new")
    with draft.open("wb") as file:
        file.truncate(size)
    draft.rename(path)
