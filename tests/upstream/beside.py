"""A host beside a toolstack: its engine sends the toolstack's VMs, of which it has the same storage."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
from twisted.internet import defer, reactor

from tests.toolstack.small_host import MemoryDriver
from tests.upstream.overlaid import Overlaid
from tests.xenapi.two_servers import FREE_MEMORY, Server
from xapi_migrate.config import Config
from xapi_migrate.migration.engine import Engine
from xapi_migrate.migration.host import Host
from xapi_migrate.sm.discovery import Drivers
from xapi_migrate.sm.interfaces import SRConfig
from xapi_migrate.store.records import Records
from xapi_migrate.testing.fake_bridges import FakeBridges
from xapi_migrate.testing.fake_domains import FakeDomains
from xapi_migrate.testing.fake_hypervisor import FakeHypervisor
from xapi_migrate.testing.fake_sm import FakeLuns, FakeSR
from xapi_migrate.testing.memory_journals import MemoryJournals
from xapi_migrate.testing.two_hosts import TIMES
from xapi_migrate.toolstack.this_host import prepare_host
from xapi_migrate.toolstack.toolstack import make_toolstack
from xapi_migrate.upstream.address import parse_upstream
from xapi_migrate.upstream.lease import Leases
from xapi_migrate.upstream.lent import lent
from xapi_migrate.upstream.moves import UpstreamMoves
from xapi_migrate.upstream.opening import front, open_overlay, stand_beside
from xapi_migrate.upstream.shadow import Shadows
from xapi_migrate.uris.peer import HttpPeer
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
    engine: Engine
    records: Records
    disks: dict[str, FakeSR]


@asynccontextmanager
async def beside(toolstack: Server, kept: Kept) -> AsyncIterator[Beside]:
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

    own = make_toolstack(server, drivers, lent(make_sr), domains, FakeBridges(hypervisor), ref, kept.folder, reactor)
    await own.open()
    host = Host(
        ref=ref, config=Config(kept.folder, times=TIMES, insecure_storage=True), clock=reactor,
        records=records, toolstack=own, domains=domains, tasks=server.tasks, journals=kept.journals,
        peers=lambda uris: HttpPeer(reactor, uris, TIMES), free_memory=lambda: FREE_MEMORY, stories=kept.folder,
    )  # fmt: skip
    engine = Engine(host, lambda capability: [])
    leases = Leases(upstream.client, kept.folder / "upstream")
    moves = UpstreamMoves(
        upstream.client, leases, Shadows(records, own.storage, ref, drivers.usable.__contains__), engine, reactor
    )
    server.dispatcher.register(moves)
    await engine.start(server.tasks.resume)
    await moves.begin()
    overlay = open_overlay(upstream, server, 300 << 10)
    port = reactor.listenTCP(0, front(overlay, None), interface="127.0.0.1")  # type: ignore[attr-defined]
    try:
        yield Beside(Overlaid(overlay, server, port.getHost().port), leases, engine, records, disks)
    finally:
        await defer.maybeDeferred(port.stopListening)
        moves.stop()
        server.stop()
        await engine.stop()
        overlay.close()
        await own.close()
        await domains.close()
        await records.close()
