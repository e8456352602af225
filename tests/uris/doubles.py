"""Stand-ins: a receiver behind its URIs, and hypervisors that read or write the descriptor they are handed."""

from __future__ import annotations

import hashlib
import os
import random
import socket
import struct
from collections.abc import Callable
from typing import Any

from twisted.internet import reactor, threads
from twisted.internet.defer import Deferred
from zope.interface import implementer
from zope.interface.verify import verifyObject

from xapi_migrate.errors import DomainError, HandleInvalid, MigrateError
from xapi_migrate.migration.interfaces import (
    Answer,
    DiskOffer,
    IIncomingMemory,
    IOffers,
    IOutgoingMemory,
    IReceiving,
    Outcome,
)
from xapi_migrate.sm.addresses import bracketed
from xapi_migrate.sm.interfaces import SameDiskProof, TargetUrl
from xapi_migrate.uris.capability import Capability, find

_LENGTH = struct.Struct("!Q")
_BLOCK = random.Random(1).randbytes(1 << 20)


def host_failed(why: str) -> DomainError:
    return DomainError("d1", "here", "move its memory", why)


def blocks(size: int) -> list[bytes]:
    """`size` bytes in which no two mebibytes are equal."""
    whole, rest = divmod(size, len(_BLOCK))
    made = [struct.pack("!Q", n) + _BLOCK[8:] for n in range(whole)]
    return [*made, _BLOCK[:rest]] if rest else made


class Guest:
    """A hypervisor's way with a descriptor: a blocking duplicate of its own, in a thread."""

    def __init__(self) -> None:
        self.sock: socket.socket | None = None
        self.hash = hashlib.sha256()
        self.moved = 0

    def duplicate(self, fd: int) -> socket.socket:
        self.sock = socket.socket(fileno=os.dup(fd))
        self.sock.setblocking(True)
        return self.sock


@implementer(IOutgoingMemory)
class Writer(Guest):
    """Writes a length, then so many bytes, then closes."""

    stream = "length-and-bytes"

    def __init__(self, size: int, takes_socket: bool = True, claims: int | None = None, hashed: bool = True) -> None:
        super().__init__()
        self.takes_socket = takes_socket
        self.size = size
        self.claims = size if claims is None else claims
        self.hashed = hashed
        self.began = 0
        self._running: Deferred[None] | None = None

    async def begin(self, fd: int) -> None:
        self.began += 1
        sock = self.duplicate(fd)
        self._running = threads.deferToThread(self._write, sock)

    async def finished(self) -> None:
        assert self._running is not None
        await self._running

    def _write(self, sock: socket.socket) -> None:
        try:
            sock.sendall(_LENGTH.pack(self.claims))
            for block in blocks(self.size):
                sock.sendall(block)
                self.moved += len(block)
                if self.hashed:
                    self.hash.update(block)
            if self.claims > self.size:
                raise host_failed("the process ended")
        except OSError as why:
            raise host_failed(f"writing failed: {why.strerror}") from None
        finally:
            sock.close()


class Reader(Guest):
    """Reads what a Writer wrote. `stop_after` bytes it fails; `hold` is waited for (in its thread) before it reads."""

    def __init__(self, stop_after: int | None = None, hold: Any = None, hashed: bool = True) -> None:
        super().__init__()
        self.stop_after = stop_after
        self.hold = hold
        self.hashed = hashed

    async def read(self, memory: Any) -> None:
        verifyObject(IIncomingMemory, memory)
        sock = self.duplicate(memory.fileno())
        self.options = [
            sock.family == socket.AF_INET and sock.getsockopt(*option)
            for option in (
                (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT),
                (socket.SOL_SOCKET, socket.SO_KEEPALIVE),
                (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE),
            )
        ]
        memory.taken()
        await threads.deferToThread(self._read, sock)

    def _read(self, sock: socket.socket) -> None:
        try:
            if self.hold is not None:
                self.hold.wait(30)
            head = sock.recv(_LENGTH.size, socket.MSG_WAITALL)
            if len(head) < _LENGTH.size:
                raise host_failed("the stream ended before it began")
            (left,) = _LENGTH.unpack(head)
            buffer = memoryview(bytearray(1 << 20))
            while left:
                count = sock.recv_into(buffer, min(left, len(buffer)))
                if not count:
                    raise host_failed(f"the stream ended {left} bytes early")
                left -= count
                self.moved += count
                if self.hashed:
                    self.hash.update(buffer[:count])
                if self.stop_after is not None and self.moved >= self.stop_after:
                    raise host_failed("it does not know this device")
        except OSError as why:
            raise host_failed(f"reading failed: {why.strerror}") from None
        finally:
            sock.close()


@implementer(IReceiving)
class Receiving:
    """Remembers what it was asked in `events` and answers what it was told to."""

    def __init__(self, takes_socket: bool = True) -> None:
        self.takes_socket = takes_socket
        self.revoked = False
        self.events: list[Any] = []
        self.touched = 0
        self.answer = Answer(Outcome.OPEN)
        self.error: MigrateError | Exception | None = None
        self.reader = Reader()
        self.behind = 0
        self.password = "chap-secret-123"

    def _note(self, *event: Any) -> None:
        self.events.append(event)
        if self.error is not None:
            raise self.error

    def touch(self) -> None:
        self.touched += 1

    def status(self) -> dict[str, Any]:
        return {"version": 1, "state": "WaitingForMetadata", "step": "1.2", "progress": 0.0}

    async def put_metadata(self, document: bytes) -> int:
        self._note("metadata", document)
        return self.behind

    async def get_disk(self, number: int, address: str) -> DiskOffer:
        self._note("disk", number, address)
        if number > 1:
            raise HandleInvalid("disk", str(number))
        url = TargetUrl(f"iscsi://{bracketed(address)}:3260/iqn.2026-01.org.example:m1/{number}", "user", self.password)
        return DiskOffer(
            number, "vdi-1", "sr-1", 1 << 30, url, bool(number), SameDiskProof("n", "v") if number else None
        )

    async def put_memory(self, memory: Any) -> None:
        self._note("memory")
        await self.reader.read(memory)

    async def put_done(self) -> Answer:
        self._note("done")
        if self.answer.outcome is Outcome.OPEN:
            self.answer = Answer(Outcome.COMMITTED)
        return self.answer

    def control(self) -> Answer:
        return self.answer

    async def delete(self, reason: str, acknowledge: Outcome | None = None) -> Answer:
        self._note("delete", acknowledge)
        if self.answer.outcome is Outcome.OPEN:
            self.answer = Answer(Outcome.ABORTED, reason)
        return self.answer


@implementer(IOffers)
class Offers:
    """Migrations by the digests of their capabilities."""

    def __init__(self) -> None:
        self.kept: dict[bytes, Receiving] = {}
        self.asked: list[str] = []

    def add(self, receiving: Receiving) -> Capability:
        capability = Capability.new()
        self.kept[capability.digest] = receiving
        return capability

    def find(self, capability: str) -> Receiving | None:
        self.asked.append(capability)
        digest = find(capability, self.kept)
        return None if digest is None else self.kept[digest]


def sleep(seconds: float) -> Deferred[None]:
    done: Deferred[None] = Deferred()
    reactor.callLater(seconds, done.callback, None)  # type: ignore[attr-defined]
    return done


async def until(condition: Callable[[], object], seconds: float = 10) -> None:
    """Wait for a condition; AssertionError if it does not come."""
    for _ in range(int(seconds / 0.01)):
        if condition():
            return
        await sleep(0.01)
    raise AssertionError("it did not happen")
