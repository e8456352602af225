"""The host's one tgtd: found or started, spoken to, ended.

tgtd ignores SIGTERM and keeps its targets until it is told otherwise or killed, so it outlives the daemon;
`end` is what stops it.
"""

from __future__ import annotations

import os
import socket as sockets
from pathlib import Path
from typing import Any

from twisted.internet import task
from twisted.internet.error import ConnectError

from xapi_migrate.errors import SrBackendFailure
from xapi_migrate.processes.child import Child, find, spawn
from xapi_migrate.sm.addresses import bracketed
from xapi_migrate.sm.tgt_ipc import Mode, Op, TgtError, call
from xapi_migrate.sm.timeouts import SMTimeouts

_IPC = "tgt.sock"


def free_port(address: str) -> int:
    """A TCP port that nobody listens on at this local address."""
    family = sockets.AF_INET6 if ":" in address else sockets.AF_INET
    with sockets.socket(family, sockets.SOCK_STREAM) as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])


class TgtProcess:
    """`folder` holds its socket, log and process.json."""

    def __init__(self, reactor: Any, folder: Path, timeouts: SMTimeouts) -> None:
        self._reactor = reactor
        self._timeouts = timeouts
        self.folder = folder
        self.child: Child | None = None

    @property
    def alive(self) -> bool:
        return self.child is not None and self.child.alive

    def find(self) -> bool:
        """Whether one that was started before lives on."""
        if not self.alive:
            self.child = find(self._reactor, self.folder)
        return self.alive

    async def start(self, address: str, port: int) -> None:
        """Start it with its first portal. SrBackendFailure."""
        portal = f"{bracketed(address)}:{port}"
        nop = f"nop_interval={self._timeouts.nop_interval},nop_count={self._timeouts.nop_count}"
        try:
            self.child = await spawn(
                self._reactor,
                self.folder,
                ["tgtd", "-f", "--iscsi", f"portal={portal},{nop}"],
                env={**os.environ, "TGT_IPC_SOCKET": _IPC},
            )
        except OSError as failure:
            raise SrBackendFailure("the iSCSI target", f"tgtd cannot be started: {failure}") from failure
        try:
            await self._until_it_answers()
            await self._require_portal(portal)
        except BaseException:
            await self.kill()
            raise

    async def open_portal(self, address: str, port: int) -> None:
        """Listen at a further local address; nothing happens if it does already. SrBackendFailure."""
        portal = f"{bracketed(address)}:{port}"
        if portal not in await self.portals():
            try:
                await self.ask(Mode.PORTAL, Op.NEW, text=f"portalOps portal={portal},", what=f"listen at {portal}")
            except TgtError as failure:
                raise SrBackendFailure(
                    f"the iSCSI portal {portal}", f"{failure}; is the address local and the port free?"
                ) from failure
        await self._require_portal(portal)

    async def portals(self) -> set[str]:
        """What it really listens at: "address:port"."""
        lines = (await self.ask(Mode.PORTAL, Op.SHOW)).splitlines()
        return {line.split(": ", 1)[1].rsplit(",", 1)[0] for line in lines if line.startswith("Portal: ")}

    async def ask(self, mode: Mode, op: Op, **arguments: Any) -> str:
        """One management request. TgtError; SrBackendFailure when tgtd is gone."""
        try:
            return await call(self._reactor, self.folder / f"{_IPC}.0", mode, op, **arguments)
        except (OSError, ConnectError) as failure:
            raise SrBackendFailure("the iSCSI target", f"tgtd does not answer: {failure}") from failure

    async def kill(self) -> None:
        """End it at once and all sessions with it."""
        child, self.child = self.child, None
        if child is not None:
            await child.kill()

    def let_go(self) -> None:
        """Stop watching; it lives on."""
        if self.child is not None:
            self.child.abandon()

    async def _until_it_answers(self) -> None:
        deadline = self._reactor.seconds() + self._timeouts.start
        while True:
            try:
                answer = await self.ask(Mode.SYSTEM, Op.SHOW)
                break
            except (SrBackendFailure, TgtError) as failure:
                if not self.alive or self._reactor.seconds() > deadline:
                    errors = self.child.errors() if self.child else ""
                    await self.kill()
                    raise SrBackendFailure("the iSCSI target", f"tgtd did not come up: {failure} {errors}") from failure
            await task.deferLater(self._reactor, 0.01)
        if "State: ready" not in answer or "iscsi: ready" not in answer:
            await self.kill()
            raise SrBackendFailure(
                "the iSCSI target", "tgtd's management protocol is not the one of tgt 1.0.8x: install that version"
            )

    async def _require_portal(self, portal: str) -> None:
        # with its port taken tgtd keeps running and merely does not listen
        if portal not in await self.portals():
            raise SrBackendFailure("the iSCSI target", f"tgtd could not listen at {portal}: is the port taken?")
