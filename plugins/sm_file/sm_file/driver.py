"""The entry point: what xapi_migrate finds."""

from __future__ import annotations

from pathlib import Path

from zope.interface import implementer

from xapi_migrate.errors import InvalidValue
from xapi_migrate.sm.interfaces import GENERATION, ImageFormat, ISMDriver, ISRBackend, SRConfig
from xapi_migrate.sm.shared import services_of

FORMATS = (ImageFormat.RAW, ImageFormat.QCOW2, ImageFormat.VHD)
NAMES = {"raw": ImageFormat.RAW, "qcow2": ImageFormat.QCOW2, "vhd": ImageFormat.VHD}
"""As device_config has them."""


@implementer(ISMDriver)
class FileDriver:
    """SR type "file"."""

    name = "file"
    description = "Image files in a directory, local or shared"
    vendor = "xapi_migrate"
    version = "0.1.0"
    generation = GENERATION
    features = frozenset({"VDI_CREATE", "VDI_DESTROY", "VDI_RESIZE", "VDI_MIRROR", "SHARED"})
    formats = tuple(one.value for one in FORMATS)

    def open_sr(self, config: SRConfig) -> ISRBackend:
        from sm_file.backend import FileBackend

        location = Path(config.device_config.get("location", ""))
        if not location.is_absolute():
            raise InvalidValue("device_config:location", str(location))
        kind = config.device_config.get("format", "raw")
        if kind not in NAMES:
            raise InvalidValue("device_config:format", kind)
        limit = config.device_config.get("size_limit", "0")
        if not limit.isdecimal():
            raise InvalidValue("device_config:size_limit", limit)
        return ISRBackend(FileBackend(services_of(config), config.uuid, location, NAMES[kind], int(limit)))

    def scratch(self, folder: Path) -> dict[str, str]:
        """For `xapi-migrate sm-check`."""
        return {"location": str(folder)}
