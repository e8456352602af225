"""A sender's peer that reaches the receiver without a network, and a wire between them that can lose, repeat and
delay every message."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable, Iterable
from enum import Enum
from typing import Any, TypeVar

from twisted.internet import defer, task
from twisted.logger import Logger
from zope.interface import implementer

from ..errors import MigrateError, MigrationAborted, NoUriAnswered, PeerSilent, RemoteError
from ..migration.interfaces import (
    Answer,
    DiskOffer,
    IIncomingMemory,
    IOffers,
    IOutgoingMemory,
    IPeer,
    IReceiving,
    Outcome,
)
from ..moment import Moment
from ..together import started, unless

T = TypeVar("T")
log = Logger()


class Fate(Enum):
    """What becomes of one message and its answer."""

    DELIVERED = "delivered"
    REQUEST_LOST = "request lost"
    ANSWER_LOST = "answer lost"
    TWICE = "delivered twice"
    OVERTAKEN = "delivered, and once more beside the next message that arrives"
    LATE = "the request arrives after the sender has stopped waiting"
    STRAY_404 = "delivered, and something on the way answers 404 in the receiver's place"
    VERY_LATE = "the request arrives after the receiver has heard nothing for longer than a heartbeat may be lost"


class NotFound(MigrateError):
    """There is no such migration."""

    status = 404


class Wire:
    """Decides each message's fate; `messages` is what has been sent, in order. `cut` loses all of them, `cut_ways`
    those that go by one of these of a receiver's URIs."""

    def __init__(self, clock: Any) -> None:
        self.clock = clock
        self.messages: list[str] = []
        self.fate: Callable[[int, str], Fate] = lambda number, message: Fate.DELIVERED
        self.cut = False
        self.cut_ways: set[int] = set()
        self.patience = 5.0
        self.lateness = {Fate.LATE: 8.0, Fate.VERY_LATE: 15.0}
        """Seconds, on both sides of the simulation's `heartbeat_lost`."""
        self._overtaken: list[Callable[[], Awaitable[object]]] = []

    async def carry(self, message: str, deliver: Callable[[], Awaitable[T]], way: int = 0) -> T:
        """Deliver a request by URI number `way` and bring the answer; PeerSilent when either is lost, NotFound, or what
        the receiver says instead."""
        number = len(self.messages)
        self.messages.append(message)
        fate = Fate.REQUEST_LOST if self.cut or way in self.cut_ways else self.fate(number, message)
        await task.deferLater(self.clock, 0.001)
        if fate in self.lateness:
            self.clock.callLater(self.lateness[fate], lambda: started(_quietly(deliver)))
        if fate is Fate.REQUEST_LOST or fate in self.lateness:
            await task.deferLater(self.clock, self.patience)
            raise PeerSilent(message, "no answer")
        try:
            if fate is Fate.TWICE:
                started(_quietly(deliver))
            again, self._overtaken = self._overtaken, [deliver] if fate is Fate.OVERTAKEN else []
            answering = started(deliver())
            for earlier in again:
                started(_quietly(earlier))
            answer = await answering.addTimeout(self.patience, self.clock)
        except defer.TimeoutError:
            raise PeerSilent(message, "no answer in time") from None
        except PeerSilent:
            raise
        except MigrateError as refusal:
            await self._answered(message, fate, way)
            if isinstance(refusal, MigrationAborted | NotFound):
                raise
            raise RemoteError(refusal.failure(), str(refusal)) from refusal
        await self._answered(message, fate, way)
        await task.deferLater(self.clock, 0.001)
        return answer

    async def _answered(self, message: str, fate: Fate, way: int) -> None:
        """The way back: PeerSilent, or NotFound, if the receiver's own answer does not come through."""
        if fate is Fate.ANSWER_LOST or self.cut or way in self.cut_ways:
            await task.deferLater(self.clock, self.patience)
            raise PeerSilent(message, "no answer")
        if fate is Fate.STRAY_404:
            raise NotFound


def address_of(way: int) -> str:
    """The receiver's address behind this URI."""
    return f"127.0.0.{1 + way}"


async def _quietly(deliver: Callable[[], Awaitable[object]]) -> None:
    """A request whose answer nobody waits for."""
    try:
        await deliver()
    except Exception as lost:
        log.debug("an answer that nobody waits for: {lost}", lost=lost)


@implementer(IIncomingMemory)
class _Incoming:
    def __init__(self, fd: int, taken: Callable[[], None]) -> None:
        self._fd = fd
        self._taken = taken

    def fileno(self) -> int:
        return self._fd

    def taken(self) -> None:
        self._taken()


