"""Two simulated hosts that reach each other over real loopback HTTP and HTTPS: the real engines, migration tree and
peer, in real time, on any hypervisor."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
from twisted.internet import reactor, task
from twisted.internet.endpoints import serverFromString
from twisted.web.resource import Resource

from xapi_migrate.domains.interfaces import DomainState, IDomainDriver
from xapi_migrate.testing.fake_hypervisor import FakeHypervisor
from xapi_migrate.testing.fake_sm import FakeLuns
from xapi_migrate.testing.two_hosts import TIMES, SimHost, SimTask
from xapi_migrate.tls import HostIdentity, server_endpoint
from xapi_migrate.together import started
from xapi_migrate.uris.offer import Listener, build
from xapi_migrate.uris.peer import HttpPeer
from xapi_migrate.uris.request import MigrationRequest, MigrationSite
from xapi_migrate.uris.tree import MigrationTree

METADATA_LIMIT = 4 << 20
PATIENCE = 20.0

Driver = Callable[[FakeHypervisor], IDomainDriver]


@attrs.define
class Put:
    """One PUT memory as the receiver saw it: whether it asked for the upgrade, whether its body was chunked, the
    interim answers, and the bytes of its body that came through the daemon."""

    upgrade: bool
    chunked: bool
    interim: list[bytes] = attrs.Factory(list)
    carried: int = 0


class Watch:
    """What came in. `at_body` is called with each part of a memory body, before it is passed on."""

    def __init__(self) -> None:
        self.requests: list[str] = []
        self.puts: list[Put] = []
        self.at_body: Callable[[], None] = lambda: None
        self.channels: list[Any] = []

    def request(self, *arguments: Any, **options: Any) -> MigrationRequest:
        """The site's request factory."""
        request = _Watched(*arguments, **options)  # type: ignore[no-untyped-call]
        request.watch = self
        return request

    @property
    def interim(self) -> list[bytes]:
        """The status of each interim answer to PUT memory."""
        return [line for put in self.puts for line in put.interim]


class _Watched(MigrationRequest):
    watch: Watch
    _put: Put | None = None

    def gotLength(self, length: int | None) -> None:
        method, path = self.channel._command.decode(), self.channel._path.decode()
        below = path.split("/", 3)[3] if path.count("/") > 2 else ""
        self.watch.requests.append(f"{method} {below}".strip())
        self.watch.channels.append(self.channel)
        if below == "memory":
            header = self.requestHeaders.getRawHeaders
            self._put = Put(header("upgrade") is not None, header("transfer-encoding") == ["chunked"])
            self.watch.puts.append(self._put)
            self._note_interim(self._put)
        super().gotLength(length)

    def handleContentChunk(self, data: bytes) -> None:
        if self._put is not None:
            self._put.carried += len(data)
            self.watch.at_body()
        super().handleContentChunk(data)

    def _note_interim(self, put: Put) -> None:
        transport, write = self.channel.transport, self.channel.transport.write

        def noting(data: bytes) -> None:
            if data.startswith(b"HTTP/1.1 1"):
                put.interim.append(data.split(b" ")[1])
            write(data)

        transport.write = noting


class OverHttp:
    """A source and a destination, each with a driver of its own, and a VM that is to move."""

    def __init__(self, folder: Path, source: Driver, destination: Driver) -> None:
        settings = {"times": TIMES, "insecure_storage": True}
        luns = FakeLuns()
        self.source = SimHost("source", reactor, luns, settings, source)
        self.destination = SimHost("destination", reactor, luns, settings, destination)
        self.watch = Watch()
        self.identity = HostIdentity.load(folder)
        self.ports: list[Any] = []
        self.most_running = 0
        self._looking = task.LoopingCall(self._look)

    async def open(self) -> None:
        for host in (self.source, self.destination):
            host.start()
        tree = MigrationTree(self.destination.engine, METADATA_LIMIT, reactor, 10)
        site = MigrationSite(Resource(), tree, requestFactory=self.watch.request)
        for endpoint in (
            serverFromString(reactor, "tcp:0:interface=127.0.0.1"),
            server_endpoint(reactor, "tls:0:interface=127.0.0.1", self.identity),
        ):
            self.ports.append(await endpoint.listen(site))
        listeners = [
            Listener(scheme, "127.0.0.1", port.getHost().port)
            for scheme, port in zip(("http", "https"), self.ports, strict=True)
        ]
        self.destination.uris_of = lambda capability: build(
            capability, listeners, ("http", "https"), self.identity.fingerprint()
        )
        self.source.peers = lambda uris: HttpPeer(reactor, uris, TIMES)
        self._looking.start(0.001)

    async def close(self) -> None:
        self._looking.stop()
        for host in (self.source, self.destination):
            host.crash()
            for guest in host.hypervisor.guests.values():
                host.hypervisor.halt(guest, DomainState.ABSENT)
        for port in self.ports:
            await port.stopListening()
        for channel in self.watch.channels:
            transport = channel.transport
            if transport is not None and getattr(transport, "connected", False):
                transport.abortConnection()
        await self.until(lambda: not self.children(), "a child process lives on")
        await task.deferLater(reactor, 0.05)  # aborted connections are told to both of their ends

    async def migrate(self, vm: str, scheme: str) -> SimTask:
        """VM.receive and VM.migrate by one URI of this scheme; the task when it has ended."""
        begun = self.begin(vm, scheme)
        await self.until(lambda: begun.status != "pending", "the migration does not end")
        return begun

    def begin(self, vm: str, scheme: str) -> SimTask:
        uris: list[list[str]] = []
        started(self.destination.engine.receive(self.destination.sr, {})).addCallback(uris.append)
        [uri] = [uri for uri in uris[0] if uri.startswith(f"{scheme}:")]
        begun = self.source.tasks.begin("VM.migrate", "")
        work = started(self.source.engine.migrate(vm, [uri], {}, {}, begun))
        work.addCallbacks(
            lambda value: self.source.tasks.succeed(begun, value),
            lambda failure: self.source.tasks.fail(begun, failure.value),
        )
        return begun

    async def until(self, condition: Callable[[], object], otherwise: str) -> None:
        end = reactor.seconds() + PATIENCE  # type: ignore[attr-defined]
        while not condition():
            assert reactor.seconds() < end, otherwise  # type: ignore[attr-defined]
            await task.deferLater(reactor, 0.005)

    def children(self) -> list[int]:
        """The hypervisors' child processes."""
        return [pid for host in (self.source, self.destination) for pid in getattr(host.domains, "children", list)()]

    def _look(self) -> None:
        now = len(self.source.running()) + len(self.destination.running())
        self.most_running = max(self.most_running, now)
