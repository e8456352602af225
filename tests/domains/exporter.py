"""A qemu-storage-daemon that exports one raw file over NBD on a unix socket, with a gate that can be shut."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from twisted.internet import reactor

from xapi_migrate.processes import child, qmp

EXPORT = "disk"


class Exporter:
    """`socket` is what a domain's disk connects to; several domains may at once."""

    def __init__(self, folder: Path, image: Path) -> None:
        self.folder = folder
        self.image = image
        self.socket = folder / "nbd.sock"
        self._child: child.Child | None = None
        self._qmp: qmp.QMP | None = None

    async def open(self) -> Exporter:
        self._child = await child.spawn(
            reactor,
            self.folder,
            [
                "qemu-storage-daemon",
                "--chardev",
                "socket,id=m,path=qmp.sock,server=on,wait=off",
                "--monitor",
                "chardev=m",
            ],
        )
        self._qmp = await qmp.connect(reactor, self.folder / "qmp.sock", lambda: self._child.alive)
        await self._add(driver="file", node_name="file", filename=str(self.image), locking="off")
        refuse = [{"event": "none", "iotype": "write", "errno": 5}]
        await self._add(driver="blkdebug", node_name="refusing", image="file", inject_error=refuse)
        await self._add(driver="raw", node_name="gate", file="file")
        await self._qmp.execute(
            "nbd-server-start", {"addr": {"type": "unix", "data": {"path": "nbd.sock"}}, "max-connections": 0}
        )
        export = {"type": "nbd", "id": "e", "node-name": "gate", "name": EXPORT, "writable": True}
        await self._qmp.execute("block-export-add", export)
        return self

    async def _add(self, **options: Any) -> None:
        await self._qmp.execute("blockdev-add", {key.replace("_", "-"): value for key, value in options.items()})

    async def gate(self, is_open: bool) -> None:
        """Shut: each write is answered with EIO."""
        child_node = "file" if is_open else "refusing"
        options = {"driver": "raw", "node-name": "gate", "file": child_node}
        await self._qmp.execute("blockdev-reopen", {"options": [options]})

    async def close(self) -> None:
        if self._qmp is not None:
            self._qmp.close()
            await self._qmp.closed
        if self._child is not None:
            await self._child.kill()
