"""Whether a copy arrives at all: a guest may write faster than the copy carries it away.

The copy is looked at in spans. One in which less than a tenth of what was copied brought the end nearer is followed by
a limit on what the guest may write, and each further one by half of it. A copy that is ready only has to keep what is
left so small that it is quickly sent once the guest stands still.
"""

from __future__ import annotations

import attrs
from twisted.logger import Logger

from xapi_migrate.errors import SrBackendFailure
from xapi_migrate.sm.datapath import Datapath
from xapi_migrate.sm.gate import GRANULE
from xapi_migrate.sm.timeouts import SMTimeouts

SLOWEST = GRANULE
"""Bytes per second that a guest may write at least: one write each second, if it is no longer. A copy that does not
arrive even so will not."""
_WORTH = 0.1
_KEPT_UP = 2.5
_SMALL = 1 << 20
_UNDER_WAY = 16 << 20
"""Bytes that a mirror has under way at most."""


@attrs.define
class Convergence:
    """Of one copy. `patience`: the first span and the last, in seconds; those between are shorter. `limit`: bytes per
    second that the guest may write, 0: as it likes."""

    patience: float
    limit: int = 0
    hopeless: bool = False
    """The lowest limit did not help."""
    _began: tuple[float, int, int] | None = None

    def look(self, now: float, done: int, total: int, ready: bool) -> int:
        """The limit from now on; `done` of `total` bytes are copied, of which `total` grows with what the guest
        writes."""
        left = total - done
        if self._began is None:
            self._began = (now, done, left)
        since, done_then, left_then = self._began
        seconds, copied = now - since, done - done_then
        rate = copied / seconds if seconds else 0.0
        if ready and left <= max(_SMALL, rate * _KEPT_UP):
            self._began = (now, done, left)
        elif seconds >= self._span(rate):
            self._began = (now, done, left)
            if copied > 0 and left_then - left < copied * _WORTH:
                self.hopeless = self.limit == SLOWEST
                self.limit = max(SLOWEST, int(min(self.limit or rate, rate) / 2))
        return self.limit

    def _span(self, rate: float) -> float:
        """Seconds after which it can be told: a limit is seen once what was under way at its beginning has gone out."""
        if self.limit <= SLOWEST or not rate:
            return self.patience
        return min(self.patience, max(self.patience / 4, 2 * _UNDER_WAY / rate))


class Slowdown:
    """Keeps a datapath's guest so slow that the copy arrives."""

    log = Logger()

    def __init__(self, datapath: Datapath, timeouts: SMTimeouts) -> None:
        self._datapath = datapath
        self._timeouts = timeouts
        self._convergence = Convergence(timeouts.falling_behind)
        self._limit = 0
        self.hopeless = ""
        """Why the copy will not arrive."""

    async def look(self, now: float, done: int, total: int, ready: bool) -> int:
        """Bytes per second that the guest may write from now on, 0: as it likes."""
        limit = self._convergence.look(now, done, total, ready)
        if self._convergence.hopeless:
            self.hopeless = f"it does not get on though the guest may write {limit} bytes per second only"
        elif limit != self._limit and not self._timeouts.slow_guests:
            self.hopeless = f"the guest writes faster than it copies, {self._timeouts.falling_behind:g} s long"
        elif limit != self._limit:
            await self._slow(limit)
        return self._limit

    async def begin(self) -> None:
        """Before the copy. SrBackendFailure."""
        await self._datapath.prepare_brake()

    async def release(self) -> None:
        """The guest is as fast as before, whatever became of the copy."""
        if not self._datapath.daemon.alive:
            return
        try:
            await self._datapath.drop_brake()
        except SrBackendFailure:
            self.log.failure("VDI {vdi}: its guest stays slowed down", vdi=self._datapath.of.vdi)

    async def resume(self) -> None:
        """After a restart of the daemon, the copy going on: the limit is to be found anew."""
        await self._slow(0)

    async def _slow(self, limit: int) -> None:
        vdi = self._datapath.of.vdi
        self.log.info("VDI {vdi}: its guest may write {limit} bytes per second (0: any)", vdi=vdi, limit=limit)
        try:
            await self._datapath.slow(limit)
            self._limit = limit
        except SrBackendFailure:
            self.log.failure("VDI {vdi}: the limit of its guest cannot be set to {limit}", vdi=vdi, limit=limit)
