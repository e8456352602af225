"""From the sending hypervisor to the body of PUT memory."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure

from .peer_response import ResponseReader
from .socket_options import read_more


class Pump(Protocol):
    """Our end of the pair whose other end the hypervisor writes to. What it reads it writes as chunks, as fast as the
    connection takes them and no faster."""

    def __init__(self, connection: ResponseReader) -> None:
        self._connection = connection
        self._running = False
        self.emptied: Deferred[None] = Deferred()
        """Fires when the hypervisor has closed its end and all that it wrote has been passed on."""

    def connectionMade(self) -> None:
        self._running = True
        read_more(self.transport)
        read_more(self._out)
        self._out.registerProducer(self.transport, True)

    def dataReceived(self, data: bytes) -> None:
        if self._running:
            self._out.writeSequence((b"%x\r\n" % len(data), data, b"\r\n"))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if not self.emptied.called:
            self.emptied.callback(None)

    def finish(self) -> None:
        """The stream was whole: end the body."""
        if self._running:
            self._release()
            self._out.write(b"0\r\n\r\n")

    def stop(self) -> None:
        """Carry no more; the hypervisor's writing fails."""
        self._release()
        end: Any = self.transport
        end.abortConnection()

    def _release(self) -> None:
        if self._running:
            self._running = False
            self._out.unregisterProducer()

    @property
    def _out(self) -> Any:
        return self._connection.transport
