"""A host beside a toolstack: its engine sends the toolstack's VMs, of which it has the same storage."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import XenAPI
from twisted.internet import defer, reactor, threads

from tests.toolstack.small_host import MemoryDriver
from tests.upstream.overlaid import Overlaid
from tests.upstream.toolstacks import Toolstack, toolstack
from tests.xenapi.two_servers import FREE_MEMORY, PASSWORD, USER, Server, one_server, until
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
from xapi_migrate.toolstack.plugin_calls import Elsewhere
from xapi_migrate.toolstack.this_host import prepare_host
from xapi_migrate.toolstack.toolstack import make_toolstack, register_plugin_calls
from xapi_migrate.upstream.address import parse_upstream
from xapi_migrate.upstream.arrival import Arrivals
from xapi_migrate.upstream.client import UpstreamClient
from xapi_migrate.upstream.keeper import UpstreamKeeper
from xapi_migrate.upstream.lease import Leases
from xapi_migrate.upstream.lent import lent
from xapi_migrate.upstream.moves import UpstreamMoves
from xapi_migrate.upstream.opening import front, open_overlay, stand_beside
from xapi_migrate.upstream.receives import UpstreamReceives
from xapi_migrate.upstream.shadow import Shadows
from xapi_migrate.uris.offer import Listener, build
from xapi_migrate.uris.peer import HttpPeer
from xapi_migrate.uris.tree import MigrationTree
from xapi_migrate.xenapi.own_calls import data_model
from xapi_migrate.xenapi.server import make_server


@attrs.define
class Kept:
    """What outlives a daemon beside a toolstack."""

    folder: Path
    luns: FakeLuns
    journals: MemoryJournals = attrs.Factory(MemoryJournals)
    stalled: bool = False
    """Copies stand still."""

    @property
    def url(self) -> str:
        return f"sqlite:///{self.folder / 'records.db'}"


@attrs.define
class Beside:
    overlaid: Overlaid
    leases: Leases
    arrivals: Arrivals
    client: UpstreamClient
    engine: Engine
    records: Records
    disks: dict[str, FakeSR]
    elsewhere: tuple[Elsewhere, ...]
    _stop_listening: Callable[[], Any]
    _connections: list[Any]

    def die(self) -> None:
        """As if it were killed, after the code that is running now: no answer, nothing done any more."""

        def dead() -> None:
            self._stop_listening()
            for connection in self._connections:
                connection.transport.abortConnection()
            defer.ensureDeferred(self.engine.stop())

        reactor.callLater(0, dead)  # type: ignore[attr-defined]


@asynccontextmanager
async def beside(toolstack: Toolstack, kept: Kept, at: int = 0) -> AsyncIterator[Beside]:
    """`at`: the port, if it is to be that of an earlier one."""
    kept.folder.mkdir(exist_ok=True)
    records = Records(data_model(), reactor, kept.url)
    await records.open()
    upstream = stand_beside(parse_upstream(toolstack.url), records, reactor)
    server = make_server(records, [], reactor, sessions=upstream.sessions, elsewhere=upstream.elsewhere)
    drivers = Drivers({"memory": MemoryDriver()}, ())
    ref = await prepare_host(records, kept.folder, drivers.usable, "127.0.0.1", "beside")
    hypervisor = FakeHypervisor(reactor, "beside")
    domains = FakeDomains(hypervisor)
    await domains.open()
    disks: dict[str, FakeSR] = {}

    def make_sr(config: SRConfig, driver: object) -> Any:
        made = disks[config.uuid] = FakeSR(reactor, kept.luns, toolstack.disks[config.uuid].storage)  # type: ignore[arg-type]
        made.uuid, made.stalled = config.uuid, kept.stalled
        return made

    claims = Claims(lambda: FREE_MEMORY, domains.untouched)
    own = make_toolstack(
        server, drivers, lent(make_sr), domains, FakeBridges(hypervisor), ref, kept.folder, reactor, claims
    )
    await own.open()
    host = Host(
        ref=ref, config=Config(kept.folder, times=TIMES, insecure_storage=True), clock=reactor,
        records=records, toolstack=own, domains=domains, tasks=server.tasks, journals=kept.journals,
        peers=lambda uris: HttpPeer(reactor, uris, TIMES), claims=claims, stories=kept.folder,
    )  # fmt: skip
    listeners: list[Listener] = []
    engine = Engine(host, lambda capability: build(capability, listeners, ("http",)))
    shadows = Shadows(records, own.storage, ref, drivers.usable.__contains__)
    arrivals = Arrivals(upstream.client, kept.folder / "arrivals", reactor)
    await arrivals.load()
    host.keeper = UpstreamKeeper(upstream.client, arrivals, shadows, records, reactor)
    receives = UpstreamReceives(upstream.client, arrivals, shadows, engine, reactor)
    leases = Leases(upstream.client, kept.folder / "upstream")
    moves = UpstreamMoves(upstream.client, leases, shadows, engine, reactor)
    server.dispatcher.register(moves, receives)
    register_plugin_calls(server, engine, host, own, SMServices(reactor, kept.folder), moves, receives, lent=True)
    await engine.start(server.tasks.resume)
    await receives.begin()
    await moves.begin()
    overlay = open_overlay(upstream, server, 300 << 10)
    site, connections = front(overlay, MigrationTree(engine, 4 << 20, reactor, 10)), []
    build_protocol = site.buildProtocol

    def noted(address: Any) -> Any:
        connections.append(build_protocol(address))
        return connections[-1]

    site.buildProtocol = noted  # type: ignore[method-assign]
    port = reactor.listenTCP(at, site, interface="127.0.0.1")  # type: ignore[attr-defined]
    listeners.append(Listener("http", "127.0.0.1", port.getHost().port))
    stopped: list[defer.Deferred[Any]] = []

    def stop_listening() -> defer.Deferred[Any]:
        if not stopped:
            stopped.append(defer.maybeDeferred(port.stopListening))
        return stopped[0]

    try:
        yield Beside(
            Overlaid(overlay, server, port.getHost().port), leases, arrivals, upstream.client, engine, records, disks,
            (moves, receives), stop_listening, connections,
        )  # fmt: skip
    finally:
        await stop_listening()
        moves.stop()
        receives.stop()
        server.stop()
        await engine.stop()
        overlay.close()
        await own.close()
        await domains.close()
        await records.close()


@attrs.define
class Two:
    """The toolstack, and a daemon that stands alone."""

    source: Toolstack
    destination: Server
    until = staticmethod(until)


@asynccontextmanager
async def world(tmp_path: Path, kind: str, stalled: bool = False) -> AsyncIterator[tuple[Two, Kept]]:
    """A toolstack of one of the KINDS, the receiver, and what a host beside the toolstack keeps."""
    luns = FakeLuns()
    async with (
        toolstack(kind, tmp_path / "toolstack", luns) as source,
        one_server(tmp_path / "receiver", "receiver", luns) as receiver,
    ):
        yield Two(source, receiver), Kept(tmp_path / "beside", luns, stalled=stalled)


def session_of(here: Beside) -> Any:
    session = XenAPI.Session(here.overlaid.url)
    session.xenapi.login_with_password(USER, PASSWORD, "1.0", "tests")
    return session


async def halted_vm(toolstack: Toolstack) -> tuple[str, str, list[str]]:
    """ref, uuid, VDIs."""
    vm = await toolstack.new_vm(await toolstack.new_sr(), running=False, disks=2)
    record = toolstack.records.get("VM", vm)
    vdis = [toolstack.records.get("VBD", vbd)["VDI"] for vbd in record["VBDs"]]
    [storage] = [sr.storage for sr in toolstack.disks.values()]
    for number, vdi in enumerate(vdis):
        storage.disks[toolstack.records.get("VDI", vdi)["uuid"]][:5] = b"disk%d" % number
    return vm, record["uuid"], vdis


async def offer(receiver: Server) -> list[str]:
    sr = await receiver.new_sr()
    return list(await receiver.client(lambda x: x.VM.receive(sr)))


@attrs.define
class Begun:
    """A VM.migrate that is under way: the session that called it, and its task."""

    vm: str
    uuid: str
    vdis: list[str]
    uris: list[str]
    session: Any
    task: str


async def begin(two: Two, here: Beside) -> Begun:
    """One begins, and the engine has it."""
    vm, uuid, vdis = await halted_vm(two.source)
    uris = await offer(two.destination)
    session = await threads.deferToThread(session_of, here)
    task = await threads.deferToThread(session.xenapi.Async.VM.migrate, vm, uris, {}, {})
    await two.until(lambda: here.engine._outgoing)
    return Begun(vm, uuid, vdis, uris, session, task)
