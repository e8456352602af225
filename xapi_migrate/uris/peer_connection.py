"""Whole requests to one migration URI, and what can become of them."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import attrs
from OpenSSL import SSL
from twisted.internet import defer, error
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IConsumer
from twisted.internet.protocol import Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.client import Agent, HTTPConnectionPool, ResponseDone
from twisted.web.http import PotentialDataLoss
from twisted.web.http_headers import Headers
from twisted.web.iweb import UNKNOWN_LENGTH, IBodyProducer, IResponse
from zope.interface import implementer

from ..errors import MigrateError, MigrationAborted, OperationNotAllowed, PeerSilent, RemoteError
from . import wire
from .offer import MigrationUri
from .peer_tls import OneServer

log = Logger()
NONE: Mapping[str, str] = MappingProxyType({})

KEEP = 20
"""Seconds for which an idle connection is kept: less than any server's idle time-out."""


@attrs.frozen
class Response:
    """A whole answer. The body may hold a CHAP password."""

    status: int
    body: bytes = attrs.field(repr=False)


class Unanswered(Exception):
    """No whole answer came; the text says what happened and shows no URI."""


class Late(Unanswered):
    """Nothing came in time."""


class _Cut(Exception):
    """The connection broke with the request under way."""


@implementer(IBodyProducer)
class _Bytes:
    """A request's body."""

    def __init__(self, body: bytes) -> None:
        self._body = body
        self.length = len(body)

    def startProducing(self, consumer: IConsumer) -> Deferred[None]:
        consumer.write(self._body)
        return defer.succeed(None)

    def pauseProducing(self) -> None:
        """It has been written whole."""

    def resumeProducing(self) -> None:
        """It has been written whole."""

    def stopProducing(self) -> None:
        """It has been written whole."""


class _Collector(Protocol):
    """A body of at most ANSWER_LIMIT bytes."""

    def __init__(self) -> None:
        self._body = bytearray()
        self.done: Deferred[bytes] = Deferred(self._give_up)

    def dataReceived(self, data: bytes) -> None:
        self._body += data
        if len(self._body) > wire.ANSWER_LIMIT:
            self._body.clear()
            self._end(Unanswered(f"its answer is longer than {wire.ANSWER_LIMIT} bytes"))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if reason.check(ResponseDone):
            self._end(bytes(self._body))
        elif reason.check(PotentialDataLoss):
            self._end(Unanswered("its answer has no stated length"))
        else:
            self._end(_Cut("the connection ended in the middle of its answer"))

    def _end(self, result: bytes | Exception) -> None:
        if not self.done.called:
            if isinstance(result, bytes):
                self.done.callback(result)
            else:
                self._give_up(self.done)
                self.done.errback(result)

    def _give_up(self, _: Deferred[bytes]) -> None:
        transport: Any = self.transport
        if transport is not None:
            transport.loseConnection()


class PeerConnection:
    """Requests to one URI over kept connections. No redirect is followed and no proxy asked: `Agent` alone does
    neither."""

    def __init__(self, reactor: Any, uri: MigrationUri, connect_time: float, trust_root: Any = None) -> None:
        self.uri = uri
        self._reactor = reactor
        self._pool = HTTPConnectionPool(reactor, persistent=True)
        self._pool.cachedConnectionTimeout = KEEP
        self._pool.retryAutomatically = False
        self._agent = Agent(reactor, OneServer(uri, trust_root), connectTimeout=connect_time, pool=self._pool)

    async def request(
        self, method: str, below: str, seconds: float, body: bytes | None = None, headers: Mapping[str, str] = NONE
    ) -> Response:
        """One request, `below` being "" or "/metadata" and so on. Unanswered unless a whole answer came within
        `seconds`.

        Every verb may be repeated, so a request whose connection breaks (a kept one may have been ended by the
        other side) is made once more.
        """
        asked = Deferred.fromCoroutine(self._twice(method, below, body, headers))
        asked.addTimeout(seconds, self._reactor, lambda result, _: result if _answered(result) else _late(seconds))
        try:
            return await asked
        except (Unanswered, defer.CancelledError):
            raise
        except Exception as why:
            if any(isinstance(one, defer.CancelledError) for one in _reasons(why)):
                raise defer.CancelledError() from None
            raise Unanswered(describe(why, self.uri, seconds)) from None

    async def _twice(self, method: str, below: str, body: bytes | None, headers: Mapping[str, str]) -> Response:
        try:
            return await self._once(method, below, body, headers)
        except Exception as why:
            if not _broken(why):
                raise
            return await self._once(method, below, body, headers)

    async def _once(self, method: str, below: str, body: bytes | None, headers: Mapping[str, str]) -> Response:
        uri = f"{self.uri.destination}{self.uri.path}{below}".encode()
        producer = None if body is None else _Bytes(body)
        sent = Headers({"Accept": ["application/json"], "User-Agent": ["xapi_migrate"]})
        for name, value in headers.items():
            sent.setRawHeaders(name, [value])
        response: IResponse = await self._agent.request(method.encode(), uri, sent, producer)
        collector = _Collector()
        if response.length is not UNKNOWN_LENGTH and response.length > wire.ANSWER_LIMIT:
            response.deliverBody(collector)
            collector.dataReceived(bytes(wire.ANSWER_LIMIT + 1))
        else:
            response.deliverBody(collector)
        return Response(response.code, await collector.done)

    def close(self) -> Deferred[None]:
        """Let go of the kept connections; fires when they are closed."""
        closing: Deferred[None] = self._pool.closeCachedConnections()
        return closing


