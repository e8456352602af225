"""One request passed through to the upstream, and its answer back: every byte as it came, as fast as the slower side
takes it and no faster."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from twisted.internet import defer
from twisted.internet.error import ConnectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure

from .address import why_lost
from .messages import BadMessage, Body, Endless, RequestHead, ResponseHead, find_head, response_head
from .pool import Connection, Kind, Pool
from .stillness import Paced, Watch

CLIENT, UPSTREAM = "the client", "the upstream"


class Client(Protocol):
    """The connection that the request came by."""

    @property
    def out(self) -> Any:
        """Its transport."""

    def ready(self) -> None:
        """What has come of the body, and what comes, can be taken."""

    def begun(self, status: int, stream: bool) -> None:
        """The answer begins; `stream`: of what is no call."""

    def answered(self, persistent: bool) -> None:
        """The answer has been written whole; the connection goes on, if it is to."""

    def unanswered(self, reason: str, tried: bool) -> None:
        """There is no answer, and nothing has been written. `tried`: the upstream may have got the request."""

    def drop(self) -> None:
        """End the connection at once: the client stands still, or must not take for whole what it has."""


class Relay:
    """`opening` is what the upstream is sent first: the head, and the body if it is here already; `body` is what
    follows. `repeatable`: nothing is done twice if the request is sent twice. `saw` is called
    when the answer begins.

    A body whose length is known, or that is chunked, may stand still for `pool.idle` seconds, and so long may either
    side take nothing of what the other has sent. Then it is cut. An answer that has not begun is waited for, and a
    tunnel may be silent."""

    log = Logger()

    def __init__(
        self, client: Client, pool: Pool, kind: Kind, head: RequestHead, opening: bytes, body: Body,
        repeatable: bool = False, saw: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        self._client = client
        self._pool = pool
        self._kind = kind
        self._head = head
        self._opening = opening
        self._body = body
        self._has_body = bool(head.length)
        self._read_for_sure = body.ended and head.method != b"HEAD" and head.target.startswith(b"/")
        self._repeatable = repeatable
        self._saw = saw
        self._connection: Connection | None = None
        self._connecting: defer.Deferred[Connection] | None = None
        self._begun = False
        self._unread = b""
        self._answer: Body | None = None
        self._persistent = False
        self._over = False
        self._to_client: Paced | None = None
        self._to_upstream: Paced | None = None
        self._watch = Watch(pool.reactor, pool.idle, self._stands_still, self._stood_still)

    @property
    def taking(self) -> bool:
        """Whether more of the body is wanted from the client."""
        return self._connection is not None and not self._body.ended

    def start(self, fresh: bool = False) -> None:
        self._connecting = connecting = self._pool.get(self._kind, fresh)
        connecting.addCallbacks(self._connected, self._not_connected)

    def _connected(self, connection: Connection) -> None:
        self._connecting = None
        self._connection = connection
        connection.user = self
        transport: Any = connection.transport
        connection.write(self._opening)
        if not self._body.ended:
            self._pace_client(transport)
            self._watch.begin()
        self._to_client = Paced(transport, self._watch.moved)
        self._client.out.registerProducer(self._to_client, True)
        self._client.ready()

    def _pace_client(self, transport: Any) -> None:
        self._to_upstream = Paced(self._client.out, self._watch.moved)
        transport.registerProducer(self._to_upstream, True)

    def _not_connected(self, failure: Failure) -> None:
        self._connecting = None
        if not self._over:
            self._over = True
            self._client.unanswered(why_lost(failure), tried=False)

    # -- from the client -------------------------------------------------------------------------

    def send(self, data: bytes) -> bytes:
        """More of the body; what comes after it is given back. BadMessage, and then it is over."""
        assert self._connection is not None
        try:
            mine, rest = self._body.take(data)
        except BadMessage:
            self.abandon()
            raise
        self._connection.write(mine)
        self._watch.moved(len(mine))
        if self._body.ended:
            self._watch.moved()
            self._body_ended(self._connection)
        return rest

    def _body_ended(self, connection: Connection) -> None:
        transport: Any = connection.transport
        transport.unregisterProducer()
        self._client.out.resumeProducing()

    def abandon(self) -> None:
        """The client has gone, or is no use."""
        self._over = True
        self._watch.end()
        if self._connecting is not None:
            self._connecting.cancel()
        if self._connection is not None:
            self._release(self._connection)
            self._connection.let_go()

    # -- from the upstream -----------------------------------------------------------------------

    def came(self, data: bytes) -> None:
        if self._answer is None:
            try:
                data = self._heads(data)
            except BadMessage as error:
                self._cut(f"its answer cannot be read: {error}", tried=True)
                return
            if self._answer is None:
                return
        try:
            mine, rest = self._answer.take(data)
        except BadMessage as error:
            self._cut(f"its answer cannot be read: {error}", tried=True)
            return
        if mine:
            self._watch.moved()
            self._write(mine)
        if self._answer.ended:
            self._ended(whole=not rest)
        else:
            self._watch.begin()

    def _heads(self, data: bytes) -> bytes:
        """Passes on interim answers and the head of the final one; what comes after that."""
        self._unread += data
        while size := find_head(self._unread):
            raw, self._unread = self._unread[:size], self._unread[size:]
            head = response_head(raw)
            if not head.interim:
                self._final(head)
                self._write(raw)
                rest, self._unread = self._unread, b""
                if isinstance(self._body, Endless):
                    self._client.ready()
                return rest
            self._write(raw)
        return b""

    def _final(self, head: ResponseHead) -> None:
        self._answer = head.body(self._head.method)
        if isinstance(self._answer, Endless):
            # whatever the two say to each other now: a console, a web socket, an answer that ends when it is closed
            if self._body.ended and (head.status == 101 or self._head.method == b"CONNECT"):
                assert self._connection is not None
                self._body = Endless()
                self._pace_client(self._connection.transport)
        else:
            self._persistent = head.persistent
            self._read_for_sure &= head.status == 200 or not self._has_body
        self._client.begun(head.status, self._kind is Kind.STREAM)
        self._saw()

    def _write(self, data: bytes) -> None:
        self._begun = True
        self._client.out.write(data)

    def _ended(self, whole: bool) -> None:
        connection = self._connection
        assert connection is not None
        self._over = True
        self._watch.end()
        self._release(connection)
        complete = self._body.ended
        if complete and whole and self._persistent and self._head.persistent and self._read_for_sure:
            # Else the upstream may be about to end it, or may not have read the body: it would take what is in it for
            # the next request, and that one's answer would be another client's.
            self._pool.give_back(connection)
        else:
            connection.abort()
        self._client.answered(complete and self._persistent and self._head.persistent)

    def ended(self, reason: Failure) -> None:
        """The upstream has ended the connection."""
        connection = self._connection
        assert connection is not None
        if isinstance(self._answer, Endless):
            self._over = True
            self._watch.end()
            self._release(connection)
            if reason.check(ConnectionDone):
                self._client.answered(persistent=False)
            else:
                self._client.drop()  # that it is not whole nothing else would tell
        elif not self._begun and not self._unread and connection.used and self._repeatable and self._body.ended:
            self._release(connection)
            self._connection = None
            self.start(fresh=True)
        else:
            self._cut(f"it ended the connection: {why_lost(reason)}", tried=True)

    def _cut(self, reason: str, tried: bool) -> None:
        begun = self._begun
        self.abandon()
        if begun:
            self._client.answered(persistent=False)
        else:
            self._client.unanswered(reason, tried)

    # -- what stands still -------------------------------------------------------------------------

    def _stands_still(self) -> str:
        """Of the client and the upstream who has to move something now."""
        begun = self._answer is not None
        if self._to_client is not None and self._to_client.full:
            return CLIENT
        if self._to_upstream is not None and self._to_upstream.full:
            return UPSTREAM
        if begun and not isinstance(self._answer, Endless):
            return UPSTREAM
        return "" if self._body.ended or (begun and isinstance(self._body, Endless)) else CLIENT

    def _stood_still(self, who: str) -> None:
        seconds = f"{self._pool.idle:g} seconds"
        self.log.warn("A stream is cut: {who} has stood still for {seconds}", who=who, seconds=seconds)
        if who == UPSTREAM:
            self._cut(f"it has stood still for {seconds}", tried=True)
        else:
            self.abandon()
            self._client.drop()

    def _release(self, connection: Connection) -> None:
        """Neither side waits for the other any more."""
        transport: Any = connection.transport
        if not self._body.ended:
            transport.unregisterProducer()
        self._client.out.unregisterProducer()
        self._client.out.resumeProducing()
