"""Two whole servers on loopback, by all but their hypervisors and disks: the real API, toolstack, engine and migration
URIs. XenAPI clients reach them as they reach a daemon."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import XenAPI
from twisted.internet import defer, reactor, task, threads

from tests.toolstack.small_host import MemoryDriver
from xapi_migrate.config import Config
from xapi_migrate.migration.claims import Claims
from xapi_migrate.migration.engine import Engine
from xapi_migrate.migration.host import Host
from xapi_migrate.sm.discovery import Drivers
from xapi_migrate.sm.interfaces import SRConfig
from xapi_migrate.sm.services import SMServices
from xapi_migrate.store.records import Records
from xapi_migrate.testing.fake_bridges import FakeBridges
from xapi_migrate.testing.fake_domains import FakeDomains
from xapi_migrate.testing.fake_hypervisor import FakeHypervisor
from xapi_migrate.testing.fake_sm import FakeLuns, FakeSR
from xapi_migrate.testing.memory_journals import MemoryJournals
from xapi_migrate.testing.two_hosts import TIMES
from xapi_migrate.toolstack.importing import MetadataImporting
from xapi_migrate.toolstack.profile import Profile
from xapi_migrate.toolstack.this_host import prepare_host
from xapi_migrate.toolstack.toolstack import Toolstack, make_toolstack, register_migration_calls
from xapi_migrate.uris.offer import Listener, build
from xapi_migrate.uris.peer import HttpPeer
from xapi_migrate.uris.tree import MigrationTree
from xapi_migrate.xenapi.migration_calls import MigrationCalls
from xapi_migrate.xenapi.own_calls import data_model
from xapi_migrate.xenapi.passwords import PasswordFile, user_line
from xapi_migrate.xenapi.server import XenAPIServer, make_server

USER, PASSWORD = "root", "correct horse"
DISK = 4 << 20
FREE_MEMORY = 1 << 40


class Door:
    """Where a server listens. `shut`: nobody is let in and all are thrown out; `open` it again, at the same port."""

    def __init__(self, site: Any) -> None:
        self._site = site
        self._inside: list[Any] = []
        build = site.buildProtocol

        def noted(address: Any) -> Any:
            self._inside.append(build(address))
            return self._inside[-1]

        site.buildProtocol = noted
        self._port: Any = None
        self.number = 0
        self.open()

    def open(self) -> None:
        self._port = reactor.listenTCP(self.number, self._site, interface="127.0.0.1")  # type: ignore[attr-defined]
        self.number = self._port.getHost().port

    def shut(self) -> defer.Deferred[None]:
        for protocol in self._inside:
            transport = protocol.transport
            if transport is not None:
                transport.abortConnection()
        self._inside.clear()
        port, self._port = self._port, None
        return defer.maybeDeferred(port.stopListening) if port is not None else defer.succeed(None)

    def close(self) -> defer.Deferred[None]:
        """Nobody is let in; who is inside may stay."""
        port, self._port = self._port, None
        return defer.maybeDeferred(port.stopListening) if port is not None else defer.succeed(None)


@attrs.define(eq=False)
class Server:
    """One of them. `pace` blocks of 4096 bytes are copied every 50 ms: lower it for a migration that takes long."""

    name: str
    server: XenAPIServer
    toolstack: Toolstack
    engine: Engine
    journals: MemoryJournals
    hypervisor: FakeHypervisor
    host: str
    port: int
    disks: dict[str, FakeSR]
    stories: Path
    door: Door

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def records(self) -> Records:
        return self.server.records

    def client(self, work: Callable[[Any], Any]) -> defer.Deferred[Any]:
        """`work(xenapi)` in a thread, by the official library, logged in."""

        def run() -> Any:
            session = XenAPI.Session(self.url)
            session.xenapi.login_with_password(USER, PASSWORD, "2.20", "tests")
            try:
                return work(session.xenapi)
            finally:
                session.xenapi.session.logout()
                session("close")()

        return threads.deferToThread(run)

    async def call(self, method: str, *params: Any) -> Any:
        session = self.server.sessions.open(USER, "here")
        try:
            return await self.server.dispatcher.call(method, [session, *params], "here")
        finally:
            self.server.sessions.logout(session)

    async def new_sr(self, label: str = "local") -> str:
        ref = await self.call("SR.create", self.host, {}, "0", label, "", "memory", "user", False, {})
        return str(ref)

    async def new_vm(self, sr: str, running: bool = True, disks: int = 1, vifs: int = 1) -> str:
        fields = {"name_label": "demo", "memory_static_max": str(64 << 20), "VCPUs_max": "1"}
        vm: str = await self.call("VM.create", fields)
        for number in range(disks):
            vdi = await self.call("VDI.create", {"SR": sr, "virtual_size": str(DISK), "name_label": f"disk {number}"})
            await self.call("VBD.create", {"VM": vm, "VDI": vdi, "userdevice": str(number)})
        for number in range(vifs):
            await self.call("VIF.create", {"VM": vm, "network": self.network, "device": str(number)})
        if running:
            await self.call("VM.start", vm, False, False)
        return vm

    @property
    def network(self) -> str:
        return self.records.refs("network")[0]

    def maps(self, vm: str, sr: str, network: str) -> tuple[dict[str, str], dict[str, str]]:
        """Whole maps: every disk to one SR, every VIF to one network."""
        vbds = [self.records.get("VBD", ref) for ref in self.records.get("VM", vm)["VBDs"]]
        return {r["VDI"]: sr for r in vbds}, dict.fromkeys(self.records.get("VM", vm)["VIFs"], network)

    def slow(self) -> None:
        """Copies from here crawl, until the end of the test."""
        for sr in self.disks.values():
            sr._pace = 1


@attrs.define
class TwoServers:
    source: Server
    destination: Server

    async def until(self, condition: Callable[[], object], otherwise: str = "it never came true") -> None:
        await until(condition, otherwise)


async def until(condition: Callable[[], object], otherwise: str = "it never came true") -> None:
    end = reactor.seconds() + 60  # type: ignore[attr-defined]
    while not condition():
        assert reactor.seconds() < end, otherwise  # type: ignore[attr-defined]
        await task.deferLater(reactor, 0.01)


@asynccontextmanager
async def one_server(folder: Path, name: str, luns: FakeLuns, profile: Profile | None = None) -> AsyncIterator[Server]:
    folder.mkdir(exist_ok=True)
    (folder / "users").write_text(user_line(USER, PASSWORD, (16, 1, 1)))
    records = Records(data_model(), reactor)
    await records.open()
    drivers = Drivers({"memory": MemoryDriver()}, ())
    ref = await prepare_host(records, folder, drivers.usable, "127.0.0.1", name, profile)
    server = make_server(records, [PasswordFile(folder / "users")], reactor, lambda: ref)
    hypervisor = FakeHypervisor(reactor, name)
    domains = FakeDomains(hypervisor)
    await domains.open()
    disks: dict[str, FakeSR] = {}

    def make_sr(config: SRConfig, driver: object) -> Any:
        made = disks[config.uuid] = FakeSR(reactor, luns)  # type: ignore[arg-type]
        made.uuid = config.uuid
        return made

    claims = Claims(lambda: FREE_MEMORY, domains.untouched)
    toolstack = make_toolstack(server, drivers, make_sr, domains, FakeBridges(hypervisor), ref, folder, reactor, claims)
    await toolstack.open()
    config = Config(folder, times=TIMES, insecure_storage=True, schemes=("http",))
    journals, stories = MemoryJournals(), folder / "migrations"
    stories.mkdir(exist_ok=True)
    host = Host(
        ref=ref, config=config, clock=reactor, records=records, toolstack=toolstack, domains=domains,
        tasks=server.tasks, journals=journals, peers=lambda uris: HttpPeer(reactor, uris, TIMES),
        claims=claims, stories=stories,
    )  # fmt: skip
    listeners: list[Listener] = []
    engine = Engine(host, lambda capability: build(capability, listeners, ("http",)))
    server.dispatcher.register(MigrationCalls(records, engine))
    register_migration_calls(server, engine, host, toolstack, MemoryJournals(), SMServices(reactor, folder))
    await engine.start(server.tasks.resume)
    server.start()
    imports = server.imports(MetadataImporting(records), 4 << 20)
    site = server.site(MigrationTree(engine, 4 << 20, reactor, 10), imports=imports)
    door = Door(site)
    listeners.append(Listener("http", "127.0.0.1", door.number))
    try:
        yield Server(name, server, toolstack, engine, journals, hypervisor, ref, door.number, disks, stories, door)
    finally:
        server.stop()
        await door.close()
        await engine.stop()
        await toolstack.close()
        await domains.close()
        for guest in hypervisor.guests.values():
            hypervisor.halt(guest, guest.state)
        await records.close()
        await task.deferLater(reactor, 0.05)  # what was cut is told to both of its ends


@asynccontextmanager
async def two_servers(tmp_path: Path, profile: Profile | None = None) -> AsyncIterator[TwoServers]:
    luns = FakeLuns()
    async with (
        one_server(tmp_path / "source", "source", luns, profile) as source,
        one_server(tmp_path / "destination", "destination", luns, profile) as destination,
    ):
        yield TwoServers(source, destination)
