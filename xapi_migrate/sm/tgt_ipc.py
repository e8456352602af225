"""The management socket of tgtd, spoken directly: tgtadm would show CHAP passwords in the process list.

A request is a fixed structure of 120 bytes (that of tgt 1.0.8x) and a text of parameters; the answer is an
error number, the whole length, and a text. One connection per request.
"""

from __future__ import annotations

import os
import struct
from enum import IntEnum
from pathlib import Path
from typing import Any

from twisted.internet import defer, protocol
from twisted.internet.endpoints import UNIXClientEndpoint, connectProtocol
from twisted.internet.error import ConnectionDone
from twisted.python.failure import Failure

from xapi_migrate.together import connected

#   mode op lld len tid sid lun cid host_no device_type ac_dir pack force
_REQUEST = struct.Struct("<II64sIiQQIIIIII")
_ANSWER = struct.Struct("<II")
_NOWHERE = 0xFFFFFFFFFFFFFFFF


class Mode(IntEnum):
    """What a request is about."""

    SYSTEM = 0
    TARGET = 1
    DEVICE = 2
    PORTAL = 3
    SESSION = 5
    CONNECTION = 6
    ACCOUNT = 7


class Op(IntEnum):
    """What to do with it."""

    NEW = 0
    DELETE = 1
    SHOW = 2
    BIND = 3
    UNBIND = 4
    UPDATE = 5


class TgtError(Exception):
    """tgtd refused a request. `number` is its own, see NAMES."""

    NAMES = {
        1: "unknown error", 2: "out of memory", 3: "no such driver", 4: "no such target", 5: "no such LUN",
        6: "no such session", 7: "no such connection", 8: "no binding", 9: "target exists", 10: "binding exists",
        11: "LUN exists", 12: "ACL exists", 13: "no such ACL", 14: "account exists", 15: "no such account",
        16: "too many accounts", 17: "invalid request", 18: "outgoing account exists", 19: "target in use",
        20: "LUN in use",
    }  # fmt: skip

    def __init__(self, number: int, what: str) -> None:
        super().__init__(f"tgtd refused to {what}: {self.NAMES.get(number, 'error')} ({number})")
        self.number = number


class _Exchange(protocol.Protocol):
    def __init__(self, request: bytes) -> None:
        self._request = request
        self._received = b""
        self.answered: defer.Deferred[tuple[int, str]] = defer.Deferred(lambda _: self._drop())

    def _drop(self) -> None:
        if self.transport is not None:
            self.transport.loseConnection()

    def connectionMade(self) -> None:
        assert self.transport is not None
        self.transport.write(self._request)

    def dataReceived(self, data: bytes) -> None:
        self._received += data
        if len(self._received) < _ANSWER.size or self.answered.called:
            return
        error, length = _ANSWER.unpack_from(self._received)
        if len(self._received) >= length:
            self._drop()
            text = self._received[_ANSWER.size : max(length, _ANSWER.size)]
            self.answered.callback((error, text.rstrip(b"\0").decode("utf-8", "replace")))

    def connectionLost(self, reason: Failure | None = None) -> None:
        if not self.answered.called:
            self.answered.errback(reason or Failure(ConnectionDone()))


def pack(mode: Mode, op: Op, tid: int, lun: int, sid: int, cid: int, force: bool, text: str) -> bytes:
    """The bytes of one request."""
    tail = text.encode() + b"\0" if text else b""
    length = _REQUEST.size + len(tail)
    return (
        _REQUEST.pack(mode, op, b"iscsi", length, tid, sid, lun & _NOWHERE, cid & 0xFFFFFFFF, 0, 0, 0, 0, int(force))
        + tail
    )


async def call(
    reactor: Any,
    socket: Path,
    mode: Mode,
    op: Op,
    *,
    tid: int = -1,
    lun: int = -1,
    sid: int = 0,
    cid: int = 0,
    force: bool = False,
    text: str = "",
    what: str = "answer",
    timeout: float = 10.0,
) -> str:
    """One request; its text. TgtError when refused, OSError or ConnectError when tgtd is not there, TimeoutError.

    `text` may hold a password and goes into no message; `what` says for people what was asked.
    """
    folder = os.open(socket.parent, os.O_PATH | os.O_DIRECTORY)  # a unix address holds 108 bytes only
    try:
        endpoint = UNIXClientEndpoint(reactor, f"/proc/self/fd/{folder}/{socket.name}")
        exchange: _Exchange = await connected(
            connectProtocol(endpoint, _Exchange(pack(mode, op, tid, lun, sid, cid, force, text)))
        )
    finally:
        os.close(folder)
    exchange.answered.addTimeout(timeout, reactor)
    error, answer = await exchange.answered
    if error:
        raise TgtError(error, what)
    return answer
