"""The receiver as the sender sees it, over HTTP."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from twisted.logger import Logger
from zope.interface import implementer

from ..config import MigrationTimes
from ..errors import MigrationAborted, NoUriAnswered, OperationNotAllowed, PeerSilent
from ..migration.interfaces import Answer, DiskOffer, IOutgoingMemory, IPeer, Outcome
from . import wire
from .offer import parse
from .peer_connection import NONE, UNREACHABLE, Late, PeerConnection, Response, Unanswered, refusal
from .peer_memory import MemorySender
from .reach import EVERYWHERE, Reach, within


@implementer(IPeer)
class HttpPeer:
    """One offer: its URIs, one of which is the current one. UriInvalid if one of them is none."""

    log = Logger()

    def __init__(
        self,
        reactor: Any,
        uris: Sequence[str],
        times: MigrationTimes,
        migration: str = "",
        trust_root: Any = None,
        reach: Reach = EVERYWHERE,
        insecure_storage: bool = True,
    ) -> None:
        """`migration` its id, for the log. `trust_root`: an ITrustRoot in the place of the system's CAs, for https URIs
        without a fingerprint. `reach`: where it may connect to. `insecure_storage`: behind an https URI disks may still
        go in clear."""
        self._reach = reach
        self._insecure_storage = insecure_storage
        self._reactor = reactor = within(reactor, reach)
        self._times = times
        self._migration = migration
        self._trust_root = trust_root
        self._connections = [PeerConnection(reactor, parse(uri), times.connect, trust_root) for uri in uris]
        self._current = 0
        if not self._connections:
            raise NoUriAnswered("The list of URIs is empty.")

    @property
    def destination(self) -> str:
        return self._connections[self._current].uri.netloc

    # -- connection ----------------------------------------------------------------------------

    async def connect(self) -> None:
        """Step 1.5."""
        reports: list[str] = []
        for number in range(len(self._connections)):
            if await self._try(number, reports):
                return
        raise NoUriAnswered(" ".join(reports))

    async def head(self) -> None:
        response = await self._request("HEAD", "", self._times.request)
        if response.status == 410:
            raise MigrationAborted((await self.get_control()).reason)
        if response.status != 200:
            raise refusal(self._named("HEAD", ""), response)

    async def fail_over(self) -> bool:
        """The others are tried in the order of the list, beginning behind the current one."""
        count = len(self._connections)
        reports: list[str] = []
        for step in range(1, count):
            if await self._try((self._current + step) % count, reports):
                return True
        return False

    async def _try(self, number: int, reports: list[str]) -> bool:
        connection = self._connections[number]
        try:
            status = (await connection.request("HEAD", "", self._times.connect)).status
        except Late as why:
            report = UNREACHABLE
            self.log.info("{destination}: {why}", destination=connection.uri.destination, why=why)
        except Unanswered as why:
            report = str(why)
        else:
            if status == 200:
                self._current = number
                self.log.info(
                    "{destination} answers, migration {migration!r}",
                    migration=self._migration,
                    destination=connection.uri.destination,
                )
                return True
            report = f"it answered {status}"
        reports.append(f"{connection.uri.destination}: {report}.")
        self.log.warn(
            "{destination}: {report}, migration {migration!r}",
            migration=self._migration,
            destination=connection.uri.destination,
            report=report,
        )
        return False

    # -- preparation ---------------------------------------------------------------------------

    async def put_metadata(self, document: bytes) -> int:
        """Step 2.1."""
        response = await self._request("PUT", "/metadata", self._times.request, document)
        if response.status == 202:
            try:
                return wire.read_waiting(response.body)
            except wire.Malformed as why:
                raise PeerSilent(self._named("PUT", "/metadata"), f"its answer cannot be read ({why})") from None
        if response.status != 200:
            raise refusal(self._named("PUT", "/metadata"), response)
        return 0

    async def get_disk(self, number: int) -> DiskOffer:
        """Steps 2.2, 2.4."""
        below = f"/disk/{number}"
        response = await self._request("GET", below, self._times.request)
        if response.status != 200:
            raise refusal(self._named("GET", below), response)
        try:
            offer = wire.read_disk(response.body)
        except wire.Malformed as why:
            raise PeerSilent(self._named("GET", below), f"its answer is not a disk ({why})") from None
        if offer.number != number:
            raise PeerSilent(self._named("GET", below), "it answered for another disk")
        self._check_target(below, offer.url.url)
        return offer

    def _check_target(self, below: str, url: str) -> None:
        """The receiver, too, may not send this host wherever it likes, nor have a disk in clear where https was asked
        for."""
        parts = urlsplit(url)
        if not self._reach.allows(parts.hostname or ""):
            raise PeerSilent(
                self._named("GET", below), "it offers a disk at an address that this host does not connect to"
            )
        if self._connections[self._current].uri.secure and parts.scheme != "nbds" and not self._insecure_storage:
            raise OperationNotAllowed(
                "The offer is https, but the receiver takes disks in clear only: set insecure_storage here if the "
                "storage network is trusted."
            )

    # -- memory --------------------------------------------------------------------------------

    async def put_memory(self, memory: IOutgoingMemory) -> None:
        """Step 4.1."""
        uri = self._connections[self._current].uri
        await MemorySender(self._reactor, uri, self._times, memory, self._trust_root).send()

    # -- completion ----------------------------------------------------------------------------

    async def put_done(self) -> Answer:
        """Step 5.1. As the receiver activates disks before it answers, it has as long as a heartbeat may be lost."""
        response = await self._request("PUT", "/control", self._times.heartbeat_lost, b"done")
        return self._answer("PUT", "/control", response)

    async def get_control(self) -> Answer:
        return await self._of_any("GET", "/control", self._times.connect)

    async def delete(self, acknowledge: Outcome | None = None) -> Answer:
        headers = {} if acknowledge is None else {"Acknowledge": acknowledge.value}
        return await self._of_any("DELETE", "", self._times.request, headers)

    async def _of_any(self, method: str, below: str, seconds: float, headers: Mapping[str, str] = NONE) -> Answer:
        """The answer of the first URI whose receiver knows the migration; it is the current one from then on, for a
        sender in doubt may have been restarted and not know which of them works."""
        count = len(self._connections)
        unknown: Answer | None = None
        silent: list[str] = []
        for number in [(self._current + step) % count for step in range(count)]:
            connection = self._connections[number]
            try:
                response = await connection.request(method, below, seconds, None, headers)
                answer = self._answer(method, below, response)
            except Unanswered as why:
                silent.append(f"{connection.uri.destination}: {why}.")
            except PeerSilent as why:
                silent.append(f"{connection.uri.destination}: {why.reason}")
            else:
                if answer.outcome is not Outcome.UNKNOWN:
                    self._current = number
                    return answer
                unknown = answer
        if unknown is None:
            raise PeerSilent(f"{method} {below[1:] or 'of its URI'}", " ".join(silent))
        return unknown

    def close(self) -> None:
        for connection in self._connections:
            connection.close()

    # ------------------------------------------------------------------------------------------

    def _named(self, method: str, below: str) -> str:
        return f"{method} {below[1:] or 'of its URI'} ({self.destination})"

    async def _request(
        self, method: str, below: str, seconds: float, body: bytes | None = None, headers: Mapping[str, str] = NONE
    ) -> Response:
        try:
            return await self._connections[self._current].request(method, below, seconds, body, headers)
        except Unanswered as why:
            raise PeerSilent(self._named(method, below), str(why)) from None

    def _answer(self, method: str, below: str, response: Response) -> Answer:
        """A decision. What is none decides nothing, so it counts as silence."""
        if response.status == 404:
            return Answer(Outcome.UNKNOWN)
        if response.status not in (200, 410):
            raise PeerSilent(self._named(method, below), str(refusal(self._named(method, below), response)))
        try:
            return wire.read_answer(response.body)
        except wire.Malformed as why:
            raise PeerSilent(self._named(method, below), f"its answer is no decision ({why})") from None
