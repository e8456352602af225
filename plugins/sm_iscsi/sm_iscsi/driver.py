"""The entry point: what xapi_migrate finds."""

from __future__ import annotations

import re

from zope.interface import implementer

from xapi_migrate.errors import InvalidValue
from xapi_migrate.sm.interfaces import GENERATION, ISMDriver, ISRBackend, SRConfig
from xapi_migrate.sm.shared import services_of

INITIATOR = "iqn.2011-10.org.xapi-migrate:sm-iscsi"
_PATTERNS = {
    "target": r"[A-Za-z0-9.-]+|\[[0-9a-fA-F:]+\]",
    "port": r"[0-9]{1,5}",
    "targetIQN": r"(iqn|eui|naa)\.[A-Za-z0-9.:_-]{1,200}",
    "initiatorIQN": r"(iqn|eui|naa)\.[A-Za-z0-9.:_-]{1,200}",
    "chapuser": r"[A-Za-z0-9._:@-]{0,200}",
    "chappassword": r"[\x20-\x7e]{0,200}",
    "luns": r"[0-9]{1,5}(-[0-9]{1,5})?(,[0-9]{1,5}(-[0-9]{1,5})?)*",
}
MOST_LUNS = 4096
_DEFAULTS = {"port": "3260", "initiatorIQN": INITIATOR, "chapuser": "", "chappassword": ""}


@implementer(ISMDriver)
class ISCSIDriver:
    """SR type "iscsi"."""

    name = "iscsi"
    description = "LUNs of an iSCSI target, shared by all hosts that reach it"
    vendor = "xapi_migrate"
    version = "0.1.0"
    generation = GENERATION
    features = frozenset({"VDI_CREATE", "VDI_DESTROY", "VDI_RESIZE", "VDI_MIRROR", "SHARED"})
    formats = ("raw",)

    def open_sr(self, config: SRConfig) -> ISRBackend:
        from sm_iscsi.backend import ISCSIBackend, Target

        given = {**_DEFAULTS, **config.device_config}
        for key, pattern in _PATTERNS.items():
            if not re.fullmatch(pattern, given.get(key, "")):
                shown = "***" if key == "chappassword" else given.get(key, "")
                raise InvalidValue(f"device_config:{key}", shown)
        portal = f"{given['target']}:{given['port']}"
        target = Target(portal, given["targetIQN"], given["initiatorIQN"], given["chapuser"], given["chappassword"])
        catalogue, *luns = numbers(given["luns"])
        if not luns:
            raise InvalidValue("device_config:luns", f"{given['luns']}: the first is the catalogue, others are needed")
        return ISRBackend(ISCSIBackend(services_of(config), config.uuid, target, catalogue, luns))


def numbers(text: str) -> list[int]:
    """ "1-3,7" as numbers, each once. InvalidValue."""
    found: dict[int, None] = {}
    said = 0
    for part in text.split(","):
        first, _, last = part.partition("-")
        part_of_them = range(int(first), int(last or first) + 1)
        said += len(part_of_them)
        if said > MOST_LUNS:
            break
        found.update(dict.fromkeys(part_of_them))
    if not found or said > MOST_LUNS:
        raise InvalidValue("device_config:luns", text[:200])
    return list(found)
