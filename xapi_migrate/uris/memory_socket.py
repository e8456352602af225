"""PUT memory by handing the TCP connection to the receiver's hypervisor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from ..migration.interfaces import IIncomingMemory, IReceiving
from . import wire
from .reply import Reply, refused
from .socket_options import bytes_received, expect_life

if TYPE_CHECKING:
    from .request import MigrationRequest

SWITCHING = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: " + wire.UPGRADE + b"\r\n\r\n"
DRAIN = 10.0
"""Seconds for which a sender may go on sending after it was told that the stream failed."""
LOOK = 5.0
"""Seconds between looks at how many bytes have come: the daemon does not see them."""


@implementer(IIncomingMemory)
class HandedOverMemory:
    """The daemon stops reading, the hypervisor reads from a duplicate of the socket. Then the daemon answers on
    the same connection, which serves further requests if the stream came whole."""

    def __init__(self, request: MigrationRequest, receiving: IReceiving, silence: int) -> None:
        self._silence = silence
        self._request = request
        self._receiving = receiving
        self._channel: Any = request.channel
        self._taken = False
        self._over = False
        self._look: Any = None
        self._seen = 0

    # -- the exchange --------------------------------------------------------------------------

    def began(self, length: int | None) -> None:
        pass

    def received(self, data: bytes) -> None:
        raise AssertionError("no body was announced")

    def complete(self) -> None:
        self._channel.transport.pauseProducing()
        # what came in one packet with the headers reaches the channel's buffer only when we have returned
        self._channel.callLater(0, self._begin)

    def lost(self) -> None:
        self._end()

    # -- IIncomingMemory -----------------------------------------------------------------------

    def fileno(self) -> int:
        return int(self._socket.fileno())

    def taken(self) -> None:
        if not self._taken and not self._over:
            self._taken = True
            self._channel.transport.write(SWITCHING)

    # ------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        if self._over:
            return
        if self._channel._dataBuffer:
            self._over = True
            self._request.refuse(refused(400, "Bytes of the stream came before 101 Switching Protocols."))
            return
        self._socket = self._channel.transport.getHandle()
        expect_life(self._socket, self._silence)
        self._look = self._channel.callLater(LOOK, self._look_for_life)

        async def put() -> None:
            await self._receiving.put_memory(self)

        done = Deferred.fromCoroutine(put())
        done.addCallbacks(self._came_whole, self._failed)
        done.addErrback(lambda error: self._request.log.failure("could not answer PUT memory", failure=error))

    def _came_whole(self, _: None) -> None:
        if not self._over:
            self._end()
            self._socket.setblocking(False)  # the hypervisor shares this flag and may have cleared it
            self._request.reply(Reply(200))

    def _failed(self, error: Failure) -> None:
        reply = self._request.failure_reply(error)
        if self._over:
            return
        self._end()
        self._socket.setblocking(False)
        if not self._taken:
            self._request.reply(reply)
            return
        # the sender may still be sending: that is no request, and must not be parsed as one
        transport = self._channel.transport
        transport.protocol = Drain(transport.protocol)
        self._request.refuse(reply, DRAIN)

    def _look_for_life(self) -> None:
        seen = bytes_received(self._socket)
        if seen != self._seen:
            self._seen = seen
            self._receiving.touch()
        self._look = self._channel.callLater(LOOK, self._look_for_life)

    def _end(self) -> None:
        self._over = True
        if self._look is not None and self._look.active():
            self._look.cancel()


class Drain(Protocol):
    """Reads and forgets, in the place of the protocol that had the connection before."""

    def __init__(self, before: Any) -> None:
        self._before = before

    def dataReceived(self, data: bytes) -> None:
        pass

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._before.connectionLost(reason)
