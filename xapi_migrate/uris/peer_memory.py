"""PUT memory (4.1) from the sender's side."""

from __future__ import annotations

import contextlib
from collections.abc import Coroutine
from typing import Any, TypeVar

from twisted.internet import defer, error, task
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import HostnameEndpoint, connectProtocol, wrapClientTLS
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.python.failure import Failure

from ..config import MigrationTimes
from ..errors import PeerSilent
from ..migration.interfaces import IOutgoingMemory
from ..together import connected
from . import wire
from .offer import MigrationUri
from .pair import adopt
from .peer_connection import Response, Unanswered, describe, refusal
from .peer_response import ResponseHead, ResponseReader
from .peer_tls import connection_creator
from .pump import Pump
from .socket_options import expect_life, local_pair

T = TypeVar("T")

LAST_WORD = 1.0
"""Seconds to wait for the receiver's reason when the stream has failed here."""


class MemorySender:
    """One memory stream to one URI. `send` fires with the receiver's 200."""

    def __init__(
        self, reactor: Any, uri: MigrationUri, times: MigrationTimes, memory: IOutgoingMemory, trust_root: Any
    ) -> None:
        self._reactor = reactor
        self._uri = uri
        self._times = times
        self._memory = memory
        self._trust_root = trust_root
        self._request = f"PUT memory ({uri.netloc})"

    async def send(self) -> None:
        """PeerSilent when the connection breaks or no answer comes; the receiver's error when it refuses, before the
        stream, in the middle of it or after it; the hypervisor's own if it fails alone. Cancelled, and in every
        failure, the stream is broken for the hypervisor too."""
        wants = self._memory.takes_socket and not self._uri.secure
        if wants and await self._hand_over():
            return
        await self._carry()

    # -- the hypervisor takes the TCP socket ---------------------------------------------------

    async def _hand_over(self) -> bool:
        """False when the receiver wants the stream as a body instead."""
        upgrade = wire.UPGRADE.decode()
        reader = await self._connect()
        try:
            head = await self._asked(reader, 101, "Connection: Upgrade", f"Upgrade: {upgrade}", "Content-Length: 0")
            if head.status == 426:
                return False
            if head.status != 101:
                raise await self._refused(reader, head)
            # Our own while it begins: the connection may break meanwhile, and its number be another's by then.
            with reader.socket().dup() as own:
                await self._memory.begin(own.fileno())
            await self._see_through(reader, self._finished())
            reader.close()
            return True
        finally:
            reader.break_off()

    async def _finished(self) -> None:
        await self._memory.finished()

    # -- the daemon carries the stream ---------------------------------------------------------

    async def _carry(self) -> None:
        reader = await self._connect()
        ours, theirs = local_pair()
        pump: Pump | None = None
        try:
            head = await self._asked(reader, 100, "Transfer-Encoding: chunked", "Expect: 100-continue")
            if head.status != 100:
                raise await self._refused(reader, head)
            pump = adopt(self._reactor, ours, Pump(reader))
            await self._memory.begin(theirs.fileno())
            theirs.close()
            await self._see_through(reader, self._carried(pump))
            reader.close()
        finally:
            ours.close()
            theirs.close()
            reader.break_off()
            if pump is not None:
                pump.stop()

    async def _carried(self, pump: Pump) -> None:
        """The body may end only where the stream is whole: a hypervisor that dies closes its end too."""
        await self._memory.finished()
        await self._timed(pump.emptied)
        pump.finish()

    # -- both ----------------------------------------------------------------------------------

    async def _connect(self) -> ResponseReader:
        endpoint: IStreamClientEndpoint = HostnameEndpoint(
            self._reactor, self._uri.host, self._uri.port, timeout=self._times.connect
        )
        if self._uri.secure:
            endpoint = wrapClientTLS(connection_creator(self._uri, self._trust_root), endpoint)
        try:
            reader: ResponseReader = await connected(connectProtocol(endpoint, ResponseReader()))
        except defer.CancelledError:
            raise
        except Exception as why:
            raise PeerSilent(self._request, describe(why, self._uri, self._times.connect)) from None
        expect_life(reader.socket(), self._times.memory_silence)
        return reader

    async def _asked(self, reader: ResponseReader, wanted: int, *headers: str) -> ResponseHead:
        """The answer to the headers: the `wanted` interim one or a final one."""
        lines = (f"PUT {self._uri.path}/memory HTTP/1.1", f"Host: {self._uri.netloc}", "User-Agent: xapi_migrate")
        reader.write(("\r\n".join((*lines, *headers)) + "\r\n\r\n").encode())
        return await self._timed(self._head(reader, wanted))

    async def _head(self, reader: ResponseReader, wanted: int = 200) -> ResponseHead:
        """The next response that is final or the wanted one."""
        try:
            while True:
                head = await reader.next_head()
                if head.status >= 200 or head.status == wanted:
                    return head
        except defer.CancelledError:
            raise
        except Exception as why:
            raise PeerSilent(self._request, describe(why, self._uri, self._times.request)) from None

    async def _refused(self, reader: ResponseReader, head: ResponseHead) -> Exception:
        """What the receiver says in a final answer that is not 200."""
        body = b""
        with contextlib.suppress(PeerSilent, Unanswered, error.ConnectionLost, error.ConnectionDone):
            body = await self._timed(reader.body(head), LAST_WORD)
        return refusal(self._request, Response(head.status, body))

    async def _see_through(self, reader: ResponseReader, sending: Coroutine[Any, Any, None]) -> None:
        """Wait for the end of the stream and for the answer. An answer before the end is a refusal nearly always."""
        sent = Deferred.fromCoroutine(sending)
        answered = Deferred.fromCoroutine(self._head(reader))
        try:
            await _first_of(self._reactor, sent, answered)
            if sent.called and not answered.called:
                await self._ended(reader, sent, answered)
            head = await self._timed(answered)
            if head.status != 200:
                raise await self._refused(reader, head)
            await self._timed(sent)
        finally:
            for one in (sent, answered):
                one.addErrback(lambda _: None)
                one.cancel()

    async def _ended(self, reader: ResponseReader, sent: Deferred[None], answered: Deferred[ResponseHead]) -> None:
        """The stream has ended before an answer came. If it failed, the receiver may be about to say why."""
        try:
            await sent
        except defer.CancelledError:
            raise
        except Exception as why:
            pause: Deferred[None] = task.deferLater(self._reactor, LAST_WORD)
            try:
                await _first_of(self._reactor, answered, pause)
            finally:
                pause.addErrback(lambda _: None)
                pause.cancel()
            if not answered.called:
                raise
            head = await answered
            raise why if head.status == 200 else await self._refused(reader, head) from None

    async def _timed(self, waiting: Deferred[T] | Coroutine[Any, Any, T], seconds: float | None = None) -> T:
        """The result, or PeerSilent after `seconds` (that of any request if none are given)."""
        limit = self._times.request if seconds is None else seconds
        late = Failure(PeerSilent(self._request, f"it gave no answer in {limit:g} seconds"))
        result = waiting if isinstance(waiting, Deferred) else Deferred.fromCoroutine(waiting)
        result.addTimeout(limit, self._reactor, lambda _, __: late)
        return await result


def _first_of(reactor: Any, *waiting: Deferred[Any]) -> Deferred[None]:
    """Fires when the first of them has a result, good or bad, and leaves the results where they are."""
    first: Deferred[None] = Deferred()

    def fire_once() -> None:
        if not first.called:
            first.callback(None)

    def fire(result: T) -> T:
        reactor.callLater(0, fire_once)  # not here: whoever waits will want a result that is being passed on just now
        return result

    for one in waiting:
        one.addBoth(fire)
    return first
