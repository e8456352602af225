"""The Request that knows the gate.

For paths below /migrate it decides when the headers are in (`gotLength`) and hands the body to an exchange as it
comes. All other requests go the way of twisted.web.
"""

from __future__ import annotations

from io import BytesIO
from typing import Any

import attrs
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web import http, server
from twisted.web.resource import IResource

from ..entrance import Entrance, shown
from ..errors import InternalError, MigrateError
from .channel import Channel
from .exchange import Exchange, Whole
from .memory import receive
from .reply import Reply, failure
from .socket_options import break_off, plain_address, tcp_socket
from .tree import MigrationTree, Streamed, below
from .verb import Call, Verb

LINGER = 2.0
"""Seconds for which a refused request's body is read and thrown away, so that the client sees the refusal before
the connection ends."""
LINGER_BYTES = 256 << 10
"""After so many bytes no more are read."""


class MigrationRequest(server.Request):
    """Subclass it, call super() in what you override, and use it as the Site's requestFactory."""

    log = Logger()
    exchange: Exchange | None = None
    _lingering: Any = None
    _expects_continue = False
    _closed = False
    _thrown_away = 0
    _idle: float | None = None

    def gotLength(self, length: int | None) -> None:
        tree = getattr(self._channel.site, "migrations", None)
        method, path = self._channel._command, self._channel._path
        if tree is None or not below(path):
            # twisted.web would open a temporary file for a long body; what is too long is refused by its limit
            self.content = BytesIO()
            return
        self.claim(b"/migrate")  # nothing that prints a request may print a capability
        self._admit(tree, method, path, length)

    def claim(self, path: bytes) -> None:
        """This request is not twisted.web's, whose headers are in: an exchange has it. `path` stands for its own."""
        # the request line has been read, but twisted.web passes it on only with the whole body
        self.method, self.clientproto = self._channel._command, self._channel._version
        self.uri = self.path = path
        self.args: dict[bytes, list[bytes]] = {}
        self.content = BytesIO()
        self.site = self._channel.site
        # twisted.web would send 100 by itself; here an exchange does when it wants the body
        self._expects_continue = self.requestHeaders.getRawHeaders(b"expect", [b""])[0].lower() == b"100-continue"
        self.requestHeaders.removeHeader(b"expect")

    def _admit(self, tree: MigrationTree, method: bytes, path: bytes, length: int | None) -> None:
        admitted = tree.admit(method, path)
        if isinstance(admitted, Reply):
            self.exchange = Whole(self, 0, lambda body: self.reply(admitted))
            if length != 0:
                self.refuse(admitted)
            self.exchange.began(length)
            return
        shown(self, admitted.receiving)
        if isinstance(admitted.verb, Streamed):
            self.exchange = receive(self, admitted.receiving, length, tree.reactor, tree.memory_silence)
        else:
            verb = admitted.verb
            acknowledge = ",".join(self.requestHeaders.getRawHeaders("acknowledge", []))
            address = plain_address(self._web.getHost().host)
            call = Call(admitted.receiving, admitted.number, address, acknowledge=acknowledge)
            self.exchange = Whole(self, verb.body_limit, lambda body: self._answer(verb, call, body))
        self.exchange.began(length)

    def handleContentChunk(self, data: bytes) -> None:
        if self.exchange is None:
            super().handleContentChunk(data)  # type: ignore[no-untyped-call]
        elif self._closed:
            self._throw_away(data)
        else:
            self.exchange.received(data)

    def requestReceived(self, command: bytes, path: bytes, version: bytes) -> None:
        if self.exchange is None:
            # else twisted.web takes a body for a form if this says so, and parts within parts take it seconds
            self.requestHeaders.removeHeader(b"content-type")
            super().requestReceived(command, path, version)  # type: ignore[no-untyped-call]
        elif self._closed:
            self._channel.loseConnection()  # all of the body has been read: nothing can be lost any more
        else:
            self.exchange.complete()

    def connectionLost(self, reason: Failure) -> None:
        if self._lingering is not None and self._lingering.active():
            self._lingering.cancel()
        exchange, self.exchange = self.exchange, None
        super().connectionLost(reason)  # type: ignore[no-untyped-call]
        if exchange is not None:
            exchange.lost()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.method!r}>"

    # -- what exchanges use --------------------------------------------------------------------

    @property
    def secure(self) -> bool:
        """The request came over TLS."""
        return bool(self._web.isSecure())

    def proceed(self) -> None:
        """Let a client that waits for it send its body."""
        if self._expects_continue and not self._closed:
            self._expects_continue = False
            self._channel.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def reply(self, reply: Reply) -> None:
        """Answer a request whose body is in; the connection goes on."""
        if self._gone or self._closed:
            return
        channel = self._channel
        self._write(reply)
        self._web.finish()
        if self._idle:
            channel.setTimeout(self._idle)

    def refuse(self, reply: Reply, linger: float = LINGER) -> None:
        """Answer a request whose body is not in, and end the connection without taking the body: what comes of it
        within `linger` seconds is thrown away."""
        if self._gone or self._closed:
            return
        self._closed = True
        self._web.setHeader(b"Connection", b"close")
        self._write(reply)
        channel = self._channel
        channel.setTimeout(None)
        # a close with unread bytes resets the connection, which can overtake the answer
        self._lingering = channel.callLater(linger, self._end)
        if channel.isSecure():
            channel.loseConnection()
        else:
            channel.transport.loseWriteConnection()
        channel.transport.resumeProducing()

    def without_time_out(self) -> None:
        """This request may take long and may pause: no idle time-out until it is answered."""
        self._idle = self._channel.setTimeout(None)

    def failure_reply(self, error: Failure) -> Reply:
        """The reply that an exception becomes. What is not in the catalogue is logged and told as no more than that."""
        if isinstance(error.value, MigrateError):
            return failure(error.value)
        self.log.failure("a migration URI failed", failure=error)
        return failure(InternalError("The receiving host failed; its log says why."))

    @property
    def _channel(self) -> Any:
        return self.channel

    @property
    def _web(self) -> Any:
        """The request as twisted.web sees it, which has no types."""
        return self

    @property
    def _gone(self) -> bool:
        return bool(self.finished) or self._channel is None

    def _answer(self, verb: Verb, call: Call, body: bytes) -> None:
        async def answered() -> Reply:
            return await verb.answer(attrs.evolve(call, body=body))

        done = Deferred.fromCoroutine(answered())
        done.addErrback(self.failure_reply)
        done.addCallback(self.reply)
        done.addErrback(lambda error: self.log.failure("could not answer a migration URI", failure=error))

    def _write(self, reply: Reply) -> None:
        self.setResponseCode(reply.status, http.RESPONSES.get(reply.status, b"Refused"))
        self._web.setHeader(b"Date", http.datetimeToString())
        self._web.setHeader(b"Content-Type", reply.content_type.encode())
        self._web.setHeader(b"Content-Length", str(len(reply.body)).encode())
        self._web.setHeader(b"X-Content-Type-Options", b"nosniff")
        self._web.setHeader(b"Cache-Control", b"no-store")
        for name, value in reply.headers:
            self._web.setHeader(name.encode(), value.encode())
        self._web.write(reply.body)

    def _throw_away(self, data: bytes) -> None:
        self._thrown_away += len(data)
        if self._thrown_away > LINGER_BYTES and self._channel is not None:
            self._channel.transport.pauseProducing()  # a client that cannot send on looks at what it was told

    def _end(self) -> None:
        if self._channel is not None:
            transport = self._channel.transport
            break_off(tcp_socket(transport))  # a hypervisor may hold a duplicate
            transport.abortConnection()


class MigrationSite(server.Site):
    """A Site whose tree has migration URIs: HTTP/1.1 only, and no access log, for that would hold capabilities."""

    protocol = Channel  # type: ignore[assignment]

    def __init__(self, root: IResource, migrations: MigrationTree | None, **options: Any) -> None:
        options.setdefault("requestFactory", MigrationRequest)
        super().__init__(root, **options)  # type: ignore[no-untyped-call]
        self.migrations = migrations
        self.entrance: Entrance | None = None
        """How many may come, if not any number."""

    def acceptableProtocols(self) -> list[bytes]:
        return [b"http/1.1"]

    def log(self, request: http.Request) -> None:
        """No access log."""
