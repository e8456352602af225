"""The copier: the process that holds the iSCSI session (or NBD connection) to the other host, for one VDI.copy.

It offers the LUN as NBD on a unix socket, into which the datapath mirrors. libiscsi retries for ever when the
other host is silent; in a process of its own that harms nobody, because it can be killed at any time.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from twisted.internet import defer, task, threads
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.logger import Logger

from xapi_migrate.errors import CopyFailed
from xapi_migrate.processes.child import find
from xapi_migrate.processes.qmp import QMPError
from xapi_migrate.sm.addresses import LunAddress, NBDAddress, read_address
from xapi_migrate.sm.interfaces import TargetUrl
from xapi_migrate.sm.nbd_target import KEYS, write_key
from xapi_migrate.sm.storage_daemon import MONITOR, NBD, UP, StorageDaemon
from xapi_migrate.sm.timeouts import SMTimeouts

EXPORT = "lun"
STARTS = 2
"""How often a copier is started that dies before it has opened its disk."""
_INITIATOR = "iqn.2011-10.org.xapi-migrate:copier"
# GnuTLS by itself takes one that copies less than half as fast.
_CIPHERS = "NORMAL:-CIPHER-ALL:+AES-128-GCM:+AES-256-GCM:+CHACHA20-POLY1305"
_UNSENT = {"04", "09", "0B"}  # FIN_WAIT1, LAST_ACK, CLOSING: the kernel still has bytes or a FIN to deliver


class Copier:
    """At most one process at a time; `folder` and the socket in it stay the same over replacements."""

    log = Logger()

    def __init__(self, reactor: Any, folder: Path, vdi: str, timeouts: SMTimeouts) -> None:
        self._reactor = reactor
        self._timeouts = timeouts
        self._vdi = vdi
        self.folder = folder
        self._daemon: StorageDaemon | None = None
        self._refuser: StorageDaemon | None = None
        self.left = False
        """Let go of: its processes, and the records by which they are found, are the next daemon's."""

    @property
    def socket(self) -> Path:
        return self.folder / NBD

    @property
    def alive(self) -> bool:
        return self._daemon is not None and self._daemon.alive

    @property
    def pid(self) -> int:
        return self._daemon.child.pid if self._daemon else 0

    async def start(self, url: TargetUrl) -> None:
        """Open the LUN and offer it. A process that dies meanwhile gets a successor, as one that dies later does.
        CopyFailed, with nothing left running."""
        address = read_address(url.url)
        await self._stale_writes_gone(address.port)
        for more in reversed(range(STARTS)):
            try:
                await self._start(address, url)
                return
            except (ConnectionDone, ConnectionLost) as failure:
                reason = f"its copier died: {self.errors() or 'it left no message'}"
                await self.kill()
                if not more:
                    raise self._cannot_be_opened(address, reason) from failure
                self.log.warn("VDI {vdi}: {reason}; starting another", vdi=self._vdi, reason=reason)
            except (QMPError, OSError, ValueError, TimeoutError, defer.TimeoutError) as failure:
                await self.kill()
                timed_out = isinstance(failure, (TimeoutError, defer.TimeoutError))
                reason = f"no answer within {self._timeouts.attach:g} s" if timed_out else str(failure)
                raise self._cannot_be_opened(address, reason) from failure
            except BaseException:
                await self.kill()
                raise

    def _cannot_be_opened(self, address: LunAddress | NBDAddress, reason: str) -> CopyFailed:
        return CopyFailed(self._vdi, f"the disk at {address.portal} cannot be opened: {reason}")

    async def _start(self, address: LunAddress | NBDAddress, url: TargetUrl) -> None:
        daemon = self._daemon = await StorageDaemon.start(self._reactor, self.folder, self._timeouts)
        account, node = self._remote(address, url)
        await daemon.execute("object-add", account)
        await daemon.execute("blockdev-add", node, timeout=self._timeouts.attach)
        # Not before: a datapath that is waiting would connect, find nothing, and come again late.
        await daemon.serve_nbd()
        await daemon.execute(
            "block-export-add", {"type": "nbd", "id": EXPORT, "node-name": EXPORT, "name": EXPORT, "writable": True}
        )

    def _remote(self, address: LunAddress | NBDAddress, url: TargetUrl) -> tuple[dict[str, Any], dict[str, Any]]:
        """The account and the block node of the disk at the other host."""
        if isinstance(address, LunAddress):
            return {"qom-type": "secret", "id": "account", "data": url.password}, {
                "driver": "iscsi",
                "node-name": EXPORT,
                "transport": "tcp",
                "portal": address.portal,
                "target": address.iqn,
                "lun": address.lun,
                "user": url.username,
                "password-secret": "account",
                "initiator-name": _INITIATOR,
                "discard": "unmap",
            }
        write_key(self.folder / KEYS, url)
        return {
            "qom-type": "tls-creds-psk",
            "id": "account",
            "endpoint": "client",
            "dir": str(self.folder),
            "username": url.username,
            "priority": _CIPHERS,
        }, {
            "driver": "nbd",
            "node-name": EXPORT,
            "server": {"type": "inet", "host": address.address, "port": str(address.port)},
            "export": address.serial,
            "tls-creds": "account",
            "discard": "unmap",
        }

    async def recover(self) -> bool:
        """After a restart of the daemon: whether it still works."""
        self._daemon = await StorageDaemon.find(self._reactor, self.folder, self._timeouts)
        return self.alive

    async def kill(self) -> None:
        """End it at once; the datapath's requests wait for a successor."""
        if self.left:
            return
        daemon, self._daemon = self._daemon, None
        if daemon is not None:
            await daemon.end()
        elif child := find(self._reactor, self.folder):
            await child.kill()

    async def dies(self, seconds: float) -> bool:
        """Whether it is gone, or will be by then: a dying process lets go of its sockets first."""
        if self._daemon is None:
            return True
        ended = self._daemon.child.ended().addTimeout(seconds, self._reactor)
        try:
            await ended
        except defer.TimeoutError:
            return False
        return True

    async def refuse(self, size: int) -> None:
        """From now on answer everything on its socket with an error: a datapath whose copier dies connects to this and
        stops waiting."""
        if self._refuser is not None:
            return
        folder = self.folder / "refuser"
        self._refuser = daemon = await StorageDaemon.start(self._reactor, folder, self._timeouts)
        await daemon.add_node(driver="null-co", node_name="nothing", size=size)
        everything = [
            {"event": "none", "iotype": kind, "errno": 5, "once": False, "immediately": True}
            for kind in ("read", "write", "write-zeroes", "discard", "flush", "block-status")
        ]
        await daemon.add_node(driver="blkdebug", node_name="refusing", image="nothing", inject_error=everything)
        await daemon.serve_nbd()
        await daemon.execute(
            "block-export-add", {"type": "nbd", "id": EXPORT, "node-name": "refusing", "name": EXPORT, "writable": True}
        )
        (folder / NBD).replace(self.socket)

    async def end(self) -> None:
        """Kill what runs and remove the sockets."""
        if self.left:
            return
        await self.kill()
        refuser, self._refuser = self._refuser, None
        if refuser is not None:
            await refuser.end()
        elif child := find(self._reactor, self.folder / "refuser"):
            await child.kill()
        for name in (NBD, KEYS, MONITOR, UP, "process.json", "stdout", "stderr"):
            (self.folder / name).unlink(missing_ok=True)
        if (self.folder / "refuser").exists():
            await threads.deferToThread(shutil.rmtree, self.folder / "refuser", ignore_errors=True)

    def let_go(self) -> None:
        """Stop watching; the processes live on."""
        self.left = True
        for daemon in (self._daemon, self._refuser):
            if daemon is not None:
                daemon.let_go()

    def errors(self) -> str:
        """The end of what it complained about."""
        return self._daemon.child.errors() if self._daemon else ""

    async def _stale_writes_gone(self, port: int) -> None:
        """Wait until the kernel has delivered what killed copiers had still in their sockets to this port."""
        deadline = self._reactor.seconds() + self._timeouts.stale_writes
        while _undelivered(port) and self._reactor.seconds() < deadline:
            await task.deferLater(self._reactor, 0.05)


def _undelivered(port: int) -> bool:
    """Whether a socket that no process owns any more still sends to this remote port."""
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            lines = Path(table).read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            if fields[3] in _UNSENT and fields[9] == "0" and int(fields[2].rsplit(":", 1)[1], 16) == port:
                return True
    return False


def folder_name(ref: str) -> str:
    """A task's reference as the name of a folder."""
    kept = "".join(c if c.isalnum() or c in "-_" else "_" for c in ref)
    return kept[-64:]
