"""One request of our own to the upstream, and its answer, whole and bounded."""

from __future__ import annotations

import attrs
from twisted.internet import defer
from twisted.python.failure import Failure

from ..together import connected
from .address import why_lost
from .messages import BadMessage, Body, Endless, find_head, response_head
from .pool import Connection, Kind, Pool


class NoAnswer(Exception):
    """No whole answer came; the text says why. `tried`: the upstream may have got the request."""

    def __init__(self, reason: str, tried: bool = True) -> None:
        super().__init__(reason)
        self.tried = tried


class _Ended(Exception):
    """A kept connection ended before a byte of the answer."""


@attrs.frozen
class Answer:
    status: int
    body: bytes = attrs.field(repr=False)


class _Exchange:
    def __init__(self, pool: Pool, connection: Connection, limit: int, keep: bool) -> None:
        self._pool = pool
        self._connection = connection
        self._limit = limit
        self._keep = keep
        self._unread = b""
        self._status = 0
        self._persistent = False
        self._body: Body | None = None
        self._content = bytearray()
        self._chunked = False
        self.done: defer.Deferred[Answer] = defer.Deferred(lambda _: connection.abort())
        connection.user = self

    def came(self, data: bytes) -> None:
        try:
            self._read(data)
        except BadMessage as wrong:
            self._fail(NoAnswer(f"its answer cannot be read: {wrong}"))

    def _read(self, data: bytes) -> None:
        self._unread += data
        while self._body is None:
            size = find_head(self._unread)
            if not size:
                return
            head = response_head(self._unread[:size])
            self._unread = self._unread[size:]
            if not head.interim:
                self._status, self._persistent, self._chunked = head.status, head.persistent, head.chunked
                self._body = head.body(b"POST", self._content)
        data, self._unread = self._unread, b""
        mine, rest = self._body.take(data)
        if not self._chunked:
            self._content += mine
        if len(self._content) > self._limit:
            self._fail(NoAnswer(f"its answer is longer than {self._limit} bytes"))
        elif self._body.ended:
            # after an error the upstream may not have read the request to its end
            self._finish(self._keep and self._persistent and not rest and self._status == 200)

    def ended(self, reason: Failure) -> None:
        if isinstance(self._body, Endless):
            self._finish(False)
        elif self._connection.used and self._body is None and not self._unread:
            self.done.errback(_Ended(why_lost(reason)))
        else:
            self.done.errback(NoAnswer(f"it ended the connection: {why_lost(reason)}"))

    def _finish(self, keep: bool) -> None:
        if keep:
            self._pool.give_back(self._connection)
        else:
            self._connection.abort()
        self.done.callback(Answer(self._status, bytes(self._content)))

    def _fail(self, why: NoAnswer) -> None:
        self._connection.abort()
        self.done.errback(why)


async def ask(pool: Pool, request: bytes, limit: int, repeatable: bool, kind: Kind, keep: bool = True) -> Answer:
    """NoAnswer. No time-out: cancel it. A kept connection that ends under a `repeatable` request is replaced once.
    `keep` False: the answer may come before the upstream has read the request, so nobody uses the connection again."""
    try:
        return await _once(pool, await _connection(pool, kind, False), request, limit, keep)
    except _Ended as ended:
        if not repeatable:
            raise NoAnswer(f"it ended the connection: {ended}") from None
    return await _once(pool, await _connection(pool, kind, True), request, limit, keep)


async def _connection(pool: Pool, kind: Kind, fresh: bool) -> Connection:
    try:
        return await connected(pool.get(kind, fresh))
    except defer.CancelledError:
        raise
    except Exception as why:
        raise NoAnswer(why_lost(Failure(why)), tried=False) from None


def _once(pool: Pool, connection: Connection, request: bytes, limit: int, keep: bool) -> defer.Deferred[Answer]:
    exchange = _Exchange(pool, connection, limit, keep)
    connection.write(request)
    return exchange.done


def request(method: bytes, netloc: str, path: bytes, content_type: bytes, body: bytes, cookie: str = "") -> bytes:
    """A request's bytes. ValueError for a `cookie` that would be more than one header."""
    lines: list[bytes] = [
        method + b" " + path + b" HTTP/1.1",
        b"Host: " + netloc.encode(),
        b"User-Agent: xapi_migrate",
        b"Content-Type: " + content_type,
        b"Content-Length: %d" % len(body),
    ]
    if cookie:
        if not cookie.isprintable() or not cookie.isascii():
            raise ValueError("a cookie is one line of plain text")
        lines.append(b"Cookie: " + cookie.encode())
    return b"\r\n".join([*lines, b"", b""]) + body
