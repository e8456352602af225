"""The bridges of a host in memory: those that its FakeHypervisor knows."""

from __future__ import annotations

from xapi_migrate.testing.fake_hypervisor import FakeHypervisor


class FakeBridges:
    """See `xapi_migrate.toolstack.bridges.Bridges`."""

    def __init__(self, hypervisor: FakeHypervisor) -> None:
        self._there = hypervisor.bridges

    def lacking(self, name: str) -> str:
        return "" if name in self._there else "this host has no such bridge"

    async def make(self, name: str, mtu: int) -> None:
        if name in self._there:
            raise OSError(f"there is an interface named {name}")
        self._there.add(name)

    async def remove(self, name: str) -> None:
        self._there.discard(name)
