"""The two kinds of servers, the plain site and the overlay's front, on connections in memory."""

from __future__ import annotations

from typing import Any

from twisted.internet import defer
from twisted.internet.address import IPv4Address
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.web.resource import Resource

from xapi_migrate.entrance import Entrance, Room
from xapi_migrate.upstream.front import FrontFactory, Mine, Reply
from xapi_migrate.xenapi.site import ApiSite

ROOM = Room(most=12, strangers=8, of_address=4, deadline=60.0)
ANSWER = b"x" * 62_000
HOLDS = 64 << 10
"""Bytes after which a transport tells its producer to wait, as Twisted's do."""


class Wire(StringTransport):
    """`ended` says how, if it has."""

    aborting = False
    full = False

    def abortConnection(self) -> None:
        self.aborting = True

    def loseWriteConnection(self) -> None:
        """Nothing more will be written."""

    def getHandle(self) -> None:
        """There is no socket."""

    def write(self, data: bytes) -> None:
        super().write(data)
        if self.producer is not None and len(self.value()) > HOLDS:
            self.full = True
            self.producer.pauseProducing()

    def read(self) -> bytes:
        """What the client takes."""
        came = self.value()
        self.clear()
        if self.full:
            self.full = False
            self.producer.resumeProducing()
        return came

    @property
    def ended(self) -> str:
        return "aborted" if self.aborting else "closed" if self.disconnecting else ""


class Api(Resource):
    isLeaf = True

    def render(self, request: Any) -> bytes:
        return ANSWER


class Passing:
    """An overlay that passes nothing on, and answers all that is no POST."""

    local_only = False
    pool = None

    def holds_call(self, head: Any) -> bool:
        return bool(head.method == b"POST")

    def decide(self, head: Any, body: bytes, origin: str) -> Mine:
        return Mine(defer.succeed(Reply(b"200 OK", b"text/plain", ANSWER)))

    def knows(self, session: Any) -> bool:
        return False


def server(kind: str, clock: Clock, room: Room = ROOM) -> Any:
    site = ApiSite(Api(), None, reactor=clock)  # type: ignore[no-untyped-call]
    factory: Any = site if kind == "site" else FrontFactory(Passing(), site.buildProtocol)  # type: ignore[arg-type]
    factory.entrance = Entrance(clock, room)
    return factory


def connect(factory: Any, address: str = "192.0.2.1") -> tuple[Any, Wire]:
    peer = IPv4Address("TCP", address, 1)
    protocol, wire = factory.buildProtocol(peer), Wire(peerAddress=peer)
    protocol.makeConnection(wire)
    return protocol, wire
