"""Connections to the upstream: made when one is needed, kept for a while when they are free again."""

from __future__ import annotations

from typing import Any
from typing import Protocol as TypingProtocol

import attrs
from twisted.internet import defer
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure

from ..uris.socket_options import notice_death, tcp_socket

KEEP = 15.0
"""Seconds for which a free connection is kept: less than servers do, so that they seldom end one that is just used."""
MOST_FREE = 64


class User(TypingProtocol):
    """Who uses a connection now."""

    def came(self, data: bytes) -> None: ...
    def ended(self, reason: Failure) -> None: ...


class Connection(Protocol):
    """One of them. `used` before: the upstream may be ending it at this moment."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self.user: User | None = None
        self.used = False
        self.late: Any = None

    def connectionMade(self) -> None:
        notice_death(tcp_socket(self.transport))
        self._pool.connections.add(self)

    def dataReceived(self, data: bytes) -> None:
        if self.user is None:
            self.abort()  # nobody has asked for anything
        else:
            self.user.came(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._pool.lost(self)
        user, self.user = self.user, None
        if user is not None:
            user.ended(reason)

    def write(self, data: bytes) -> None:
        transport: Any = self.transport
        transport.write(data)

    def let_go(self) -> None:
        """Ends when all that was written is out. Whoever uses it hears no more of it."""
        self.user = None
        transport: Any = self.transport
        transport.loseConnection()

    def abort(self) -> None:
        """Ends at once. Whoever uses it hears no more of it."""
        self.user = None
        transport: Any = self.transport
        transport.abortConnection()


@attrs.define(eq=False)
class Pool:
    """`endpoint` leads to the upstream."""

    endpoint: IStreamClientEndpoint
    reactor: Any
    connections: set[Connection] = attrs.Factory(set)
    _free: list[Connection] = attrs.Factory(list)
    _connecting: set[defer.Deferred[Any]] = attrs.Factory(set)

    def free(self) -> Connection | None:
        """The connection that was used last."""
        if not self._free:
            return None
        found = self._free.pop()
        found.late.cancel()
        return found

    def connect(self) -> defer.Deferred[Connection]:
        """A new one. Fails with whatever Twisted says."""
        factory: Any = Factory.forProtocol(lambda: Connection(self))
        factory.noisy = False
        connecting: defer.Deferred[Any] = self.endpoint.connect(factory)
        self._connecting.add(connecting)

        def over(result: Any) -> Any:
            self._connecting.discard(connecting)
            return result

        return connecting.addBoth(over)

    def give_back(self, connection: Connection) -> None:
        """The answer is in, and the upstream keeps the connection."""
        connection.user, connection.used = None, True
        transport: Any = connection.transport
        transport.resumeProducing()  # a slow client may have paused it
        if len(self._free) >= MOST_FREE:
            connection.abort()
            return
        connection.late = self.reactor.callLater(KEEP, connection.abort)
        self._free.append(connection)

    def lost(self, connection: Connection) -> None:
        self.connections.discard(connection)
        if connection in self._free:
            self._free.remove(connection)
            if connection.late.active():
                connection.late.cancel()

    def close(self) -> None:
        for connecting in list(self._connecting):
            connecting.cancel()
        for connection in list(self.connections):
            connection.abort()
        for connection in self._free:
            if connection.late.active():
                connection.late.cancel()
