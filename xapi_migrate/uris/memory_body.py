"""PUT memory by carrying the body of the request to the receiver's hypervisor."""

from __future__ import annotations

import socket
import time
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IPushProducer
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from ..migration.interfaces import IIncomingMemory, IReceiving
from .pair import adopt
from .reply import Reply, refused
from .socket_options import expect_life, local_pair, read_more, tcp_socket

if TYPE_CHECKING:
    from .request import MigrationRequest

TAIL = 10.0
"""Seconds for the end of the body to come after the hypervisor has read all that it wants."""


class _Sink(Protocol):
    """Our end of the pair."""

    def __init__(self, memory: CarriedMemory) -> None:
        self._memory = memory

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._memory._closed()


@implementer(IIncomingMemory, IPushProducer)
class CarriedMemory:
    """The hypervisor reads from one end of a local pair, the daemon writes the body into the other as fast as the
    hypervisor reads and no faster. The end of the body is the end of the stream. Nothing is collected: what
    cannot be written at once stops the reading."""

    def __init__(self, request: MigrationRequest, receiving: IReceiving, reactor: Any, silence: int) -> None:
        self._silence = silence
        self._request = request
        self._receiving = receiving
        self._reactor = reactor
        self._channel: Any = request.channel
        self._theirs: socket.socket | None = None
        self._sink: Any = None
        self._taken = False
        self._whole = False
        self._over = False
        self._result: Reply | None = None
        self._touched = 0.0
        self._tail: Any = None

    # -- the exchange --------------------------------------------------------------------------

    def began(self, length: int | None) -> None:
        self._request.without_time_out()
        self._channel.transport.pauseProducing()
        expect_life(tcp_socket(self._channel.transport), self._silence)
        read_more(self._channel.transport)
        ours, self._theirs = local_pair()
        self._sink = adopt(self._reactor, ours, _Sink(self)).transport
        read_more(self._sink)
        self._sink.registerProducer(self, True)

        async def put() -> None:
            await self._receiving.put_memory(self)

        done = Deferred.fromCoroutine(put())
        done.addCallbacks(self._came_whole, self._failed)
        done.addErrback(lambda error: self._request.log.failure("could not answer PUT memory", failure=error))

    def received(self, data: bytes) -> None:
        now = time.monotonic()
        if now > self._touched + 1:
            self._touched = now
            self._receiving.touch()
        if self._sink is not None:
            self._sink.write(data)

    def complete(self) -> None:
        self._whole = True
        if self._sink is not None:
            self._sink.unregisterProducer()
            self._sink.loseConnection()
        if self._result is not None:
            self._answer(self._result)

    def lost(self) -> None:
        self._end()
        if self._sink is not None:
            self._sink.abortConnection()

    # -- IIncomingMemory -----------------------------------------------------------------------

    def fileno(self) -> int:
        assert self._theirs is not None
        return self._theirs.fileno()

    def taken(self) -> None:
        if not self._taken and not self._over:
            self._taken = True
            self._close_theirs()
            self._request.proceed()
            self.resumeProducing()

    # -- IPushProducer, for the pair -----------------------------------------------------------

    def pauseProducing(self) -> None:
        if not self._over and not self._whole:
            self._channel.transport.pauseProducing()

    def resumeProducing(self) -> None:
        if self._taken and not self._over and not self._whole:
            self._channel.transport.resumeProducing()

    def stopProducing(self) -> None:
        """The pair is gone; `_closed` follows."""

    # ------------------------------------------------------------------------------------------

    def _closed(self) -> None:
        """The pair has ended. If that is the hypervisor's doing, put_memory says what it means, unless it has."""
        self._sink = None
        if self._result is None:
            self.pauseProducing()

    def _came_whole(self, _: None) -> None:
        self._close_theirs()
        if self._over:
            return
        self._result = Reply(200)
        if self._whole:
            self._answer(self._result)
        else:
            self._tail = self._channel.callLater(TAIL, self._no_end)
            self._channel.transport.resumeProducing()

    def _no_end(self) -> None:
        self._end()
        self._request.refuse(refused(400, "The body went on after the end of the memory stream."))

    def _failed(self, error: Failure) -> None:
        reply = self._request.failure_reply(error)
        self._close_theirs()
        if self._over:
            return
        if self._whole:
            self._answer(reply)
            return
        self._end()
        if self._sink is not None:
            self._sink.abortConnection()
        self._request.refuse(reply)

    def _answer(self, reply: Reply) -> None:
        self._end()
        self._request.reply(reply)

    def _end(self) -> None:
        self._over = True
        self._close_theirs()
        if self._tail is not None and self._tail.active():
            self._tail.cancel()

    def _close_theirs(self) -> None:
        if self._theirs is not None:
            self._theirs.close()
            self._theirs = None
