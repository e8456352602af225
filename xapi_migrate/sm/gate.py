"""The gate: whether a datapath lets a domain's I/O through to the image.

    export -> gate (raw) -> shut (all I/O fails) -> placeholder (right size)     SHUT, image closed
                         -> fence (writes fail) -> image                         FENCED
                         -> image                                                OPEN
                         -> brake (writes no faster than a limit) -> image       OPEN, slowed

The export and its client stay; only the child of the gate node is exchanged, by blockdev-reopen, which drains first.
Reads fail as well as writes: QEMU lets a guest run on by itself when its stream fails, and one that found zeroes on its
disk would be lost; one whose read fails is stopped, and reads again when it goes on. A copy is a blockdev-mirror of the
gate node. Shutting the gate under a running mirror would fail it, hence FENCED: nothing can be written any more, and
the copy still reads the image.
"""

from __future__ import annotations

from enum import Enum
from typing import Any

import attrs

from xapi_migrate.errors import SrBackendFailure
from xapi_migrate.processes.qmp import QMPError
from xapi_migrate.sm.interfaces import ImageFormat, ImageLocation, ImageNode
from xapi_migrate.sm.storage_daemon import StorageDaemon

Location = ImageLocation | ImageNode
_EIO = 5
_WRITES = ("write", "write-zeroes", "discard")
_BRAKE = "brake"
GRANULE = 64 << 10
"""Bytes that a mirror copies at least, however little was written."""


class Position(Enum):
    """See the picture above."""

    SHUT = "shut"
    FENCED = "fence"
    OPEN = "open"


@attrs.frozen
class ImageNodes:
    """The names of an image's nodes and of its gate's. A datapath whose image is being exchanged has two sets: QEMU
    puts a whole tree in the place of another."""

    turn: int

    @property
    def gate(self) -> str:
        return f"gate{self.turn or ''}"

    @property
    def image(self) -> str:
        return f"image{self.turn or ''}"

    @property
    def file(self) -> str:
        return f"{self.image}-file"

    def secret(self, option: str) -> str:
        """The name of what this option of the file node refers to."""
        return f"{self.file}-{option}"


