"""A sender's peer that reaches the receiver without a network, and a wire between them that can lose, repeat and
delay every message."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable
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
    VERY_LATE = "the request arrives after the receiver has heard nothing for longer than a heartbeat may be lost"


class Wire:
    """Decides each message's fate; `messages` is what has been sent, in order."""

    def __init__(self, clock: Any) -> None:
        self.clock = clock
        self.messages: list[str] = []
        self.fate: Callable[[int, str], Fate] = lambda number, message: Fate.DELIVERED
        self.cut = False
        self.patience = 5.0
        self.lateness = {Fate.LATE: 8.0, Fate.VERY_LATE: 15.0}
        """Seconds, on both sides of the simulation's `heartbeat_lost`."""
        self._overtaken: list[Callable[[], Awaitable[object]]] = []

    async def carry(self, message: str, deliver: Callable[[], Awaitable[T]]) -> T:
        """Deliver a request and bring the answer; PeerSilent when either is lost."""
        number = len(self.messages)
        self.messages.append(message)
        fate = Fate.REQUEST_LOST if self.cut else self.fate(number, message)
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
            if isinstance(refusal, MigrationAborted) and fate is not Fate.ANSWER_LOST and not self.cut:
                raise
            if fate is Fate.ANSWER_LOST or self.cut:
                await task.deferLater(self.clock, self.patience)
                raise PeerSilent(message, "no answer") from None
            raise RemoteError(refusal.failure(), str(refusal)) from refusal
        if fate is Fate.ANSWER_LOST or self.cut:
            await task.deferLater(self.clock, self.patience)
            raise PeerSilent(message, "no answer")
        await task.deferLater(self.clock, 0.001)
        return answer


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


class NotFound(MigrateError):
    """There is no such migration."""

    status = 404


@implementer(IPeer)
class DirectPeer:
    """`offers` says which engine answers now (None: the host is down); `capability` opens the migration there."""

    def __init__(
        self, wire: Wire, offers: Callable[[], IOffers | None], capability: str, name: str = "receiver"
    ) -> None:
        self.destination = name
        self._wire = wire
        self._offers = offers
        self._capability = capability

    async def connect(self) -> None:
        try:
            await self.head()
        except MigrateError as failure:
            raise NoUriAnswered(str(failure)) from failure

    async def head(self) -> None:
        async def deliver() -> None:
            answer = self._find("HEAD").control()
            if answer.outcome is Outcome.ABORTED:
                raise MigrationAborted(answer.reason)

        await self._wire.carry("HEAD", deliver)

    async def fail_over(self) -> bool:
        return False

    async def put_metadata(self, document: bytes) -> int:
        return await self._wire.carry("PUT metadata", lambda: self._find("PUT metadata").put_metadata(document))

    async def get_disk(self, number: int) -> DiskOffer:
        name = f"GET disk/{number}"
        return await self._wire.carry(name, lambda: self._find(name).get_disk(number, "127.0.0.1"))

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
            await self._wire.carry("PUT memory", deliver)
        finally:
            here.close()
            there.close()

    async def put_done(self) -> Answer:
        return await self._answer("PUT control", lambda receiving: receiving.put_done())

    async def get_control(self) -> Answer:
        async def control(receiving: IReceiving) -> Answer:
            return receiving.control()

        return await self._answer("GET control", control)

    async def delete(self, acknowledge: Outcome | None = None) -> Answer:
        return await self._answer("DELETE", lambda receiving: receiving.delete("the sender gave it up", acknowledge))

    def close(self) -> None:
        pass

    async def _answer(self, message: str, ask: Callable[[IReceiving], Awaitable[Answer]]) -> Answer:
        async def deliver() -> Answer:
            try:
                receiving = self._find(message)
            except NotFound:
                return Answer(Outcome.UNKNOWN)
            return await ask(receiving)

        return await self._wire.carry(message, deliver)

    def _find(self, message: str) -> IReceiving:
        offers = self._offers()
        if offers is None:
            raise PeerSilent(message, "connection refused")
        receiving = offers.find(self._capability)
        if receiving is None:
            raise NotFound()
        receiving.touch()
        return receiving
