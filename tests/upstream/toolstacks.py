"""The two kinds of toolstack beside which tests put a host: another daemon of this kind, and the simulated xapi."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Protocol

import attrs
from twisted.internet import threads

from tests.upstream.simulated.database import Database
from tests.upstream.simulated.server import SimulatedXapi
from tests.upstream.simulated.storage import MemoryDisks
from tests.xenapi.two_servers import DISK, PASSWORD, USER, one_server
from xapi_migrate.mac import new_mac
from xapi_migrate.testing.fake_sm import FakeLuns, FakeStorage

KINDS = ("daemon", "xapi")


class SomeRecords(Protocol):
    def get(self, cls: str, ref: str) -> Any: ...
    def refs(self, cls: str) -> list[str]: ...
    def update(self, cls: str, ref: str, **fields: Any) -> None: ...
    def destroy(self, cls: str, ref: str) -> None: ...


class SomeSR(Protocol):
    @property
    def storage(self) -> FakeStorage: ...


class Toolstack(Protocol):
    """What tests need of an upstream, as `tests/xenapi/two_servers.py:Server` has it. Control domains are left out."""

    @property
    def url(self) -> str: ...
    @property
    def records(self) -> SomeRecords: ...
    @property
    def disks(self) -> Any:
        """SRs by their uuid (SomeSR)."""

    @property
    def network(self) -> str: ...
    async def new_sr(self, label: str = "local") -> str: ...
    async def new_vm(self, sr: str, running: bool = True, disks: int = 1, vifs: int = 1) -> str: ...
    def maps(self, vm: str, sr: str, network: str) -> tuple[dict[str, str], dict[str, str]]: ...


@attrs.define
class _Records:
    database: Database

    def get(self, cls: str, ref: str) -> dict[str, Any]:
        return dict(self.database.find(cls, ref))

    def refs(self, cls: str) -> list[str]:
        return [ref for ref, one in self.database.records[cls].items() if not one.get("is_control_domain")]

    def update(self, cls: str, ref: str, **fields: Any) -> None:
        self.database.update(cls, ref, **fields)

    def destroy(self, cls: str, ref: str) -> None:
        self.database.destroy(cls, ref)


@attrs.define
class _SR:
    storage: FakeStorage


@attrs.define
class SimulatedToolstack:
    """The simulated xapi, with SRs in memory."""

    xapi: SimulatedXapi
    disks: dict[str, _SR] = attrs.Factory(dict)

    @property
    def url(self) -> str:
        return self.xapi.upstream

    @property
    def records(self) -> _Records:
        return _Records(self.xapi.database)

    @property
    def network(self) -> str:
        return self.xapi.database.network

    async def new_sr(self, label: str = "local") -> str:
        database = self.xapi.database
        sr = database.create("SR", name_label=label, type="memory", content_type="user")
        database.create("PBD", SR=sr, host=database.host, currently_attached=True)
        uuid = database.find("SR", sr)["uuid"]
        made = self.disks[uuid] = _SR(FakeStorage(uuid=uuid))
        database.storages[sr] = MemoryDisks(made.storage.disks)
        return sr

    async def new_vm(self, sr: str, running: bool = True, disks: int = 1, vifs: int = 1) -> str:
        database = self.xapi.database
        state = {"power_state": "Running", "resident_on": database.host} if running else {"power_state": "Halted"}
        vm = database.create(
            "VM", name_label="demo", is_a_template=False, VCPUs_max=1, VCPUs_at_startup=1, memory_static_max=64 << 20,
            memory_dynamic_max=64 << 20, memory_dynamic_min=64 << 20, memory_target=64 << 20, **state,
        )  # fmt: skip
        storage = self.disks[database.find("SR", sr)["uuid"]].storage
        for number in range(disks):
            vdi = database.create(
                "VDI", SR=sr, virtual_size=DISK, name_label=f"disk {number}", type="user", managed=True
            )
            uuid = database.find("VDI", vdi)["uuid"]
            database.update("VDI", vdi, location=uuid)
            storage.disks[uuid] = bytearray(DISK)
            database.create(
                "VBD", VM=vm, VDI=vdi, userdevice=str(number), type="Disk", mode="RW", currently_attached=running
            )
        for number in range(vifs):
            database.create("VIF", VM=vm, network=self.network, device=str(number), MAC=new_mac(), MTU=1500)
        return vm

    def maps(self, vm: str, sr: str, network: str) -> tuple[dict[str, str], dict[str, str]]:
        record = self.records.get("VM", vm)
        vdis = [self.records.get("VBD", vbd)["VDI"] for vbd in record["VBDs"]]
        return dict.fromkeys(vdis, sr), dict.fromkeys(record["VIFs"], network)


@asynccontextmanager
async def toolstack(kind: str, folder: Path, luns: FakeLuns) -> AsyncIterator[Toolstack]:
    """One of the KINDS."""
    if kind == "daemon":
        async with one_server(folder, "toolstack", luns) as server:
            yield server
    else:
        xapi = SimulatedXapi({USER: (PASSWORD, "root")})
        xapi.start()
        xapi.database.add_control_domain()
        try:
            yield SimulatedToolstack(xapi)
        finally:
            await threads.deferToThread(xapi.stop)
