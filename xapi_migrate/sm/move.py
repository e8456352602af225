"""Storage motion inside a datapath: another VDI's image takes the place of its own while a domain uses it.

    copying --(equal)--> ready --(pivot)--> moved
       |                   |
       +----- error, cancel ------> gone: the datapath is as before

The mirror works in write-blocking mode: what the domain is told was written is in both images, and it becomes ready
however fast the domain writes. A flush of the domain reaches the old image only. `settle` puts on the new image's disk
what is in it; if the domain stands still from before that until the pivot, either image may be the disk afterwards,
also when the process dies during the pivot.
"""

from __future__ import annotations

from typing import Any

import attrs
from twisted.internet import defer, task, threads
from twisted.internet.error import ConnectionDone, ConnectionLost

from xapi_migrate.errors import CopyFailed, SrBackendFailure
from xapi_migrate.processes.qmp import QMPError
from xapi_migrate.sm.datapath import Datapath
from xapi_migrate.sm.datapath_state import DatapathOf
from xapi_migrate.sm.datapaths import Datapaths
from xapi_migrate.sm.flushing import flush
from xapi_migrate.sm.gate import ImageNodes
from xapi_migrate.sm.interfaces import ImageLocation, MoveState, MoveStatus
from xapi_migrate.sm.timeouts import SMTimeouts

JOB = "move"
_TROUBLE = (QMPError, TimeoutError, defer.TimeoutError, ConnectionDone, ConnectionLost)
_LOOKS, _SOON = 0.02, 0.002


class ImageMove:
    """The move of one datapath's image to `to` (what the datapath will be for)."""

    def __init__(
        self, reactor: Any, datapaths: Datapaths, datapath: Datapath, to: DatapathOf, timeouts: SMTimeouts
    ) -> None:
        self._reactor = reactor
        self._datapaths = datapaths
        self._datapath = datapath
        self._timeouts = timeouts
        self._to = attrs.evolve(to, turn=datapath.of.turn + 1)
        self._nodes = ImageNodes(self._to.turn)

    async def begin(self) -> None:
        """Open the new image and begin to copy. CopyFailed, SrBackendFailure; nothing is left of it then."""
        daemon, gate = self._datapath.daemon, self._datapath.gate
        try:
            await gate.open_beside(self._nodes, self._to.location)
            await daemon.execute(
                "blockdev-mirror",
                {
                    "job-id": JOB,
                    "device": gate.nodes.gate,
                    "target": self._nodes.gate,
                    "sync": "top",  # the new image is fresh and reads as zeroes
                    "copy-mode": "write-blocking",
                    "auto-dismiss": False,
                    "on-target-error": "report",
                    "speed": self._timeouts.copy_speed,
                },
            )
        except BaseException as failure:
            if daemon.alive:
                await gate.close_beside(self._nodes)
            if isinstance(failure, _TROUBLE):
                raise CopyFailed(self._datapath.of.vdi, str(failure)) from failure
            raise

    async def status(self) -> MoveStatus:
        """Where it is. CopyFailed when the datapath is gone."""
        try:
            return await self._look()
        except _TROUBLE as failure:
            raise CopyFailed(self._datapath.of.vdi, f"its datapath does not answer: {failure}") from failure

    async def _look(self) -> MoveStatus:
        job = await self._datapath.daemon.job(JOB)
        if job is None:
            return MoveStatus(MoveState.NONE)
        copied, total = int(job["current-progress"]), int(job["total-progress"])
        if job["status"] in ("concluded", "null"):
            error = str(job.get("error", ""))
            return MoveStatus(MoveState.FAILED if error else MoveState.MOVED, copied, total, error)
        return MoveStatus(MoveState.READY if job["status"] == "ready" else MoveState.COPYING, copied, total)

    async def settle(self) -> None:
        """Of a ready move: what was written so far stays in the new image, whatever dies. CopyFailed."""
        location = self._to.location
        if isinstance(location, ImageLocation):
            # The most of it beside the domain's work, for which the reopening waits.
            await threads.deferToThread(flush, location.path)
        try:
            await self._datapath.gate.flush_beside(self._nodes, location)
        except _TROUBLE as failure:
            raise CopyFailed(self._datapath.of.vdi, f"the new image cannot be flushed: {failure}") from failure

    async def pivot(self) -> None:
        """Ask a ready job to put the new image in the old one's place, and wait for it; after a restart, or a repeat,
        go on from where it is. `tidy_up` comes next. CopyFailed: the datapath has its old image. SrBackendFailure: it
        does not answer."""
        vdi = self._datapath.of.vdi
        asked = False
        while True:
            try:
                now = await self._look()
                if now.state is MoveState.READY and not asked:
                    await self._datapath.daemon.execute("job-complete", {"id": JOB})
                    asked = True
            except _TROUBLE as failure:
                raise SrBackendFailure(f"VDI {vdi} (pivot)", f"its datapath does not answer: {failure}") from failure
            if now.state is MoveState.MOVED:
                break
            if now.state in (MoveState.FAILED, MoveState.NONE):
                raise CopyFailed(vdi, now.error or "its mirror is gone")
            await task.deferLater(self._reactor, _SOON)
        self._datapaths.exchanged(self._datapath, self._to)

    async def cancel(self) -> None:
        """End it, whatever its state; the datapath keeps its old image. Not after `pivot` was asked."""
        daemon = self._datapath.daemon
        while daemon.alive:
            now = await self.status()
            if now.state not in (MoveState.COPYING, MoveState.READY):
                break
            try:
                await daemon.execute("block-job-cancel", {"device": JOB, "force": True})
            except QMPError:
                pass  # it has ended meanwhile
            await task.deferLater(self._reactor, _LOOKS)
        if daemon.alive:
            await tidy_up(self._reactor, self._datapath, self._nodes)


async def tidy_up(reactor: Any, datapath: Datapath, nodes: ImageNodes) -> None:
    """Forget the job and close the image, of these nodes, that nobody uses. Repeatable."""
    try:
        await datapath.daemon.execute("job-dismiss", {"id": JOB})
    except QMPError:
        pass  # there is none
    for attempt in range(100):
        try:
            await datapath.gate.close_beside(nodes)
            return
        except QMPError:  # the job lets go of its nodes a moment after it has concluded
            if attempt == 99:
                raise
            await task.deferLater(reactor, _LOOKS)