def _answered(result: object) -> bool:
    return isinstance(result, Response)


def _late(seconds: float) -> Failure:
    return Failure(Late(f"it gave no answer in {seconds:g} seconds"))


def _reasons(why: BaseException) -> list[BaseException]:
    """An exception and all that it wraps: twisted.web packs the reasons of a failed request in lists."""
    found = [why]
    for inner in getattr(why, "reasons", []):
        found += _reasons(getattr(inner, "value", inner))
    return found


def _broken(why: BaseException) -> bool:
    """The connection was there and broke, in a way that a kept connection breaks when it has been closed."""
    if any(isinstance(one, SSL.Error) for one in _reasons(why)):
        return False
    return any(isinstance(one, (_Cut, error.ConnectionDone, error.ConnectionLost)) for one in _reasons(why))


UNREACHABLE = "it cannot be reached (this host's log says more)"
"""All that a client hears of a connection that could not be made: what is more would scan ports for it."""


def describe(why: BaseException, uri: MigrationUri, seconds: float) -> str:
    """One short sentence, without a URI, about a request that got no answer."""
    reasons = _reasons(why)
    unmade = (error.ConnectError, error.DNSLookupError)
    if any(isinstance(one, unmade) for one in reasons) and not any(isinstance(one, SSL.Error) for one in reasons):
        log.info("{destination}: {reason}", destination=uri.destination, reason=str(reasons[-1]) or "no connection")
        return UNREACHABLE
    for one in reversed(reasons):
        if isinstance(one, (Unanswered, _Cut)):
            return str(one)
        if isinstance(one, (error.TimeoutError, defer.TimeoutError)):
            return f"it gave no answer in {seconds:g} seconds"
        if isinstance(one, SSL.Error):
            return _tls(one, uri)
        if type(one).__name__ in ("VerificationError", "CertificateError"):
            return "its certificate is for another host"
        if isinstance(one, (error.ConnectionDone, error.ConnectionLost, error.ConnectionAborted)):
            return "it closed the connection without a whole answer"
    return f"it did not speak HTTP as it should ({type(why).__name__})"


def _tls(why: SSL.Error, uri: MigrationUri) -> str:
    if "certificate verify failed" in str(why):
        return (
            "its certificate is not the one that the URI names"
            if uri.fingerprint
            else "its certificate is not one that this host trusts"
        )
    return "no TLS connection could be made"


def refusal(request: str, response: Response) -> MigrateError:
    """The error that an answer other than 200 stands for. `request` as it is named in messages."""
    if response.status == 404 and not response.body.startswith(b"{"):
        return OperationNotAllowed(
            f"The receiver does not know this migration ({request} was answered 404): it has ended, or the offer "
            "has expired."
        )
    try:
        value = wire.decode(response.body)
    except wire.Malformed:
        return PeerSilent(request, f"{response.status} came without a word of the receiver's own")
    code, message = wire.plain(value.get("code", "INTERNAL_ERROR")), wire.plain(value.get("message", ""))
    listed = value.get("params")
    params = [wire.plain(one) for one in listed[:16]] if isinstance(listed, list) else []
    if response.status == 410 and code != OperationNotAllowed.code:
        aborted = code == MigrationAborted.code and len(params) == 4
        return MigrationAborted(params[3] if aborted else message)
    return RemoteError([code, *params], message or code)
