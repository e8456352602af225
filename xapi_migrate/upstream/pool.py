"""Connections to the upstream: made when one is needed, kept for a while when they are free again, and not too many.

What may take long must not keep short calls out, nor may who is slow on purpose. So waiting calls have half of the
connections at most, streams a quarter, and what is left is for calls. Who finds none free waits, for a while.
"""

from __future__ import annotations

from collections import deque
from enum import Enum
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
QUEUED = 20.0
"""Seconds that somebody waits for a connection while all are in use."""
LAST_WORDS = 30.0
"""Seconds in which a connection that was let go of must have sent what was written."""


class Kind(Enum):
    """What a connection is used for, and what part of all may be at once."""

    CALL = 1.0
    POLL = 0.5
    STREAM = 0.25


class Crowded(Exception):
    """All connections of this kind are in use, and none became free in time. The text says so, for people."""


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
        self.kind: Kind | None = None
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
        if self in self._pool.connections:
            self.late = self._pool.reactor.callLater(LAST_WORDS, self.abort)

    def abort(self) -> None:
        """Ends at once. Whoever uses it hears no more of it, and nobody else gets it."""
        self.user = None
        self._pool.withdraw(self)
        transport: Any = self.transport
        transport.abortConnection()


@attrs.define(eq=False)
class _Wish:
    """Of who waits in the queue. `coming`: the connection that is being made for it."""

    kind: Kind
    fresh: bool
    granted: defer.Deferred[Connection]
    late: Any = None
    coming: defer.Deferred[Connection] | None = None


@attrs.define(eq=False)
class Pool:
    """`endpoint` leads to the upstream; `most` connections are open at once, in use, free and coming. `idle`: for how
    many seconds a stream may stand still."""

    endpoint: IStreamClientEndpoint
    reactor: Any
    most: int
    idle: float
    connections: set[Connection] = attrs.Factory(set)
    _free: list[Connection] = attrs.Factory(list)
    _connecting: dict[defer.Deferred[Any], Kind] = attrs.Factory(dict)
    _queue: deque[_Wish] = attrs.Factory(deque)

    def get(self, kind: Kind, fresh: bool = False) -> defer.Deferred[Connection]:
        """A connection: the free one that was used last, or a new one; `fresh`: a new one in any case. Crowded, or
        whatever Twisted says."""
        if not self.crowded(kind):
            return self._take(kind, fresh)
        wish = _Wish(kind, fresh, defer.Deferred(lambda _: self._give_up(wish)))
        wish.late = self.reactor.callLater(QUEUED, self._too_late, wish)
        self._queue.append(wish)
        return wish.granted

    def crowded(self, kind: Kind) -> bool:
        """Whether who asks for one of this kind has to wait."""
        used = [one.kind for one in self.connections if one.kind is not None] + list(self._connecting.values())
        return len(used) >= self.most or used.count(kind) >= max(1, int(self.most * kind.value))

    def _take(self, kind: Kind, fresh: bool) -> defer.Deferred[Connection]:
        if self._free and not fresh:
            found = self._free.pop()
            found.late.cancel()
            found.kind = kind
            return defer.succeed(found)
        if self._free and len(self.connections) + len(self._connecting) >= self.most:
            self._free[0].abort()
        factory: Any = Factory.forProtocol(lambda: Connection(self))
        factory.noisy = False
        connecting: defer.Deferred[Any] = self.endpoint.connect(factory)
        self._connecting[connecting] = kind

        def over(result: Any) -> Any:
            del self._connecting[connecting]
            if isinstance(result, Connection):
                result.kind = kind
            else:
                self._next()
            return result

        return connecting.addBoth(over)

    # -- the queue -------------------------------------------------------------------------------

    def _next(self) -> None:
        """Whoever can have a connection now, first come first served within each kind."""
        for wish in list(self._queue):
            if wish in self._queue and not self.crowded(wish.kind):
                self._leave(wish)
                wish.coming = self._take(wish.kind, wish.fresh)
                wish.coming.chainDeferred(wish.granted)

    def _leave(self, wish: _Wish) -> None:
        self._queue.remove(wish)
        if wish.late.active():
            wish.late.cancel()

    def _give_up(self, wish: _Wish) -> None:
        if wish.coming is not None:
            wish.coming.cancel()
        else:
            self._leave(wish)

    def _too_late(self, wish: _Wish) -> None:
        self._leave(wish)
        what = {Kind.CALL: "", Kind.POLL: " for waiting calls", Kind.STREAM: " for imports, exports and consoles"}
        text = f"all connections to it{what[wish.kind]} are in use, and none became free in {QUEUED:g} seconds"
        wish.granted.errback(Crowded(text))

    # -- what becomes of a connection --------------------------------------------------------------

    def give_back(self, connection: Connection) -> None:
        """The answer is in, and the upstream keeps the connection."""
        connection.user, connection.used, connection.kind = None, True, None
        transport: Any = connection.transport
        transport.resumeProducing()  # a slow client may have paused it
        if len(self._free) >= MOST_FREE:
            connection.abort()
        else:
            connection.late = self.reactor.callLater(KEEP, connection.abort)
            self._free.append(connection)
        self._next()

    def withdraw(self, connection: Connection) -> None:
        """It is ending, which is told a moment later."""
        if connection in self._free:
            self._free.remove(connection)

    def lost(self, connection: Connection) -> None:
        self.connections.discard(connection)
        self.withdraw(connection)
        if connection.late is not None and connection.late.active():
            connection.late.cancel()
        self._next()

    def close(self) -> None:
        for wish in list(self._queue):
            wish.granted.cancel()
        for connecting in list(self._connecting):
            connecting.cancel()
        for connection in list(self.connections):
            connection.abort()
