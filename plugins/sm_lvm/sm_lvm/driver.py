"""The entry point: what xapi_migrate finds."""

from __future__ import annotations

import re

from zope.interface import implementer

from xapi_migrate.errors import InvalidValue
from xapi_migrate.sm.interfaces import GENERATION, ImageFormat, ISMDriver, ISRBackend, SRConfig

_NAME = re.compile(r"[A-Za-z0-9+_.][A-Za-z0-9+_.-]{0,126}")
"""Names of volume groups and logical volumes (lvm(8), VALID NAMES)."""


@implementer(ISMDriver)
class LVMDriver:
    """SR type "lvm"."""

    name = "lvm"
    description = "Logical volumes of an LVM2 volume group"
    vendor = "xapi_migrate"
    version = "0.1.0"
    generation = GENERATION
    features = frozenset({"VDI_CREATE", "VDI_DESTROY", "VDI_MIRROR", "SHARED"})
    formats = (ImageFormat.RAW.value,)

    def open_sr(self, config: SRConfig) -> ISRBackend:
        from sm_lvm.backend import LVMBackend

        kind = config.device_config.get("format", ImageFormat.RAW.value)
        if kind not in self.formats:
            raise InvalidValue("device_config:format", kind)
        group = _name(config, "volume_group")
        pool = _name(config, "thin_pool") if "thin_pool" in config.device_config else ""
        return ISRBackend(LVMBackend(config.uuid, group, pool))


def _name(config: SRConfig, key: str) -> str:
    name = config.device_config.get(key, "")
    if not _NAME.fullmatch(name) or name in (".", ".."):
        raise InvalidValue(f"device_config:{key}", name)
    return name
