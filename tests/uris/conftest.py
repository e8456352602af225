from __future__ import annotations

import attrs
import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.endpoints import serverFromString
from twisted.logger import LogEvent, globalLogPublisher
from twisted.web.resource import Resource

from xapi_migrate.tls import HostIdentity, server_endpoint
from xapi_migrate.uris.offer import Listener, build
from xapi_migrate.uris.request import MigrationSite
from xapi_migrate.uris.tree import MigrationTree

from .doubles import Offers, Receiving, until

METADATA_LIMIT = 100_000


class Api(Resource):
    """Stands for the XenAPI endpoint on the same Site."""

    isLeaf = True

    def render_GET(self, request):
        return b"api"

    def render_POST(self, request):
        return b"%d bytes" % len(request.content.read())


@attrs.define
class Served:
    """A receiver on loopback, over http and https."""

    receiving: Receiving
    offers: Offers
    site: MigrationSite
    port: int
    tls_port: int
    capability: object
    identity: HostIdentity
    channels: list

    @property
    def http(self) -> str:
        return build(self.capability, [Listener("http", "127.0.0.1", self.port)], ["http"])[0]

    @property
    def https(self) -> str:
        fingerprint = self.identity.fingerprint()
        return build(self.capability, [Listener("https", "127.0.0.1", self.tls_port)], ["https"], fingerprint)[0]

    @property
    def path(self) -> str:
        return f"/migrate/{self.capability.text}"


@pytest_twisted.async_yield_fixture
async def served(tmp_path):
    receiving, offers = Receiving(), Offers()
    tree = MigrationTree(offers, METADATA_LIMIT, reactor, 10)
    root = Resource()
    root.putChild(b"migrate", tree)
    root.putChild(b"jsonrpc", Api())
    site = MigrationSite(root, tree)
    channels = []
    made = site.buildProtocol

    def remember(addr):
        channels.append(made(addr))
        return channels[-1]

    site.buildProtocol = remember
    identity = HostIdentity.load(tmp_path)
    ports = [
        await serverFromString(reactor, "tcp:0:interface=127.0.0.1").listen(site),
        await server_endpoint(reactor, "tls:0:interface=127.0.0.1", identity).listen(site),
    ]
    yield Served(
        receiving,
        offers,
        site,
        ports[0].getHost().port,
        ports[1].getHost().port,
        offers.add(receiving),
        identity,
        channels,
    )
    for port in ports:
        await port.stopListening()
    for channel in channels:
        transport = channel.transport
        if transport is not None and transport.connected:
            transport.abortConnection()
    await until(lambda: not any(c.transport and c.transport.connected for c in channels))


@pytest.fixture
def events():
    """All log events of a test."""
    seen: list[LogEvent] = []
    globalLogPublisher.addObserver(seen.append)
    yield seen
    globalLogPublisher.removeObserver(seen.append)
