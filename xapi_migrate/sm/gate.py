"""The gate: whether a datapath lets a domain's I/O through to the image.

    export -> gate (raw) -> shut (all I/O fails) -> placeholder (right size)     SHUT, image closed
                         -> fence (writes fail) -> image                         FENCED
                         -> image                                                OPEN

The export and its client stay; only the child of the gate node is exchanged, by blockdev-reopen, which drains first.
Reads fail as well as writes: QEMU lets a guest run on by itself when its stream fails, and one that found zeroes on its
disk would be lost; one whose read fails is stopped, and reads again when it goes on. A copy is a blockdev-mirror of the
gate node. Shutting the gate under a running mirror would fail it, hence FENCED: nothing can be written any more, and
the copy still reads the image.
"""

from __future__ import annotations

from enum import Enum
from typing import Any

from xapi_migrate.errors import SrBackendFailure
from xapi_migrate.processes.qmp import QMPError
from xapi_migrate.sm.interfaces import ImageLocation
from xapi_migrate.sm.storage_daemon import StorageDaemon

GATE = "gate"
IMAGE = "image"
_EIO = 5
_WRITES = ("write", "write-zeroes", "discard")


class Position(Enum):
    """See the picture above."""

    SHUT = "shut"
    FENCED = "fence"
    OPEN = "image"


class Gate:
    """Every move is repeatable and starts from wherever an interrupted one stopped."""

    def __init__(self, daemon: StorageDaemon, vdi: str, location: ImageLocation, size: int, read_only: bool) -> None:
        self._daemon = daemon
        self._vdi = vdi
        self._location = location
        self._size = size
        self._read_only = read_only
        self._position: Position | None = None
        """Where it is for sure."""

    async def build(self) -> None:
        """The nodes of a shut gate."""
        await self._daemon.add_node(
            driver="null-co", node_name="placeholder", size=self._size, read_zeroes=True, read_only=self._read_only
        )
        await self._add_refusing("shut", "placeholder", ("read", *_WRITES))
        await self._daemon.add_node(**self._gate("shut"))

    async def move(self, position: Position) -> None:
        """Put the gate there, opening the image if need be (closing it is `close_image`)."""
        if position is self._position:
            return
        self._position = None
        if position is not Position.SHUT:
            await self.open_image()
        if position is Position.FENCED:
            await self.prepare_fence()
        options = {key.replace("_", "-"): value for key, value in self._gate(position.value).items()}
        await self._daemon.execute("blockdev-reopen", {"options": [options]})
        if position is not Position.FENCED:
            await self._daemon.drop_nodes("fence")
        self._position = position

    async def prepare_fence(self) -> None:
        """Make what FENCED needs beforehand, the image being open: a suspended guest will wait for that move."""
        await self._add_refusing("fence", IMAGE, _WRITES)

    async def open_image(self) -> None:
        """Open the image, its format as given, never probed. SrBackendFailure."""
        if await self._daemon.has_node(IMAGE):
            return
        file = {"driver": "file", "filename": str(self._location.path)}
        if self._location.path.is_block_device():
            file["driver"] = "host_device"
        try:
            await self._daemon.add_node(node_name="image-file", discard="unmap", read_only=self._read_only, **file)
            await self._daemon.add_node(
                driver=self._location.format.value,
                node_name=IMAGE,
                file="image-file",
                discard="unmap",
                read_only=self._read_only,
            )
            actual = await self._daemon.virtual_size(IMAGE)
            if actual != self._size:
                await self.close_image()
                raise SrBackendFailure(
                    f"opening VDI {self._vdi}", f"its image holds {actual} bytes, {self._size} were expected"
                )
        except QMPError as failure:
            raise SrBackendFailure(f"opening VDI {self._vdi}", str(failure)) from failure

    async def close_image(self) -> None:
        """Flush and close the image; nothing may use it any more."""
        await self._daemon.drop_nodes("fence", IMAGE, "image-file")

    async def image_is_open(self) -> bool:
        """Whether this process holds the image."""
        return IMAGE in await self._daemon.nodes()

    async def _add_refusing(self, name: str, over: str, kinds: tuple[str, ...]) -> None:
        await self._daemon.add_node(
            driver="blkdebug",
            node_name=name,
            image=over,
            inject_error=[
                {"event": "none", "iotype": kind, "errno": _EIO, "once": False, "immediately": True} for kind in kinds
            ],
            discard="unmap",  # else discards are taken for done
            read_only=self._read_only,
        )

    def _gate(self, child: str) -> dict[str, Any]:
        return {
            "driver": "raw",
            "node_name": GATE,
            "file": child,
            "discard": "unmap",
            "read_only": self._read_only,
        }
