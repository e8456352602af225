"""The mirror: the job inside a datapath that copies a disk and then keeps up with its writes (log-dirty)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import attrs
from twisted.internet import defer, task
from twisted.internet.error import ConnectionDone, ConnectionLost

from xapi_migrate.processes.qmp import Event, QMPError
from xapi_migrate.sm.copier import EXPORT
from xapi_migrate.sm.storage_daemon import StorageDaemon
from xapi_migrate.sm.timeouts import SMTimeouts

JOB = "copy"
_NO_ANSWER = (QMPError, defer.TimeoutError, TimeoutError, ConnectionDone, ConnectionLost)
_FAILED = {"read": "it cannot be read at the sending host", "write": "it cannot be written at the receiving host"}
_WIRE, _DESTINATION = "copy-wire", "copy-destination"


@attrs.frozen
class Progress:
    """`done` of `total` bytes; `total` grows with guest writes."""

    done: int
    total: int
    ready: bool
    concluded: bool
    error: str


class Mirror:
    """One job of one datapath."""

    def __init__(self, reactor: Any, daemon: StorageDaemon, timeouts: SMTimeouts) -> None:
        self._reactor = reactor
        self._daemon = daemon
        self._timeouts = timeouts
        self._news = False
        self._was_ready = False
        self._failed = ""
        """What failed first, for people."""
        self._waiting: list[defer.Deferred[None]] = []
        self._unwatch = daemon.qmp.watch(self._event)

    async def start(self, device: str, socket: Path, size: int) -> None:
        """Begin to copy the disk of `size` bytes behind the gate node `device` into the export behind the copier's
        `socket`. QMPError."""
        try:
            await self._daemon.add_node(
                driver="nbd",
                node_name=_WIRE,
                server={"type": "unix", "path": os.path.relpath(socket, self._daemon.folder)},
                export=EXPORT,
                discard="unmap",
                detect_zeroes="unmap",
                reconnect_delay=self._timeouts.reconnect,
            )
            target = _WIRE
            if await self._daemon.virtual_size(_WIRE) > size:
                # the receiver's storage rounds up: use the front part of its LUN
                target = _DESTINATION
                await self._daemon.add_node(
                    driver="raw", node_name=target, file=_WIRE, size=size, discard="unmap", detect_zeroes="unmap"
                )
            arguments = {
                "job-id": JOB,
                "device": device,
                "target": target,
                # Not "full": that first writes zeroes over the whole destination, which is fresh and reads as zeroes.
                # The job does not tell how far it is with that, and so would be taken to stand still.
                "sync": "top",
                "auto-dismiss": False,
                "on-target-error": "report",
                "speed": self._timeouts.copy_speed,
            }
            await self._daemon.execute("blockdev-mirror", arguments)
        except BaseException:
            self._unwatch()
            if self._daemon.alive:
                try:
                    await self._daemon.drop_nodes(_DESTINATION, _WIRE)
                except _NO_ANSWER:
                    pass  # what failed first is to be told: a cancellation is none of a failure of its clean-up
            raise

    async def progress(self) -> Progress:
        """Where it is now. A job that is not there has concluded."""
        job = await self._daemon.job(JOB)
        if job is None:
            return Progress(0, 0, False, True, "the mirror job is gone")
        return Progress(
            job["current-progress"],
            job["total-progress"],
            job["status"] == "ready",
            job["status"] in ("concluded", "null"),
            self._why(job.get("error", "")),
        )

    def _why(self, error: str) -> str:
        return f"{self._failed}: {error}" if error and self._failed else error

    async def changed(self, seconds: float) -> None:
        """Wait for an event of the job, at most so long; one that came since the last time counts."""
        if self._news:
            self._news = False
            return
        waiting: defer.Deferred[None] = defer.Deferred()
        self._waiting.append(waiting)
        waiting.addTimeout(seconds, self._reactor, onTimeoutCancel=lambda *_: None)
        try:
            await waiting
        finally:
            if waiting in self._waiting:
                self._waiting.remove(waiting)

    async def complete(self) -> None:
        """Ask a ready job to end with both sides equal."""
        await self._daemon.execute("block-job-cancel", {"device": JOB})

    def abort(self) -> None:
        """Ask the job to end as it is. To be repeated until it has: the request does nothing while the datapath has not
        noticed yet that its copier is dead. Does not wait: a drain may hold the monitor up."""
        asked = self._daemon.execute("block-job-cancel", {"device": JOB, "force": True})
        asked.addErrback(lambda failure: failure.trap(*_NO_ANSWER))

    async def dismiss(self) -> None:
        """Forget a concluded job and let go of the copier's socket."""
        self._unwatch()
        try:
            await self._daemon.execute("job-dismiss", {"id": JOB})
        except QMPError:
            pass  # dismissed before a restart of the daemon
        for _ in range(50):
            try:
                await self._daemon.drop_nodes(_DESTINATION, _WIRE)
                return
            except QMPError:  # the job lets go of its nodes a moment after it has concluded
                await task.deferLater(self._reactor, 0.01)

    def forget(self) -> None:
        """Stop watching."""
        self._unwatch()

    def _event(self, name: str, data: Event) -> None:
        if name == "BLOCK_JOB_ERROR" and data.get("device") == JOB:
            self._failed = self._failed or _FAILED.get(str(data.get("operation")), "")
        if name == "" or (name == "JOB_STATUS_CHANGE" and data.get("id") == JOB and self._tells(str(data["status"]))):
            self._news = not self._waiting
            waiting, self._waiting = self._waiting, []
            for one in waiting:
                one.callback(None)

    def _tells(self, status: str) -> bool:
        """Whether this is worth a question. Each drain takes a ready job to `standby` and back: to ask then would hold
        up what the drain is for."""
        if status == "ready":
            was_ready, self._was_ready = self._was_ready, True
            return not was_ready
        return status in ("concluded", "null", "aborting")
