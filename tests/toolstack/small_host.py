"""One host with storage and a hypervisor in memory, called as a client calls it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
from twisted.internet import reactor
from zope.interface import implementer

from xapi_migrate.errors import InvalidValue
from xapi_migrate.migration.claims import Claims
from xapi_migrate.sm.discovery import Drivers
from xapi_migrate.sm.interfaces import ISMDriver, SRConfig
from xapi_migrate.store.records import Records
from xapi_migrate.testing.fake_bridges import FakeBridges
from xapi_migrate.testing.fake_domains import FakeDomains
from xapi_migrate.testing.fake_hypervisor import FakeHypervisor
from xapi_migrate.testing.fake_sm import FakeSR, FakeStorage
from xapi_migrate.toolstack.this_host import prepare_host
from xapi_migrate.toolstack.toolstack import Toolstack, make_toolstack
from xapi_migrate.xenapi.own_calls import data_model
from xapi_migrate.xenapi.server import XenAPIServer, make_server


@implementer(ISMDriver)
class MemoryDriver:
    name = "memory"
    description = "Disks in memory."
    vendor = "tests"
    version = "1"
    generation = 1
    features = frozenset({"VDI_CREATE", "VDI_DESTROY", "VDI_RESIZE"})
    formats = ("raw",)

    def open_sr(self, config: SRConfig) -> Any:
        if "bad" in config.device_config:
            raise InvalidValue("device_config", "bad")
        return config


@attrs.define
class World:
    """What outlives a daemon: disks by SR uuid, and who uses them; domains."""

    hypervisor: FakeHypervisor = attrs.Factory(lambda: FakeHypervisor(reactor))
    disks: dict[str, FakeStorage] = attrs.Factory(dict)
    broken: set[str] = attrs.Factory(set)
    srs: dict[str, FakeSR] = attrs.Factory(dict)
    kind: type[FakeSR] = FakeSR
    free_memory: int = 1 << 40
    made: Callable[[str], object] = lambda uuid: None
    """Called with the uuid of each SR that is opened."""

    def make_sr(self, config: SRConfig, driver: Any) -> Any:
        self.made(config.uuid)
        driver.open_sr(config)
        if config.uuid not in self.srs:
            storage = self.disks.setdefault(config.uuid, FakeStorage(uuid=config.uuid))
            self.srs[config.uuid] = self.kind(reactor, storage=storage)  # type: ignore[arg-type]
        made = self.srs[config.uuid]
        made.close_views()
        if config.uuid in self.broken:
            made.fail("attach")
        return made


@attrs.define
class SmallHost:
    server: XenAPIServer
    toolstack: Toolstack
    host: str
    session: str
    world: World

    async def call(self, method: str, *params: Any) -> Any:
        return await self.server.dispatcher.call(method, [self.session, *params], "here")

    def get(self, cls: str, ref: str) -> Any:
        return self.server.records.get(cls, ref)

    async def sr(self, **config: str) -> Any:
        return await self.call("SR.create", self.host, config, 0, "local", "", "memory", "user", False, {})

    async def vm(self, sr: str, disks: int = 1) -> Any:
        fields = {"name_label": "demo", "memory_static_max": "67108864", "VCPUs_max": "1"}
        vm = await self.call("VM.create", fields)
        for number in range(disks):
            vdi = await self.call("VDI.create", {"SR": sr, "virtual_size": "1000", "name_label": f"disk {number}"})
            await self.call("VBD.create", {"VM": vm, "VDI": vdi, "userdevice": str(disks - 1 - number)})
        return vm

    def users(self, sr: str) -> list[str]:
        """What is left attached in an SR."""
        return self.toolstack.sr(sr).left_behind  # type: ignore[attr-defined, no-any-return]


@asynccontextmanager
async def small_host(
    tmp_path: Path, world: World | None = None, without_bridge: str = "refuse",
    begin: Callable[[SmallHost], Awaitable[None]] | None = None,
) -> AsyncIterator[SmallHost]:  # fmt: skip
    """`begin` is awaited where the daemon takes up what an earlier one left."""
    world = world or World()
    records = Records(data_model(), reactor, f"sqlite:///{tmp_path}/records.db")
    await records.open()
    drivers = Drivers({"memory": MemoryDriver()}, ())
    host = await prepare_host(records, tmp_path, drivers.usable, "127.0.0.1")
    server = make_server(records, [], reactor, lambda: host)
    domains = FakeDomains(world.hypervisor)
    await domains.open()
    toolstack = make_toolstack(
        server,
        drivers,
        world.make_sr,
        domains,
        FakeBridges(world.hypervisor),
        host,
        tmp_path,
        reactor,
        Claims(lambda: world.free_memory, domains.untouched),
        without_bridge,
    )
    await toolstack.open()
    here = SmallHost(server, toolstack, host, server.sessions.open("root", "here"), world)
    if begin is not None:
        await begin(here)
    server.tasks.fail_orphans()
    await toolstack.machines.resync()
    try:
        yield here
    finally:
        server.stop()
        await toolstack.close()
        await domains.close()
        await records.close()
