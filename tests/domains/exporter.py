"""A qemu-storage-daemon that exports one raw file over NBD on a unix socket, with a gate that can be shut."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from twisted.internet import reactor

from xapi_migrate.sm.storage_daemon import StorageDaemon
from xapi_migrate.sm.timeouts import SMTimeouts

EXPORT = "disk"


class Exporter:
    """`socket` is what a domain's disk connects to; several domains may at once."""

    def __init__(self, folder: Path, image: Path) -> None:
        self.folder = folder
        self.image = image
        self.socket = folder / "nbd.sock"
        self._daemon: StorageDaemon | None = None

    async def open(self) -> Exporter:
        self._daemon = await StorageDaemon.start(reactor, self.folder, SMTimeouts())
        await self._add(driver="file", node_name="file", filename=str(self.image), locking="off")
        refuse = [{"event": "none", "iotype": "write", "errno": 5}]
        await self._add(driver="blkdebug", node_name="refusing", image="file", inject_error=refuse)
        await self._add(driver="raw", node_name="gate", file="file")
        await self._daemon.execute(
            "nbd-server-start", {"addr": {"type": "unix", "data": {"path": "nbd.sock"}}, "max-connections": 0}
        )
        export = {"type": "nbd", "id": "e", "node-name": "gate", "name": EXPORT, "writable": True}
        await self._daemon.execute("block-export-add", export)
        return self

    async def _add(self, **options: Any) -> None:
        await self._daemon.execute("blockdev-add", {key.replace("_", "-"): value for key, value in options.items()})

    async def gate(self, is_open: bool) -> None:
        """Shut: each write is answered with EIO."""
        child_node = "file" if is_open else "refusing"
        options = {"driver": "raw", "node-name": "gate", "file": child_node}
        await self._daemon.execute("blockdev-reopen", {"options": [options]})

    async def close(self) -> None:
        if self._daemon is not None:
            await self._daemon.end()
