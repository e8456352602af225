"""Datapaths that died under a domain: another process is started in the place of each, until one lives."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from twisted.internet import defer, task
from twisted.logger import Logger

from xapi_migrate.errors import SrBackendFailure
from xapi_migrate.sm.datapath import TROUBLE, Datapath
from xapi_migrate.sm.images import Images
from xapi_migrate.sm.timeouts import SMTimeouts
from xapi_migrate.together import started


class Reviving:
    """`known` is the datapath of a VDI, alive or not; `living` starts a process for it if it has none, in its turn."""

    log = Logger()

    def __init__(
        self,
        reactor: Any,
        timeouts: SMTimeouts,
        images: Images,
        known: Callable[[str], Datapath | None],
        living: Callable[[str], Awaitable[Datapath | None]],
    ) -> None:
        self._reactor = reactor
        self._timeouts = timeouts
        self._images = images
        self._known = known
        self._living = living
        self._all: dict[str, defer.Deferred[None]] = {}
        self.waiting: Callable[[str, str], None] = lambda vdi, why: None
        """Called with a VDI and a phrase each time its datapath has died under a domain, or cannot be started in the
        place of one that has; with "" when one has lived for a while."""

    def __contains__(self, vdi: str) -> bool:
        return vdi in self._all

    def begin(self, vdi: str, at_once: bool = True) -> None:
        """The datapath of this VDI has died."""
        if vdi in self._all:
            return
        reviving = self._all[vdi] = started(self._revive(vdi, 0.0 if at_once else self._timeouts.revive))
        reviving.addErrback(lambda failure: failure.trap(defer.CancelledError) and None)
        reviving.addErrback(
            lambda failure: self.log.failure("the datapath of VDI {vdi} cannot be started again", failure, vdi=vdi)
        )
        reviving.addBoth(lambda _: self._all.pop(vdi, None) and None)

    def rest(self) -> None:
        """Nothing is started by itself any more."""
        for reviving in list(self._all.values()):
            reviving.cancel()

    async def _revive(self, vdi: str, pause: float) -> None:
        """Until one lives, or nobody wants one any more. In growing pauses, where the image is gone or each process
        dies soon."""
        why, least, most = "has lost its storage process", self._timeouts.revive, self._timeouts.revive_at_most
        while True:
            self.waiting(vdi, why)
            if pause:
                await task.deferLater(self._reactor, pause)
            pause = min(max(least, 2 * pause), most)
            try:
                datapath = await self._living(vdi)
            except (SrBackendFailure, *TROUBLE, OSError) as failure:
                why = f"has lost its storage process, and another one cannot be started: {failure}"
                self.log.warn("VDI {vdi} {why}; next attempt in {pause:g} s", vdi=vdi, why=why, pause=pause)
                await self._attach_again(vdi)
                continue
            if datapath is None:
                return
            if await self._lives(datapath):
                self.waiting(vdi, "")
                return
            now = self._known(vdi)
            if now is None or not now.can_be_revived():
                return
            why = f"loses its storage process again and again: {datapath.daemon.child.errors() or 'it says nothing'}"
            self.log.warn("VDI {vdi} {why}; next attempt in {pause:g} s", vdi=vdi, why=why, pause=pause)

    async def _attach_again(self, vdi: str) -> None:
        """What its image needs before it is opened may have gone: a session to its storage, for example."""
        datapath = self._known(vdi)
        if datapath is None:
            return
        try:
            await self._images.attach(datapath.of.sr, vdi)
        except SrBackendFailure as failure:
            self.log.warn("VDI {vdi}: {failure}", vdi=vdi, failure=failure)
        if self._known(vdi) is None:  # nobody wants it any more
            await self._images.detach(datapath.of.sr, vdi)

    async def _lives(self, datapath: Datapath) -> bool:
        ended = datapath.daemon.child.ended()
        try:
            await ended.addTimeout(self._timeouts.revived, self._reactor)
        except defer.TimeoutError:
            return True
        return False
