"""A small NBD client on Twisted: a guest that reads and writes an attached VDI."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any

from twisted.internet import defer, protocol
from twisted.internet.endpoints import UNIXClientEndpoint, connectProtocol
from twisted.internet.error import ConnectionDone

READ, WRITE, FLUSH, TRIM, ZEROES = 0, 1, 3, 4, 6


class NBDError(Exception):
    """The server refused a request; `number` is an errno."""

    def __init__(self, number: int) -> None:
        super().__init__(os.strerror(number))
        self.number = number


class NBDClient(protocol.Protocol):
    """Requests go out at once, several may be under way."""

    def __init__(self, export: str) -> None:
        self._export = export.encode()
        self._buffer = b""
        self._state = "greeting"
        self._pending: dict[int, tuple[int, defer.Deferred[bytes]]] = {}
        self._sequence = 0
        self.size = 0
        self.ready: defer.Deferred[NBDClient] = defer.Deferred()
        self.lost = False

    def dataReceived(self, data: bytes) -> None:
        self._buffer += data
        while self._step():
            pass

    def _take(self, count: int) -> bytes | None:
        if len(self._buffer) < count:
            return None
        taken, self._buffer = self._buffer[:count], self._buffer[count:]
        return taken

    def _step(self) -> bool:
        assert self.transport is not None
        if self._state == "greeting":
            if self._take(18) is None:
                return False
            name = struct.pack(">I", len(self._export)) + self._export + struct.pack(">H", 0)
            self.transport.write(
                struct.pack(">I", 3) + b"IHAVEOPT" + struct.pack(">II", 7, len(name)) + name  # NBD_OPT_GO
            )
            self._state = "options"
            return True
        if self._state == "options":
            if len(self._buffer) < 20:
                return False
            kind, length = struct.unpack(">II", self._buffer[12:20])
            reply = self._take(20 + length)
            if reply is None:
                return False
            if kind == 3 and reply[20:22] == b"\0\0":  # NBD_REP_INFO, NBD_INFO_EXPORT
                self.size = int.from_bytes(reply[22:30], "big")
            return True if kind != 1 and not kind & 0x80000000 else self._negotiated(kind)
        if len(self._buffer) < 16:
            return False
        _, error, number = struct.unpack(">IIQ", self._buffer[:16])
        length, done = self._pending[number]
        if len(self._buffer) < 16 + (0 if error else length):
            return False
        self._take(16)
        payload = b"" if error else self._take(length) or b""
        del self._pending[number]
        done.errback(NBDError(error)) if error else done.callback(payload)
        return True

    def _negotiated(self, kind: int) -> bool:
        if kind != 1:
            self.ready.errback(NBDError(kind & 0xFFFF))
            return False
        self._state = "transmission"
        self.ready.callback(self)
        return True

    def connectionLost(self, reason: Any = None) -> None:
        self.lost = True
        for _, done in list(self._pending.values()):
            done.errback(reason or ConnectionDone())
        self._pending.clear()

    def _request(
        self, kind: int, offset: int, length: int, data: bytes = b"", answer: int = 0
    ) -> defer.Deferred[bytes]:
        assert self.transport is not None
        if self.lost:
            return defer.fail(ConnectionDone())
        self._sequence += 1
        done: defer.Deferred[bytes] = defer.Deferred()
        self._pending[self._sequence] = (answer, done)
        self.transport.write(struct.pack(">IHHQQI", 0x25609513, 0, kind, self._sequence, offset, length) + data)
        return done

    def read(self, offset: int, length: int) -> defer.Deferred[bytes]:
        return self._request(READ, offset, length, answer=length)

    def write(self, offset: int, data: bytes) -> defer.Deferred[bytes]:
        return self._request(WRITE, offset, len(data), data)

    def zeroes(self, offset: int, length: int) -> defer.Deferred[bytes]:
        return self._request(ZEROES, offset, length)

    def trim(self, offset: int, length: int) -> defer.Deferred[bytes]:
        return self._request(TRIM, offset, length)

    def flush(self) -> defer.Deferred[bytes]:
        return self._request(FLUSH, 0, 0)

    def close(self) -> None:
        assert self.transport is not None
        self.transport.abortConnection()  # type: ignore[attr-defined]


async def connect(reactor: Any, path: str, export: str) -> NBDClient:
    """A connected client; the socket's path may be long."""
    folder = os.open(Path(path).parent, os.O_PATH | os.O_DIRECTORY)
    try:
        endpoint = UNIXClientEndpoint(reactor, f"/proc/self/fd/{folder}/{Path(path).name}")
        client: NBDClient = await connectProtocol(endpoint, NBDClient(export))
    finally:
        os.close(folder)
    return await client.ready