@implementer(IPeer)
class DirectPeer:
    """`offers` says which engine answers now (None: the host is down); `capability` opens the migration there, by each
    of so many `ways`, which are its URIs."""

    def __init__(
        self,
        wire: Wire,
        offers: Callable[[], IOffers | None],
        capability: str,
        name: str = "receiver",
        ways: int = 1,
    ) -> None:
        self.destination = name
        self._wire = wire
        self._offers = offers
        self._capability = capability
        self._ways = ways
        self._way = 0

    async def connect(self) -> None:
        reports: list[str] = []
        if not await self._first_of(range(self._ways), reports):
            raise NoUriAnswered(" ".join(reports))

    async def head(self) -> None:
        await self._head(self._way)

    async def fail_over(self) -> bool:
        return await self._first_of([(self._way + step) % self._ways for step in range(1, self._ways)], [])

    async def _head(self, way: int) -> None:
        async def deliver() -> None:
            answer = self._find("HEAD").control()
            if answer.outcome is Outcome.ABORTED:
                raise MigrationAborted(answer.reason)

        await self._wire.carry("HEAD", deliver, way)

    async def _first_of(self, ways: Iterable[int], reports: list[str]) -> bool:
        for way in ways:
            try:
                await self._head(way)
            except MigrateError as failure:
                reports.append(str(failure))
            else:
                self._way = way
                return True
        return False

    async def put_metadata(self, document: bytes) -> int:
        return await self._carry("PUT metadata", lambda: self._find("PUT metadata").put_metadata(document))

    async def get_disk(self, number: int) -> DiskOffer:
        name = f"GET disk/{number}"
        return await self._carry(name, lambda: self._find(name).get_disk(number, address_of(self._way)))

    async def put_memory(self, memory: IOutgoingMemory) -> None:
        """The stream itself goes through a socketpair of the operating system, which needs no reactor."""
        here, there = socket.socketpair()
        taken: Moment[None] = Moment()

        async def deliver() -> None:
            receiving = self._find("PUT memory")
            incoming = _Incoming(there.fileno(), lambda: taken.happen(None))
            accepted = started(receiving.put_memory(incoming))
            try:
                await unless(taken.wait(), accepted)
                await memory.begin(here.fileno())
                here.close()  # so that the receiver sees the end when the hypervisor lets go
                await accepted
            finally:
                accepted.addErrback(lambda _: None)

        try:
            await self._carry("PUT memory", deliver)
        finally:
            here.close()
            there.close()

    async def put_done(self) -> Answer:
        return await self._answer("PUT control", lambda receiving: receiving.put_done(), self._way)

    async def get_control(self) -> Answer:
        async def control(receiving: IReceiving) -> Answer:
            return receiving.control()

        return await self._of_any("GET control", control)

    async def delete(self, acknowledge: Outcome | None = None) -> Answer:
        return await self._of_any("DELETE", lambda receiving: receiving.delete("the sender gave it up", acknowledge))

    def close(self) -> None:
        pass

    async def _of_any(self, message: str, ask: Callable[[IReceiving], Awaitable[Answer]]) -> Answer:
        unknown: Answer | None = None
        for way in [(self._way + step) % self._ways for step in range(self._ways)]:
            try:
                answer = await self._answer(message, ask, way)
            except PeerSilent:
                continue
            if answer.outcome is not Outcome.UNKNOWN:
                self._way = way
                return answer
            unknown = answer
        if unknown is None:
            raise PeerSilent(message, "no answer")
        return unknown

    async def _answer(self, message: str, ask: Callable[[IReceiving], Awaitable[Answer]], way: int) -> Answer:
        """A decision. What is none decides nothing, so it counts as silence."""
        try:
            return await self._wire.carry(message, lambda: ask(self._find(message)), way)
        except NotFound:
            return Answer(Outcome.UNKNOWN)
        except RemoteError as refusal:
            raise PeerSilent(message, str(refusal)) from refusal

    async def _carry(self, message: str, deliver: Callable[[], Awaitable[T]]) -> T:
        return await self._wire.carry(message, deliver, self._way)

    def _find(self, message: str) -> IReceiving:
        offers = self._offers()
        if offers is None:
            raise PeerSilent(message, "connection refused")
        receiving = offers.find(self._capability)
        if receiving is None:
            raise NotFound()
        receiving.touch()
        return receiving
