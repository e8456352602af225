"""The sender's end of a connection that a memory stream goes over: writes what it is given, reads HTTP responses.

`Agent` can neither give its socket away nor wait for 100 Continue, hence this small reader.
"""

from __future__ import annotations

import re
import socket
from typing import Any

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure

from . import wire
from .peer_connection import Unanswered
from .socket_options import break_off, tcp_socket

HEAD_LIMIT = 16 << 10
_STATUS = re.compile(rb"HTTP/1\.[01] (\d{3})(?: .*)?")


@attrs.frozen
class ResponseHead:
    """A response's status, and the length of its body; None where the connection's end will tell."""

    status: int
    length: int | None


class ResponseReader(Protocol):
    """Heads in the order in which they come, each followed by its body if that is asked for."""

    def __init__(self) -> None:
        self._buffer = b""
        self._lost: Failure | None = None
        self._waiting: Deferred[ResponseHead] | None = None
        self._collecting: tuple[Deferred[bytes], int | None] | None = None
        self._closed = False

    def next_head(self) -> Deferred[ResponseHead]:
        """The next response's head. Unanswered if it is none; ConnectionDone and the like if the connection ends."""
        assert self._waiting is None
        self._waiting = Deferred(lambda _: setattr(self, "_waiting", None))
        result = self._waiting
        self._advance()
        return result

    def body(self, head: ResponseHead) -> Deferred[bytes]:
        """The body of the head that came last."""
        result: Deferred[bytes] = Deferred(lambda _: setattr(self, "_collecting", None))
        self._collecting = (result, head.length)
        self._advance()
        return result

    def write(self, data: bytes) -> None:
        self._web.write(data)

    def socket(self) -> socket.socket:
        """The TCP socket itself."""
        found = tcp_socket(self.transport)
        if found is None:
            raise Unanswered("its connection has no socket")
        return found

    def close(self) -> None:
        """All has gone well: end the connection in order."""
        if not self._closed:
            self._closed = True
            if self._lost is None:
                self.socket().setblocking(False)  # the hypervisor shares this flag and may have cleared it
                self._web.loseConnection()

    def break_off(self) -> None:
        """End the connection at once, for the hypervisor too. Nothing happens after close()."""
        if not self._closed:
            self._closed = True
            if self._lost is None:
                break_off(tcp_socket(self.transport))
                self._web.abortConnection()

    @property
    def _web(self) -> Any:
        return self.transport

    # -- Protocol ------------------------------------------------------------------------------

    def dataReceived(self, data: bytes) -> None:
        self._buffer += data
        self._advance()
        if len(self._buffer) > HEAD_LIMIT + wire.ANSWER_LIMIT:
            self._fail(Failure(Unanswered("its answer is too long")))
            self.break_off()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._lost = reason
        self._advance()

    # ------------------------------------------------------------------------------------------

    def _advance(self) -> None:
        if self._waiting is not None and b"\r\n\r\n" in self._buffer:
            head, self._buffer = self._buffer.split(b"\r\n\r\n", 1)
            waiting, self._waiting = self._waiting, None
            try:
                parsed = _parse(head)
            except Unanswered as why:
                waiting.errback(why)
            else:
                waiting.callback(parsed)
        elif self._collecting is not None:
            collecting, length = self._collecting
            whole = len(self._buffer) >= length if length is not None else self._lost is not None
            if whole:
                self._collecting = None
                cut = len(self._buffer) if length is None else length
                body, self._buffer = self._buffer[:cut], self._buffer[cut:]
                collecting.callback(body)
        if self._lost is not None:
            self._fail(self._lost)

    def _fail(self, why: Failure) -> None:
        waiting, self._waiting = self._waiting, None
        collecting, self._collecting = self._collecting, None
        for one in (waiting, collecting and collecting[0]):
            if one is not None:
                one.errback(why)


def _parse(head: bytes) -> ResponseHead:
    status, *lines = head.split(b"\r\n")
    matched = _STATUS.fullmatch(status)
    if matched is None:
        raise Unanswered("it did not speak HTTP")
    length: int | None = 0 if int(matched[1]) < 200 else None
    for line in lines:
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            if not re.fullmatch(rb"[0-9]{1,9}", value.strip()):
                raise Unanswered("its answer has no sensible length")
            length = int(value)
    return ResponseHead(int(matched[1]), length)