class Gate:
    """Every move is repeatable and starts from wherever an interrupted one stopped."""

    def __init__(
        self, daemon: StorageDaemon, vdi: str, location: Location, size: int, read_only: bool, turn: int = 0
    ) -> None:
        self.nodes = ImageNodes(turn)
        self._daemon = daemon
        self._vdi = vdi
        self._location = location
        self._size = size
        self._read_only = read_only
        self._position: Position | None = None
        """Where it is for sure."""

    async def build(self) -> None:
        """The nodes of a shut gate."""
        await self._tell_secrets(self.nodes, self._location)
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
        child = self.nodes.image if position is Position.OPEN else position.value
        await self._daemon.reopen_node(**self._gate(child))
        if position is not Position.FENCED:
            await self._daemon.drop_nodes("fence")
        self._position = position

    async def prepare_brake(self) -> None:
        """Of an open gate, before a copy begins (each move of the gate waits for what a copy has in flight): from now
        on `slow` limits what is written through it. A copy, which only reads, is not slowed, nor is a drain."""
        await self.slow(0)
        await self._daemon.add_node(
            driver="throttle", node_name=_BRAKE, throttle_group=_BRAKE, file=self.nodes.image,
            discard="unmap", read_only=self._read_only,
        )  # fmt: skip
        await self._daemon.reopen_node(**self._gate(_BRAKE))

    async def slow(self, limit: int) -> None:
        """A copy has to carry no more than `limit` bytes per second of what is written, 0: as much as there is. A small
        write counts as a whole granule: that is what the copy then carries. Over when the gate moves."""
        await self._daemon.limit_writes(_BRAKE, limit, max(1, limit // GRANULE) if limit else 0)

    async def drop_brake(self, is_open: bool) -> None:
        """After the copy; repeatable. `is_open`: the gate is OPEN, slowed or not."""
        if not await self._daemon.has_node(_BRAKE):
            return
        if is_open:
            await self._daemon.reopen_node(**self._gate(self.nodes.image))
        await self._daemon.drop_nodes(_BRAKE)

    async def prepare_fence(self) -> None:
        """Make what FENCED needs beforehand, the image being open: a suspended guest will wait for that move."""
        await self._add_refusing("fence", self.nodes.image, _WRITES)

    async def open_image(self) -> None:
        """Open the image, its format as given, never probed. SrBackendFailure."""
        await self.open(self.nodes, self._location)

    async def open(self, nodes: ImageNodes, location: Location) -> None:
        """Open an image under these names, if it is not open. SrBackendFailure."""
        if await self._daemon.has_node(nodes.image):
            return
        try:
            await self._daemon.add_node(**self._file(nodes, location))
            await self._daemon.add_node(**self._image(nodes, location))
            actual = await self._daemon.virtual_size(nodes.image)
            if actual != self._size:
                await self._daemon.drop_nodes(nodes.image, nodes.file)
                raise SrBackendFailure(
                    f"opening VDI {self._vdi}", f"its image holds {actual} bytes, {self._size} were expected"
                )
        except QMPError as failure:
            raise SrBackendFailure(f"opening VDI {self._vdi}", str(failure)) from failure

    async def open_beside(self, nodes: ImageNodes, location: Location) -> None:
        """Another image behind an open gate of its own, which nobody uses yet. SrBackendFailure."""
        await self._tell_secrets(nodes, location)
        await self.open(nodes, location)
        await self._daemon.add_node(**self._gate(nodes.image, nodes))

    async def flush_beside(self, nodes: ImageNodes, location: Location) -> None:
        """Everything that was written to that image so far is on its disk, a format's own tables too: to reopen an
        image flushes it, and QEMU has no other command that does."""
        await self._daemon.reopen_node(**self._image(nodes, location))

    async def close_beside(self, nodes: ImageNodes) -> None:
        """Close what nobody uses any more. QMPError while somebody does."""
        fence = [] if nodes.turn > self.nodes.turn else ["fence"]  # it is over the image that was there before
        await self._daemon.drop_nodes(nodes.gate, *fence, nodes.image, nodes.file)

    def exchanged(self, vdi: str, location: Location, nodes: ImageNodes) -> None:
        """The other image, with its gate, is in the place of this one."""
        self._vdi, self._location, self.nodes, self._position = vdi, location, nodes, Position.OPEN

    async def close_image(self) -> None:
        """Flush and close the image; nothing may use it any more."""
        await self._daemon.drop_nodes("fence", _BRAKE, self.nodes.image, self.nodes.file)

    async def flush_fails(self) -> bool:
        """Whether a flush of the open image's file or device fails, now or ever before. QEMU lets no other flush of it
        succeed then: the kernel may have dropped what it could not write, and the next fsync(2) would say nothing of
        it. To reopen a node flushes it. Not of an ImageNode, where no kernel is in between."""
        if isinstance(self._location, ImageNode) or not await self._daemon.has_node(self.nodes.file):
            return False
        try:
            await self._daemon.reopen_node(**self._file(self.nodes, self._location))
        except QMPError as failure:
            return "Error flushing" in str(failure)
        return False

    async def image_is_open(self) -> bool:
        """Whether this process holds the image."""
        return self.nodes.image in await self._daemon.nodes()

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

    async def _tell_secrets(self, nodes: ImageNodes, location: Location) -> None:
        """They are kept nowhere but in the process: it must have them before anybody opens the image."""
        if isinstance(location, ImageNode):
            for option, text in location.secrets.items():
                if text:
                    name = nodes.secret(option)
                    await self._daemon.execute("object-add", {"qom-type": "secret", "id": name, "data": text})

    def _file(self, nodes: ImageNodes, location: Location) -> dict[str, Any]:
        """What is below the format."""
        # What is read after a discard is only defined where it punches a hole into a file. Elsewhere a guest's TRIM
        # goes no further, and a hole is written as zeroes: a copy of the disk then is equal to it, and stays so.
        node = {"node_name": nodes.file, "discard": "ignore", "read_only": self._read_only}
        if isinstance(location, ImageNode):
            return {**location.options, **{option: nodes.secret(option) for option in location.secrets}, **node}
        if location.path.is_block_device():
            return {"driver": "host_device", "filename": str(location.path), **node}
        # QEMU's VHD writes zeroes out as data, those of a copy's holes too: the file has holes in their place.
        detect = "unmap" if location.format is ImageFormat.VHD else "off"
        return {
            "driver": "file", "filename": str(location.path), **node, "discard": "unmap", "detect_zeroes": detect,
        }  # fmt: skip

    def _image(self, nodes: ImageNodes, location: Location) -> dict[str, Any]:
        limit = {"size": location.size} if location.size and location.format is ImageFormat.RAW else {}
        return {
            **limit,
            "driver": location.format.value,
            "node_name": nodes.image,
            "file": nodes.file,
            "discard": "unmap",
            "read_only": self._read_only,
        }

    def _gate(self, child: str, nodes: ImageNodes | None = None) -> dict[str, Any]:
        return {
            "driver": "raw",
            "node_name": (nodes or self.nodes).gate,
            "file": child,
            "discard": "unmap",
            "read_only": self._read_only,
        }
