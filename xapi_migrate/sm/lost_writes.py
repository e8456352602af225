"""Disks that have lost what their domain believes written: a flush failed, or a process died with a format's tables in
its memory. To go on with another process would be silent corruption, so the domain has to be ended."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

from twisted.internet import defer
from twisted.logger import Logger

from xapi_migrate.errors import SrBackendFailure
from xapi_migrate.sm.datapath import Datapath
from xapi_migrate.sm.storage_daemon import NBD
from xapi_migrate.together import started


class LostWrites:
    """Finds out whether a flush has failed, and tells who ends domains, at once or as soon as there is somebody."""

    log = Logger()

    def __init__(self, give_up: Callable[[Datapath], Awaitable[None]]) -> None:
        self._give_up = give_up
        self._lose: Callable[[str, str], Awaitable[None]] | None = None
        self._untold: list[tuple[Path, str]] = []
        self._flushes: dict[str, defer.Deferred[None]] = {}

    async def when(self, lose: Callable[[str, str], Awaitable[None]]) -> list[Path]:
        """From now on `lose(socket, reason)` is called with what the domain is connected to. The folders of those that
        nobody could be told of before; it has been, for these."""
        self._lose = lose
        untold, self._untold = self._untold, []
        for folder, reason in untold:
            await lose(str(folder / NBD), reason)
        return [folder for folder, _ in untold]

    def died(self, folder: Path, vdi: str) -> None:
        """The process in this folder died and cannot be followed by another. The folder keeps its name when the disk's
        image is exchanged: its socket is what the domain knows."""
        self._tell(folder, f"the storage process of its disk, VDI {vdi}, died, and with it writes that it had taken")

    def unflushed(self, folder: Path, vdi: str) -> None:
        """A flush of it has failed. What was written before may never be on the disk then, and no later flush would say
        so."""
        self._tell(folder, f"a flush of its disk, VDI {vdi}, failed, and writes that the disk had taken may be lost")

    def doubt(self, datapath: Datapath) -> None:
        """It has refused a request of its domain, which may be a flush that failed, or may come with one."""
        vdi = datapath.of.vdi
        if vdi in self._flushes:
            return
        datapath.doubtful = True
        flush = self._flushes[vdi] = started(self._flush(datapath))
        flush.addErrback(lambda failure: failure.trap(defer.CancelledError, SrBackendFailure) and None)
        flush.addErrback(lambda failure: self.log.failure("a flush of VDI {vdi}", failure, vdi=vdi))
        flush.addBoth(lambda _: self._flushes.pop(vdi, None) and None)

    def rest(self) -> None:
        """Nothing is found out any more."""
        for flush in list(self._flushes.values()):
            flush.cancel()

    async def _flush(self, datapath: Datapath) -> None:
        if await datapath.flush_failed():
            await self._give_up(datapath)
            self.unflushed(datapath.daemon.folder, datapath.of.vdi)
        else:
            datapath.doubtful = False

    def _tell(self, folder: Path, reason: str) -> None:
        if self._lose is None:
            self._untold.append((folder, reason))
            return
        losing = started(self._lose(str(folder / NBD), reason))
        losing.addErrback(lambda failure: self.log.failure("the domain of {folder}", failure, folder=folder))
