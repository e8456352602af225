"""The bridges of this host that networks are on."""

from __future__ import annotations

from typing import Protocol

from xapi_migrate.domains import taps
from xapi_migrate.processes.in_thread import in_thread


class Bridges(Protocol):
    """What networks need of the host's kernel."""

    def lacking(self, name: str) -> str:
        """Why no VM can be put on the bridge of this name now; "" if one can."""

    async def make(self, name: str, mtu: int) -> None:
        """A new bridge, up and without a port. OSError with a sentence."""

    async def remove(self, name: str) -> None:
        """The bridge is gone; no bridge, no harm. OSError."""


class LinuxBridges:
    """The kernel's own bridges."""

    def lacking(self, name: str) -> str:
        if not taps.is_bridge(name):
            return "this host has no such bridge"
        return taps.forbidden()

    async def make(self, name: str, mtu: int) -> None:
        if not taps.BRIDGE_NAME.fullmatch(name):
            raise OSError(f"{name[:40]!r} cannot be the name of a bridge")
        await in_thread(taps.ip, "link", "add", "name", name, "mtu", str(mtu), "type", "bridge")
        await in_thread(taps.ip, "link", "set", "dev", name, "up")

    async def remove(self, name: str) -> None:
        if taps.is_bridge(name):
            await in_thread(taps.ip, "link", "del", "dev", name)
