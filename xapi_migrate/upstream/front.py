"""The overlay's side of a client's connection: one request after the other, each answered here, handed to the server of
the migration URIs, or passed through."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any
from typing import Protocol as TypingProtocol

import attrs
from twisted.internet import defer
from twisted.internet.interfaces import IAddress, IPushProducer, ISSLTransport
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.logger import Logger
from twisted.protocols.policies import TimeoutMixin
from twisted.python.failure import Failure
from zope.interface import implementer

from ..entrance import Entrance, Visitor
from ..together import started
from ..uris.request import LINGER
from ..uris.socket_options import notice_death, tcp_socket
from ..uris.tree import below
from ..xenapi.sessions import TRUSTED
from .messages import BadMessage, Body, Endless, RequestHead, Sized, find_head, request_head
from .pool import Kind, Pool
from .relay import Relay

IDLE = 300.0
"""Seconds that a connection may be open without a request."""
REQUEST = 60.0
"""Seconds in which a request must be here, if it is not streamed."""
LAST_WORDS = 60.0
"""Seconds that a client has to take what was written to it before its connection ended."""
_AHEAD = 64 << 10
"""Bytes that a client may be ahead while an earlier request is being answered."""


@attrs.frozen
class Reply:
    """An answer made here. `close`: the connection ends with it."""

    status: bytes
    content_type: bytes
    body: bytes = attrs.field(repr=False)
    close: bool = False

    def raw(self, head: RequestHead | None) -> bytes:
        lines = [
            b"HTTP/1.1 " + self.status,
            b"Content-Type: " + self.content_type,
            b"Content-Length: %d" % len(self.body),
            b"Access-Control-Allow-Origin: *",
            b"X-Content-Type-Options: nosniff",
        ]
        if self.close or head is None or not head.persistent:
            lines.append(b"Connection: close")
        elif head.version == 0:
            lines.append(b"Connection: keep-alive")
        return b"\r\n".join([*lines, b"", b""]) + (b"" if head is not None and head.method == b"HEAD" else self.body)


@attrs.frozen
class Mine:
    """A call that is answered here. `abandon`: if the client goes, so does the work. `session`: of who calls,
    as it says."""

    work: Awaitable[Reply]
    abandon: bool = False
    session: Any = None


@attrs.frozen
class Passed:
    """A request that goes to the upstream as it is. `after`: called when its answer begins. `waits`: a call that is
    answered when something happens."""

    repeatable: bool = False
    after: Callable[[], None] = lambda: None
    waits: bool = False


class Decides(TypingProtocol):
    """What becomes of requests."""

    pool: Pool
    local_only: bool
    """The upstream takes whoever comes for root: only who is root here may be passed through."""

    def holds_call(self, head: RequestHead) -> bool:
        """Whether the body is to be looked into; its length is known then, and small."""

    def knows(self, session: Any) -> bool:
        """Whether the upstream has vouched for this session."""

    def decide(self, head: RequestHead, body: bytes, origin: str) -> Mine | Passed:
        """What becomes of a request; `body` is "" unless it holds a call."""

    def unanswered(self, head: RequestHead, body: bytes, reason: str, tried: bool) -> Reply:
        """What the client is told when the upstream has not answered."""


@attrs.define(eq=False)
class FrontFactory(Factory):
    """`migrations` makes the server's side of a connection that asks for migration URIs. `trusted`: whoever comes is
    root on this host. `entrance`: how many may come, if not any number."""

    decides: Decides
    migrations: Callable[[IAddress | None], Any]
    trusted: bool = False
    entrance: Entrance | None = None

    def __attrs_post_init__(self) -> None:
        self.noisy = False

    def buildProtocol(self, addr: IAddress | None) -> Front:
        return Front(self, addr)


FORBIDDEN = Reply(
    b"403 Forbidden", b"text/plain",
    b"The upstream of this server is a unix socket, at which everybody is root: it is not opened to the network. Name "
    b"the upstream's https address in the setting `upstream`, or come by this server's own unix socket.\n", True,
)  # fmt: skip
TOO_LONG = Reply(b"431 Request Header Fields Too Large", b"text/plain", b"The head is too long.\n", True)


@implementer(IPushProducer)
class Front(Protocol, TimeoutMixin):
    """It is registered as what writes to its client, where no relay is: what the client does not take is not added
    to."""

    log = Logger()

    def __init__(self, factory: FrontFactory, address: IAddress | None) -> None:
        self._factory = factory
        self._decides = factory.decides
        self._address = address
        self._unread = b""
        self._head: RequestHead | None = None
        self._body = b""
        self._relay: Relay | None = None
        self._work: defer.Deferred[Any] | None = None
        self._abandon = False
        self._migrations: Any = None
        self._ending = False
        self._waits_for_rest = False
        self._advancing = False
        self._full = False
        self._visitor: Visitor | None = None
        self._late: Any = None

    @property
    def out(self) -> Any:
        return self.transport

    @property
    def _busy(self) -> bool:
        return self._relay is not None or self._work is not None

    def connectionMade(self) -> None:
        notice_death(tcp_socket(self.transport))
        self.setTimeout(IDLE)  # type: ignore[no-untyped-call]
        self.out.registerProducer(self, True)
        if self._factory.entrance is not None:
            self._visitor = self._factory.entrance.enter(getattr(self._address, "host", ""), self)
            if self._visitor is None:
                self._ending = True
                self.put_out()
            elif self._factory.trusted:
                self._visitor.shows()

    def put_out(self) -> None:
        """End the connection at once."""
        self.out.abortConnection()

    def timeoutConnection(self) -> None:
        if self._migrations is not None:
            self._migrations.timeoutConnection()
        elif self._late is None:
            self._ending = True
            self._late = self.callLater(LAST_WORDS, self.put_out)  # type: ignore[no-untyped-call]
            self.out.unregisterProducer()
            self.out.loseConnection()

    # -- IPushProducer: answers that are made here --------------------------------------------------

    def pauseProducing(self) -> None:
        self._full = True
        self.out.pauseProducing()

    def resumeProducing(self) -> None:
        self._full = False
        self.out.resumeProducing()
        if self._migrations is None and not self._busy:
            self._advance()

    def stopProducing(self) -> None:
        """The connection has ended; `connectionLost` follows."""

    def dataReceived(self, data: bytes) -> None:
        if self._migrations is not None:
            self._migrations.dataReceived(data)
            return
        if self._ending:
            return
        if self._relay is not None and self._relay.taking and not self._unread:
            self._unread = self._sent(data)
        else:
            self._unread += data
        if self._busy or self._full:
            self._hold_back()
        else:
            self._advance()

    def _sent(self, data: bytes) -> bytes:
        assert self._relay is not None
        try:
            return self._relay.send(data)
        except BadMessage as error:
            self._relay = None
            self._write_again()
            self._refuse(error)
            return b""

    def _hold_back(self) -> None:
        if len(self._unread) > _AHEAD:
            self.out.pauseProducing()

    # -- requests --------------------------------------------------------------------------------

    def _advance(self) -> None:
        """Take up the next requests, as far as they are here."""
        if self._advancing:
            return  # by a request that was answered at once
        self._advancing = True
        try:
            while self._unread and not self._busy and not self._full and not self._ending and self._migrations is None:
                if not self._take():
                    self._wait_for_rest()
                    return
                self._waits_for_rest = False
        except BadMessage as error:
            self._refuse(error)
        finally:
            self._advancing = False

    def _wait_for_rest(self) -> None:
        if not self._waits_for_rest:
            self._waits_for_rest = True
            self.setTimeout(REQUEST)  # type: ignore[no-untyped-call]

    def _take(self) -> bool:
        head = self._head
        if head is None:
            self._unread = self._unread.lstrip(b"\r\n")
            size = find_head(self._unread)
            if not size:
                return False
            head = request_head(self._unread[:size])
            if below(head.path):
                self._hand_over()
                return True
            self._unread = self._unread[size:]
            self._head = head
            if head.expects and self._decides.holds_call(head):
                self.out.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if self._decides.local_only and not self._factory.trusted:
            self._write(FORBIDDEN)
            return True
        call = self._decides.holds_call(head)
        length = (head.length or 0) if call else 0
        if len(self._unread) < length:
            return False
        self._body, self._unread = self._unread[:length], self._unread[length:]
        self._begin(head, call)
        return True

    def _begin(self, head: RequestHead, call: bool) -> None:
        self.setTimeout(None)  # type: ignore[no-untyped-call]
        if self._visitor is not None:
            self._visitor.busy()
        origin = TRUSTED if self._factory.trusted else getattr(self._address, "host", "") or "local"
        decided = self._decides.decide(head, self._body, origin)
        if isinstance(decided, Mine):
            self._abandon = decided.abandon
            self._recognise(decided.session)
            self._work = work = started(decided.work)
            work.addCallback(self._answer, decided.session)
            work.addErrback(self._failed)
            return
        opening = (head.without_expectation() if head.expects else head.raw) + self._body if call else head.raw
        kind = Kind.POLL if decided.waits else Kind.CALL if call else Kind.STREAM
        self._relay = Relay(
            self, self._decides.pool, kind, head, opening, _rest(head, call), decided.repeatable, decided.after
        )
        self.out.unregisterProducer()
        self._relay.start()

    def _answer(self, reply: Reply, session: Any) -> None:
        self._recognise(session)  # it may have been asked about meanwhile
        self._write(reply)

    def _recognise(self, session: Any) -> None:
        if self._visitor is not None and self._decides.knows(session):
            self._visitor.shows()

    def _failed(self, failure: Failure) -> None:
        self._work = None
        if not failure.check(defer.CancelledError):
            self.log.failure("A call could not be answered", failure)
        self.out.abortConnection()

    def _hand_over(self) -> None:
        """The rest of this connection is for migration URIs."""
        self.setTimeout(None)  # type: ignore[no-untyped-call]
        self.out.unregisterProducer()
        self._migrations = self._factory.migrations(self._address)
        self._migrations.visitor = self._visitor
        self._migrations.makeConnection(self.transport)
        unread, self._unread = self._unread, b""
        self._migrations.dataReceived(unread)

    # -- answers ---------------------------------------------------------------------------------

    def _write(self, reply: Reply) -> None:
        self._work = None
        if self._ending:
            return
        head = self._head
        self.out.write(reply.raw(head))
        self._done(head is not None and head.persistent and not reply.close)

    def _refuse(self, error: BadMessage) -> None:
        status = TOO_LONG if "head of more" in str(error) else None
        self._head = None
        self._write(
            status or Reply(b"400 Bad Request", b"text/plain", f"This is no request: {error}.\n".encode(), True)
        )

    def ready(self) -> None:
        relay = self._relay
        if relay is not None and relay.taking and self._unread:
            self._unread = self._sent(self._unread)
        self.out.resumeProducing()

    def begun(self, status: int, stream: bool) -> None:
        # it is the upstream that knows who comes, and tells nobody: but who has none of his rights gets no stream
        if stream and status < 400 and self._visitor is not None:
            self._visitor.shows(briefly=True)

    def answered(self, persistent: bool) -> None:
        self._relay = None
        self._write_again()
        self._done(persistent)

    def unanswered(self, reason: str, tried: bool) -> None:
        head, self._relay = self._head, None
        self._write_again()
        assert head is not None
        reply = self._decides.unanswered(head, self._body, reason, tried)
        streamed = not self._decides.holds_call(head) and not _rest(head, False).ended
        self._write(attrs.evolve(reply, close=True) if streamed else reply)

    def drop(self) -> None:
        self._relay = None
        self.out.abortConnection()

    def _write_again(self) -> None:
        """The relay has left the client's connection."""
        self._full = False
        self.out.registerProducer(self, True)

    def _done(self, persistent: bool) -> None:
        self._head, self._body = None, b""
        if self._visitor is not None:
            self._visitor.awaited(by_deadline=False)
        if persistent:
            self.setTimeout(IDLE)  # type: ignore[no-untyped-call]
            if not self._full:
                self.out.resumeProducing()
            self._advance()
            return
        # A close with unread bytes would reset the connection, which can overtake the answer: what still comes is
        # thrown away for a moment.
        self._ending = True
        self._unread = b""
        self.setTimeout(LINGER)  # type: ignore[no-untyped-call]
        self.out.unregisterProducer()
        if ISSLTransport.providedBy(self.out):
            self.out.loseConnection()
        else:
            self.out.loseWriteConnection()
        self.out.resumeProducing()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.setTimeout(None)  # type: ignore[no-untyped-call]
        if self._late is not None and self._late.active():
            self._late.cancel()
        if self._visitor is not None:
            self._visitor.leave()
        if self._migrations is not None:
            self._migrations.connectionLost(reason)
            return
        self._ending = True
        if self._relay is not None:
            self._relay.abandon()
            self._relay = None
        if self._work is not None and self._abandon:
            self._work.cancel()


def _rest(head: RequestHead, call: bool) -> Body:
    """What of the body follows the opening."""
    if call:
        return Sized(0)
    if not head.framed and head.method in (b"PUT", b"POST"):
        # a stream without a length, as xapi's own daemons send each other: up to the end of the connection
        return Endless()
    return head.body()
