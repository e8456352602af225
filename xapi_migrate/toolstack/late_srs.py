"""SRs that could not be attached when the daemon started, because their storage comes up later than the host: each is
tried again, in growing pauses, until it is attached or an administrator leaves it (PBD.unplug, SR.forget)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from twisted.internet import defer, task
from twisted.logger import Logger

from xapi_migrate.errors import MigrateError
from xapi_migrate.store.records import Records
from xapi_migrate.together import started

FIRST, LONGEST = 5.0, 60.0
"""Seconds between two attempts."""


class LateSRs:
    """Those of one host, by PBD. `plug` attaches an SR by its PBD, and says so in that record."""

    log = Logger()

    def __init__(self, records: Records, clock: Any, plug: Callable[[str], Awaitable[None]]) -> None:
        self._records = records
        self._clock = clock
        self._plug = plug
        self._trying: dict[str, defer.Deferred[None]] = {}

    def keep(self, pbd: str, why: Exception) -> None:
        """Try this one again, which has failed for this reason."""
        reason = str(why) if isinstance(why, MigrateError) else f"{type(why).__name__}: {why}."
        self.log.warn(
            "SR {sr} is not attached: {why} It is tried again until it is, or until PBD.unplug or SR.forget",
            sr=self._name(pbd), why=reason,
        )  # fmt: skip
        trying = self._trying[pbd] = started(self._try(pbd))
        trying.addErrback(lambda failure: failure.trap(defer.CancelledError) and None)
        trying.addErrback(lambda failure: self.log.failure("PBD {pbd} is not tried any more", failure, pbd=pbd))
        trying.addBoth(lambda _: self._trying.pop(pbd, None) and None)

    def leave(self, pbd: str) -> None:
        """It is not tried any more. Not tried: nothing happens."""
        trying = self._trying.get(pbd)
        if trying is not None:
            trying.cancel()

    def stop(self) -> None:
        """The daemon ends."""
        for pbd in list(self._trying):
            self.leave(pbd)

    async def _try(self, pbd: str) -> None:
        seconds = FIRST
        while True:
            await task.deferLater(self._clock, seconds)
            if not self._waits(pbd):
                return  # somebody else has seen to it
            try:
                await self._plug(pbd)
            except defer.CancelledError:
                raise
            except Exception:  # the first one was logged
                seconds = min(2 * seconds, LONGEST)
            if not self._waits(pbd):
                self.log.info("SR {sr} is attached now", sr=self._name(pbd))
                return

    def _waits(self, pbd: str) -> bool:
        return self._records.has("PBD", pbd) and not self._records.get("PBD", pbd)["currently_attached"]

    def _name(self, pbd: str) -> str:
        if not self._records.has("PBD", pbd):
            return f"of PBD {pbd}"
        ref = self._records.get("PBD", pbd)["SR"]
        sr = self._records.get("SR", ref) if self._records.has("SR", ref) else None
        return f"{sr['uuid']} ({sr['name_label']})" if sr else ref
