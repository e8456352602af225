"""A storage backend as it was written for generation 1 of the interface. Frozen: never change it. If its tests fail,
the interface has broken what third parties have installed."""

import os
from pathlib import Path

from zope.interface import implementer

from xapi_migrate.errors import InvalidValue, SrBackendFailure, SrFull, VdiMissing
from xapi_migrate.sm.interfaces import (
    ImageFormat,
    ImageLocation,
    ISMDriver,
    ISRBackend,
    SRConfig,
    SRStat,
    VDIInfo,
)


@implementer(ISRBackend)
class Closet:
    def __init__(self, uuid, location):
        self.uuid = uuid
        self.location = location

    async def attach(self):
        if not self.location.is_dir():
            raise SrBackendFailure(f"attaching SR {self.uuid}", f"{self.location} is no folder")

    async def detach(self):
        pass

    async def stat(self):
        there = os.statvfs(self.location)
        return SRStat(there.f_blocks * there.f_frsize, there.f_bavail * there.f_frsize, 0)

    async def scan(self):
        return [VDIInfo(path.stem, path.stat().st_size) for path in self.location.glob("*.raw")]

    async def vdi_create(self, uuid, virtual_size):
        size = (virtual_size + 511) // 512 * 512
        free = (await self.stat()).free
        if size > free:
            raise SrFull(self.uuid, size, free)
        with (self.location / f"{uuid}.raw").open("ab") as file:
            file.truncate(size)
        return VDIInfo(uuid=uuid, virtual_size=size)

    async def vdi_destroy(self, uuid):
        (self.location / f"{uuid}.raw").unlink(missing_ok=True)

    async def vdi_location(self, uuid):
        path = self.location / f"{uuid}.raw"
        if not path.exists():
            raise VdiMissing(self.uuid, uuid)
        return ImageLocation(path=path, format=ImageFormat.RAW)

    async def nonce_write(self, name, value):
        path = self.location / f"{name}.nonce"
        if value:
            path.write_text(value)
        else:
            path.unlink(missing_ok=True)

    async def nonce_read(self, name):
        path = self.location / f"{name}.nonce"
        return path.read_text() if path.exists() else ""


@implementer(ISMDriver)
class ClosetDriver:
    name = "closet"
    description = "Raw files, as in generation 1"
    vendor = "a third party"
    version = "1.0"
    generation = 1
    features = frozenset({"VDI_CREATE", "VDI_DESTROY", "VDI_MIRROR"})
    formats = ("raw",)

    def open_sr(self, config: SRConfig):
        location = Path(config.device_config.get("location", ""))
        if not location.is_absolute():
            raise InvalidValue("device_config:location", str(location))
        return Closet(config.uuid, location)


driver = ClosetDriver()
