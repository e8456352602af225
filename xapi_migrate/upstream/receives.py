"""VM.receive into an SR of the upstream's."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any, Protocol

from twisted.logger import Logger

from ..store.interfaces import NULL
from ..xenapi.calls import CallContext
from .arrival import GIVEN_UP, IMPORTING, RECEIVING, Arrivals
from .client import UpstreamClient
from .reading import sr_here
from .settling import Settling
from .shadow import Shadows


class ReceivingEngine(Protocol):
    """What is needed of the engine."""

    def receive(self, sr: str, options: dict[str, str], user: str, session: str) -> Awaitable[list[str]]:
        """The offer's URIs; `session` is what its VM is kept with."""

    def receives(self, migration: str) -> bool:
        """Whether this one is under way, or not yet acknowledged."""


class UpstreamReceives:
    """`begin` after the engine has taken up what an earlier daemon left."""

    log = Logger()

    def __init__(
        self, client: UpstreamClient, arrivals: Arrivals, shadows: Shadows, engine: ReceivingEngine, clock: Any
    ) -> None:
        self._client = client
        self._arrivals = arrivals
        self._shadows = shadows
        self._engine = engine
        self._settling = Settling(arrivals.settle_all, clock, "VMs of the toolstack wait")

    async def begin(self) -> None:
        """Remove what nothing can come of any more. A VM of which it cannot be known whether it was received stays
        locked. OSError."""
        for arrival in list(self._arrivals.known.values()):
            if self._engine.receives(arrival.id):
                continue
            if arrival.state == RECEIVING:  # COMMIT comes after the import only
                arrival.state = GIVEN_UP
                await self._arrivals.save(arrival)
            elif arrival.state == IMPORTING:
                self.log.error(
                    "It is not known whether VM {vm} was received: at the toolstack it stays a locked template. If the "
                    "sending host has it not, make it a VM again and remove its blocked_operations; then remove "
                    "{id}.json",
                    vm=arrival.uuid, id=arrival.id,
                )  # fmt: skip
        self._settling.start()

    def stop(self) -> None:
        """Let go; the next daemon goes on."""
        self._settling.stop()

    async def VM_receive(self, call: CallContext, sr: str, options: dict[str, str]) -> list[str]:
        await self._arrivals.settle_all(call.session)
        if sr != NULL:
            await self._shadows.attach(sr, *await sr_here(self._client, call.session, sr))
        return await self._engine.receive(sr, options, call.user, call.session)
