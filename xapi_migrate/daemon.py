"""The daemon: all parts put together, opened in the order in which they need each other, closed in reverse.

Closing lets go: domains, datapaths, copiers and the iSCSI target live on, and the next daemon finds them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

from twisted.internet import defer
from twisted.internet.interfaces import IListeningPort, IStreamServerEndpoint
from twisted.logger import Logger

from . import own_process, tls
from .config import Config
from .domains.interfaces import IDomainDriver
from .domains.qemu import QEMUDriver
from .domains.qemu_config import DomainTimeouts, QEMUConfig
from .domains.xen import XenDriver
from .domains.xen_config import XenConfig
from .entrance import Entrance, Room
from .errors import InvalidValue
from .migration.claims import Claims
from .migration.engine import Engine
from .migration.host import Host
from .migration.interfaces import IPeer
from .migration.journal import FileJournals
from .migration.stops import FOLDER, Stops, nowhere
from .pool.member_resource import MemberResource
from .pool.members import Members
from .pool.pool import Pool
from .pool.routing import Routing
from .pool.wire import PATH as MEMBER_PATH
from .pool.wire import Address
from .processes import remains
from .processes.folder_lock import FolderLock
from .processes.in_thread import in_thread
from .sm.discovery import discover
from .sm.interfaces import ISR, ISMDriver, SRConfig
from .sm.repository import open_repository
from .sm.services import SMServices
from .sm.timeouts import configured
from .store.records import Records
from .toolstack.bridges import LinuxBridges
from .toolstack.importing import MetadataImporting
from .toolstack.placement import Placement
from .toolstack.plugin_calls import Elsewhere
from .toolstack.profile import PROFILES
from .toolstack.this_host import prepare_host
from .toolstack.toolstack import Toolstack, make_toolstack, register_migration_calls, register_plugin_calls
from .upstream.abandoned import ARRIVALS, LEASES, Abandoned
from .upstream.address import parse_upstream
from .upstream.arrival import Arrivals
from .upstream.keeper import UpstreamKeeper
from .upstream.lease import Leases
from .upstream.lent import lent
from .upstream.moves import UpstreamMoves
from .upstream.opening import Beside, Limits, front, open_overlay, stand_beside
from .upstream.plugin import plugin_site
from .upstream.receives import UpstreamReceives
from .upstream.shadow import Shadows
from .uris import offer
from .uris.capability import Capability
from .uris.peer import HttpPeer
from .uris.reach import Reach
from .uris.tree import MigrationTree
from .xenapi.checkers import AnyOf, make_checker
from .xenapi.local_socket import listen_locally
from .xenapi.migration_calls import MigrationCalls
from .xenapi.own_calls import data_model
from .xenapi.server import XenAPIServer, make_server

log = Logger(namespace="xapi_migrate.daemon")


class Daemon:
    """One running daemon; made by `open_daemon`."""

    def __init__(self) -> None:
        self.ports: list[IListeningPort] = []
        self.bound: list[offer.Listener] = []
        self._closing: list[Callable[[], Awaitable[None] | None]] = []

    def closes(self, step: Callable[[], Awaitable[None] | None]) -> None:
        """What was opened now is closed by `step`, before what was opened earlier."""
        self._closing.append(step)

    async def close(self) -> None:
        """Let go of everything; one part that fails does not keep the others."""
        while self._closing:
            step = self._closing.pop()
            try:
                work = step()
                if work is not None:
                    await work
            except Exception:
                log.failure("A part of the daemon could not be closed.")


async def open_daemon(config: Config, reactor: Any) -> Daemon:
    """Open everything; when this fires the daemon listens and every decision that an earlier one left open is made.
    MigrateError, OSError, ValueError or FolderTaken says what is wrong; nothing is left open then."""
    daemon = Daemon()
    try:
        await _open(daemon, config, reactor)
    except BaseException:
        await daemon.close()
        raise
    return daemon


async def _open(daemon: Daemon, config: Config, reactor: Any) -> None:
    state_dir = config.state_dir.absolute()
    for folder in (state_dir, state_dir / "migrations"):
        await in_thread(folder.mkdir, parents=True, exist_ok=True, mode=0o700)
    if warning := await in_thread(own_process.check_private, state_dir):
        log.warn("{warning}", warning=warning)
    # before anything is read: what is decided at a start is decided about the journals and processes of one daemon
    lock = FolderLock(state_dir)
    await lock.take(reactor)
    daemon.closes(lock.release)
    for stray in await in_thread(remains.end_strays, state_dir):
        log.warn("{stray} is ended: the daemon that started it was killed before it had noted that", stray=stray)
    identity = await in_thread(tls.HostIdentity.load, state_dir, config.certificate, config.private_key)
    trust = await in_thread(tls.trust_root, state_dir / config.authorities) if config.authorities else None
    upstream = parse_upstream(config.upstream) if config.upstream else None
    if upstream is not None and config.database:
        raise InvalidValue("database", "a host beside an upstream has a database of its own, and is no pool's member")
    vouching = config.upstream_authorities
    upstream_trust = await in_thread(tls.trust_root, state_dir / vouching) if vouching else None
    room = Room(
        config.connections, config.connections_unknown, config.connections_of_address, config.request_deadline
    ).within(own_process.descriptors())
    if room.most < config.connections:
        log.warn("No more than {most} connections are served at once: this process may have few files open",
                 most=room.most)  # fmt: skip
    reach = Reach.all_but(config.denied_networks)
    endpoints = [_endpoint(reactor, one, identity) for one in config.listen]

    records = Records(data_model(), reactor, config.database or f"sqlite:///{state_dir / 'records.db'}")
    records.shared = bool(config.database)
    daemon.closes(records.close)
    await records.open()

    drivers = await in_thread(discover)
    for broken in drivers.broken:
        log.error("Storage backend {where} cannot be used: {reason}", where=broken.where, reason=broken.reason)
    services = SMServices(reactor, state_dir, configured(config), config.iscsi_port)
    daemon.closes(services.let_go)
    await services.recover()

    if config.profile not in PROFILES:
        raise InvalidValue("profile", config.profile)
    host = await prepare_host(records, state_dir, drivers.usable, _address(config), profile=PROFILES[config.profile])

    def name() -> str:
        return str(records.get("host", host)["name_label"])

    domains = _domain_driver(config, reactor, name)
    daemon.closes(domains.close)
    await domains.open()
    await services.datapaths.when_lost(domains.lose_disk)
    domains.watch_disks(lambda domain, disk, why: services.datapaths.refused(disk.socket_path, why))

    checker = make_checker(config.auth or (f"file:{config.users}",), state_dir)
    limits = Limits(min(config.upstream_connections, own_process.descriptors() // 4), config.upstream_idle)
    beside = stand_beside(upstream, records, reactor, upstream_trust, limits) if upstream is not None else None
    server = _server(records, checker, reactor, host, beside)
    daemon.closes(server.stop)
    make_sr = _make_sr(services) if beside is None else lent(_make_sr(services))
    claims = Claims(lambda: domains.memory().free, domains.untouched)
    toolstack = make_toolstack(
        server, drivers, make_sr, domains, LinuxBridges(), host, state_dir, reactor, claims, config.without_bridge
    )
    services.datapaths.reviving.waiting = toolstack.disk_waits.of_vdi
    daemon.closes(toolstack.close)
    await toolstack.open()

    peers = partial(_peer, config, reactor, trust, reach)
    about = _host(config, reactor, server, toolstack, domains, host, peers, claims)
    engine = _engine(daemon, config, about, identity.fingerprint())
    daemon.closes(engine.stop)
    if beside is None:
        server.dispatcher.register(MigrationCalls(records, engine))
    pool, members = _pool(config, reactor, server, toolstack, about, engine)
    motions = FileJournals(state_dir / "motions", about.at)
    motion = register_migration_calls(server, engine, about, toolstack, motions, services, pool.offer)
    if beside is not None:
        arrivals = Arrivals(beside.client, state_dir / ARRIVALS, reactor)
        await arrivals.load()
        shadows = Shadows(records, toolstack.storage, host, drivers.usable.__contains__)
        about.keeper = UpstreamKeeper(beside.client, arrivals, shadows, records, reactor)
    await engine.start(server.tasks.resume)
    await motion.recover()
    elsewhere: list[Elsewhere] = []
    if beside is not None:
        receives = UpstreamReceives(beside.client, arrivals, shadows, engine, reactor)
        daemon.closes(receives.stop)
        server.dispatcher.register(receives)
        await receives.begin()
        leases = Leases(beside.client, state_dir / LEASES)
        moves = UpstreamMoves(beside.client, leases, shadows, engine, reactor)
        daemon.closes(moves.stop)
        server.dispatcher.register(moves)
        await moves.begin()
        elsewhere += [moves, receives]
    else:
        elsewhere.append(Abandoned(state_dir))
    register_plugin_calls(server, engine, about, toolstack, services, *elsewhere, lent=beside is not None)
    server.tasks.fail_orphans()
    await toolstack.machines.resync()
    server.start()

    tree = MigrationTree(engine, config.metadata_limit, reactor, config.times.memory_silence)
    served: Callable[[MigrationTree | None], Any] = partial(
        server.site, request_limit=config.request_limit,
        imports=server.imports(MetadataImporting(records), config.metadata_limit),
    )  # fmt: skip
    if beside is not None:
        overlay = open_overlay(beside, server, config.request_limit)
        daemon.closes(overlay.close)
        served = partial(front, overlay)
        if config.plugin_socket:
            path = state_dir / config.plugin_socket
            site = plugin_site(overlay.calls, path.name, config.request_limit)
            await _listen_locally(daemon, reactor, path, "0600", site, room)
    site = served(tree)
    site.entrance = Entrance(reactor, room)
    for description, endpoint in zip(config.listen, endpoints, strict=True):
        port = await endpoint.listen(site)
        daemon.ports.append(port)
        daemon.closes(lambda port=port: defer.maybeDeferred(port.stopListening))  # type: ignore[misc]
        address: Any = port.getHost()
        if hasattr(address, "port"):
            daemon.bound.append(offer.Listener(tls.scheme(description), address.host, address.port))
        log.info("listening: {description}", description=description)
    if records.shared:
        daemon.closes(members.stop)
        members.start(_member_address(daemon, config, about.name, identity.fingerprint()))
    if config.api_socket:
        await _listen_locally(
            daemon, reactor, state_dir / config.api_socket, config.api_socket_mode, served(None), room
        )


async def _listen_locally(daemon: Daemon, reactor: Any, path: Path, mode: str, site: Any, room: Room) -> None:
    site.entrance = Entrance(reactor, room)
    port = await listen_locally(reactor, path, mode, site)
    daemon.ports.append(port)
    daemon.closes(lambda: defer.maybeDeferred(port.stopListening))  # type: ignore[call-overload]
    log.info("listening: {description}", description=f"unix:{path}")


def _server(records: Records, checker: AnyOf, reactor: Any, host: str, beside: Beside | None) -> XenAPIServer:
    if beside is None:
        return make_server(records, [checker], reactor, lambda: host)
    return make_server(records, [], reactor, sessions=beside.sessions, elsewhere=beside.elsewhere)


def _pool(
    config: Config, reactor: Any, server: XenAPIServer, toolstack: Toolstack, about: Host, engine: Engine
) -> tuple[Pool, Members]:
    """With a database of its own a host is alone, and nothing of this is used."""
    records = server.records
    members = Members(
        records, reactor, about.ref, config.member_interval, config.member_lost, about.claims.memory
    )  # fmt: skip
    placement = Placement(records, about.ref, toolstack.networks, about.claims.memory)
    routing = Routing(records, about.ref, placement)
    pool = Pool(records, reactor, server.dispatcher, members, routing, engine.receive)
    if records.shared:
        server.dispatcher.pool = pool
        server.api.putChild(MEMBER_PATH, MemberResource(records.member_secret, pool.answers()))
    return pool, members


def _member_address(daemon: Daemon, config: Config, name: str, fingerprint: str) -> Address | None:
    for listener in offer.listeners(daemon.bound, config.addresses, name):
        if listener.scheme == "https":
            return Address(listener.address, listener.port, fingerprint)
    log.warn("Other members of the pool cannot reach this host: it listens on no tls endpoint.")
    return None


def _host(
    config: Config,
    reactor: Any,
    server: XenAPIServer,
    toolstack: Toolstack,
    domains: IDomainDriver,
    ref: str,
    peers: Callable[[list[str]], IPeer],
    claims: Claims,
) -> Host:
    state_dir = config.state_dir.absolute()
    at = Stops(state_dir / FOLDER) if config.test_options else nowhere
    return Host(
        ref=ref,
        config=config,
        clock=reactor,
        records=server.records,
        toolstack=toolstack,
        domains=domains,
        tasks=server.tasks,
        journals=FileJournals(state_dir / "journal", at),
        peers=peers,
        claims=claims,
        stories=state_dir / "migrations",
        at=at,
    )


def _endpoint(reactor: Any, description: str, identity: tls.HostIdentity) -> IStreamServerEndpoint:
    try:
        return tls.server_endpoint(reactor, description, identity)
    except (ValueError, TypeError, OSError) as error:  # whatever Twisted's parsers of each kind raise
        raise InvalidValue("listen", f"{description} ({error})") from None


def _peer(config: Config, reactor: Any, trust: Any, reach: Reach, uris: list[str]) -> IPeer:
    peer: IPeer = HttpPeer(
        reactor, uris, config.times, trust_root=trust, reach=reach, insecure_storage=config.insecure_storage
    )
    return peer


def _engine(daemon: Daemon, config: Config, host: Host, fingerprint: str) -> Engine:
    def uris_of(capability: Capability) -> list[str]:
        listeners = offer.listeners(daemon.bound, config.addresses, host.name)
        return offer.build(capability, listeners, config.schemes, fingerprint)

    return Engine(host, uris_of)


def _domain_driver(config: Config, reactor: Any, name: Callable[[], str]) -> IDomainDriver:
    state_dir = config.state_dir.absolute()
    if config.domains == "xen":
        booted = XenConfig(config.xen_kernel, config.xen_ramdisk, config.xen_arguments, tsc_mode=config.xen_tsc_mode)
        on_xen: IDomainDriver = XenDriver(reactor, state_dir, booted, name)
        return on_xen
    figures = QEMUConfig(
        accelerators=config.accelerators,
        beyond="stop" if config.slow_guests else "fail",
        timeouts=DomainTimeouts(final_suspend=config.times.final_suspend),
    )
    driver: IDomainDriver = QEMUDriver(reactor, state_dir, figures, name)
    return driver


def _make_sr(services: SMServices) -> Callable[[SRConfig, ISMDriver], ISR]:
    def make(config: SRConfig, driver: ISMDriver) -> ISR:
        sr: ISR = open_repository(driver, config, services)
        return sr

    return make


def _address(config: Config) -> str:
    """The host's own address in its records: the first that is offered, else loopback."""
    return config.addresses[0] if config.addresses else "127.0.0.1"
