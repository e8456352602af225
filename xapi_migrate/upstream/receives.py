"""VM.receive into an SR of the upstream's."""

from __future__ import annotations

from collections.abc import Awaitable
from functools import partial
from typing import Any, Protocol

from twisted.logger import Logger

from ..errors import MigrateError
from ..migration.interfaces import Outcome
from ..store.interfaces import NULL
from ..toolstack.leftovers import Leftover
from ..xenapi.calls import CallContext
from .arrival import ARRIVED, GIVEN_UP, IMPORTING, RECEIVING, Arrival, Arrivals
from .client import UpstreamClient
from .reading import sr_here
from .settling import Settling
from .shadow import Shadows

_TOLD = {
    ARRIVED: ("has been received, and the toolstack could not be told yet",
              "it is handed to its owner at the toolstack, no template any more and unlocked: "),
    GIVEN_UP: ("was not received, and what was made of it at the toolstack could not be removed yet",
               "the toolstack destroys "),
}  # fmt: skip
"""Of an arrival in each state, why it is left and what removing it does."""


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
                    "It is not known whether VM {vm} was received: at the toolstack it stays a locked template. See "
                    "`xapi-migrate force-settle`",
                    vm=arrival.uuid,
                )
        self._settling.start()

    def stop(self) -> None:
        """Let go; the next daemon goes on."""
        self._settling.stop()

    # -- what an administrator may ask and say -----------------------------------------------------

    receiving = True

    async def left(self, session: str) -> list[Leftover]:
        """What waits because the toolstack could not be told what becomes of a VM; `session` looks and removes."""
        found = self._arrivals.unreadable()
        silent = ""
        for arrival in list(self._arrivals.known.values()):
            reason = self._arrivals.waiting.get(arrival.id, "")
            if not reason or arrival.state not in _TOLD:
                continue
            why, remedy = _TOLD[arrival.state]
            there: list[str] = []
            if not silent:
                try:
                    there = await self._arrivals.there(arrival, session)
                except MigrateError as failure:
                    silent = str(failure)
            if silent:
                remedy = f"nothing without the toolstack, which alone can do it, and does not let us look: {silent}"
            else:
                remedy += ", ".join(there) if there else "nothing; only what is noted here goes"
            found.append(
                Leftover("arrival", arrival.id, f"VM {arrival.uuid} {why}: {reason}", remedy,
                         partial(self._arrivals.conclude, arrival, session))
            )  # fmt: skip
        return found

    def in_doubt(self) -> list[str]:
        """The VMs of which nothing says whether they were received."""
        return [arrival.uuid for arrival in self._lost()]

    async def settle(self, vm: str, outcome: Outcome, session: str) -> bool:
        """Somebody says of a VM by its uuid whether it was received. True: it is done, or will be as soon as the
        toolstack can be told; False: there is no doubt here. OSError."""
        for arrival in self._lost():
            if arrival.uuid == vm:
                arrival.state = ARRIVED if outcome is Outcome.COMMITTED else GIVEN_UP
                await self._arrivals.save(arrival)
                await self._arrivals.settle(arrival, session)
                return True
        return False

    def _lost(self) -> list[Arrival]:
        known = self._arrivals.known.values()
        return [one for one in known if one.state == IMPORTING and not self._engine.receives(one.id)]

    # -- calls -----------------------------------------------------------------------------------

    async def VM_receive(self, call: CallContext, sr: str, options: dict[str, str]) -> list[str]:
        await self._arrivals.settle_all(call.session)
        if sr != NULL:
            await self._shadows.attach(sr, *await sr_here(self._client, call.session, sr))
        return await self._engine.receive(sr, options, call.user, call.session)
