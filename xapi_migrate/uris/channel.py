"""The server's side of one HTTP connection: a visitor, who is answered no faster than he reads."""

from __future__ import annotations

from typing import Any

from twisted.python.failure import Failure
from twisted.web import http

from ..entrance import Visitor


class Channel(http.HTTPChannel):
    """twisted.web stops reading where answers are not taken, but goes on with the requests that it has read: sixty
    kilobytes of them can ask for many megabytes. Here the next one waits until the answers before it are out. And while
    one is being answered it goes on reading if answers are not taken; here it does not."""

    visitor: Visitor | None = None
    """Set before the connection is made if somebody else has let it in, and will tell of its end."""
    site: Any
    _held: Any = None

    def connectionMade(self) -> None:
        super().connectionMade()  # type: ignore[no-untyped-call]
        entrance = getattr(self.site, "entrance", None)
        if self.visitor is None and entrance is not None:
            self.visitor = entrance.enter(getattr(self.getPeer(), "host", ""), self)  # type: ignore[no-untyped-call]
            if self.visitor is None:
                self.put_out()
            elif getattr(self.site, "trusted", False):
                self.visitor.shows()

    def put_out(self) -> None:
        """End the connection at once."""
        self._transport.abortConnection()

    def timeoutConnection(self) -> None:
        if self._abortingCall is None:
            super().timeoutConnection()  # type: ignore[no-untyped-call]

    def allContentReceived(self) -> None:
        if self.visitor is not None:
            self.visitor.busy()
        super().allContentReceived()  # type: ignore[no-untyped-call]

    def rawDataReceived(self, data: bytes) -> None:
        super().rawDataReceived(data)
        if self._handlingRequest and sum(map(len, self._dataBuffer)) > self._optimisticEagerReadSize:
            self._networkProducer.pauseProducing()

    def requestDone(self, request: http.Request) -> None:
        if self.visitor is not None:
            self.visitor.awaited()
        if self._waitingForTransport and self.persistent:
            self._held = request
            self._networkProducer.pauseProducing()
            self.setTimeout(self._savedTimeOut)  # type: ignore[no-untyped-call]
        else:
            super().requestDone(request)  # type: ignore[no-untyped-call]

    def resumeProducing(self) -> None:
        super().resumeProducing()  # type: ignore[no-untyped-call]
        held, self._held = self._held, None
        if held is not None:
            super().requestDone(held)  # type: ignore[no-untyped-call]

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        self._held = None
        if self.visitor is not None:
            self.visitor.leave()
        super().connectionLost(reason)  # type: ignore[no-untyped-call]

    @property
    def _transport(self) -> Any:
        return self.transport
