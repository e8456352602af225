"""Storage of the upstream's, looked into by a backend here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from twisted.logger import Logger
from zope.interface import directlyProvides

from ..errors import OperationNotAllowed, SrBackendFailure
from ..sm.interfaces import ISR, SRConfig, VDIInfo

SR_MOUNT = "/run/sr-mount"
_FILE_TYPES = frozenset({"ext", "nfs", "xfs", "smb", "cephfs", "glusterfs"})
"""Of xapi's SR types those whose VDIs are image files that it mounts below SR_MOUNT."""

log = Logger()


class LentSR:
    """An ISR whose VDIs are the upstream's: it alone makes and destroys them, so that its records and its storage stay
    one."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        directlyProvides(self, ISR)

    async def vdi_create(self, uuid: str, virtual_size: int) -> VDIInfo:
        """The upstream has made it: here it is only looked for. SrBackendFailure if it is not there or too small, so
        that what the upstream calls this SR is not what is attached here."""
        for info in await self._inner.scan():
            if info.uuid == uuid and info.virtual_size >= virtual_size:
                found: VDIInfo = info
                return found
        raise SrBackendFailure(
            "VDI.create", f"the toolstack has created VDI {uuid}, but it is not found in SR {self._inner.uuid} here"
        )

    async def vdi_destroy(self, uuid: str) -> None:
        """Nothing: the upstream's VDI.destroy follows."""
        log.info("VDI {uuid} is left to the toolstack", uuid=uuid)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


def lent(make: Callable[[SRConfig, Any], ISR]) -> Callable[[SRConfig, Any], ISR]:
    """What makes ISRs, for a daemon beside an upstream."""

    def make_lent(config: SRConfig, driver: Any) -> ISR:
        sr: Any = LentSR(make(config, driver))
        found: ISR = sr
        return found

    return make_lent


def backend_of(
    sr: Mapping[str, Any], device_config: Mapping[str, str], known: Callable[[str], bool]
) -> tuple[str, dict[str, str]]:
    """The backend here for an SR of the upstream's (its record and its PBD's device_config), and how that is told where
    it is. OperationNotAllowed if there is none. `known`: whether there is a backend of this name."""
    kind = str(sr["type"])
    if known(kind):
        return kind, dict(device_config)
    if kind in _FILE_TYPES and known("file"):
        return "file", {"location": f"{SR_MOUNT}/{sr['uuid']}", "format": "vhd"}
    raise OperationNotAllowed(
        f"The SR {sr['name_label']} is of type {kind}, for which no storage backend is installed."
    )
