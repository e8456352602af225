"""The datapath of one attached VDI: one qemu-storage-daemon through which everybody reaches the image.

Users are named: "domain" (NBD on a unix socket, behind the gate), "target" (a raw view for tgtd), "copy" (a running
VDI.copy, which reads) and "move" (its image is being exchanged for that of another VDI). Each attaches, activates,
deactivates and detaches by its own name; the image is open while one of them is active, the process lives while one of
them is attached. All of it is kept in the process itself and in `state.json`, so that a restarted daemon goes on where
it was.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
from twisted.internet import defer, threads
from twisted.internet.error import ConnectionDone, ConnectionLost

from xapi_migrate.errors import SrBackendFailure, VdiInUse
from xapi_migrate.processes.qmp import QMPError
from xapi_migrate.sm.gate import Gate, ImageNodes, Position
from xapi_migrate.sm.interfaces import Attachment, ImageFormat, ImageLocation, ImageNode
from xapi_migrate.sm.storage_daemon import NBD, StorageDaemon
from xapi_migrate.sm.timeouts import SMTimeouts

DOMAIN, TARGET, COPY, MOVE = "domain", "target", "copy", "move"
_STATE = "state.json"
_TROUBLE = (QMPError, TimeoutError, defer.TimeoutError, ConnectionDone, ConnectionLost)
_VIEW = "view"
EXPORT = "disk"
"""The name of the NBD export."""


@attrs.frozen
class DatapathOf:
    """What a datapath is for: changes only when its image is exchanged, `turn` times so far."""

    sr: str
    vdi: str
    path: str
    format: str
    virtual_size: int
    read_only: bool
    turn: int = 0
    size: int = 0
    """See ImageLocation."""
    node: dict[str, Any] | None = None
    """The options of an ImageNode, which has no path."""
    secrets: dict[str, str] = attrs.field(factory=dict, repr=False)
    """Those of an ImageNode; after a restart their names only, the process has them."""

    @property
    def location(self) -> ImageLocation | ImageNode:
        if self.node is not None:
            return ImageNode(self.node, ImageFormat(self.format), self.size, self.secrets)
        return ImageLocation(Path(self.path), ImageFormat(self.format), self.size)

    @property
    def is_its_file(self) -> bool:
        """Whether a file on this host has the disk's bytes as they are, and no others."""
        return self.node is None and self.format == ImageFormat.RAW.value and not self.size


class Datapath:
    """Made by `Datapaths`. Calls of several users are put in order."""

    def __init__(self, daemon: StorageDaemon, of: DatapathOf, users: dict[str, bool]) -> None:
        self.daemon = daemon
        self.of = of
        self.users = users
        """user -> whether active"""
        self.gate = Gate(daemon, of.vdi, of.location, of.virtual_size, of.read_only, of.turn)
        self._lock = defer.DeferredLock()

    @property
    def attachment(self) -> Attachment:
        return Attachment(str(self.daemon.folder / NBD), EXPORT, self.of.virtual_size)

    @property
    def view(self) -> Path:
        """The file that shows the disk's bytes as they are, for tgtd."""
        return Path(self.of.path) if self.of.is_its_file else self.daemon.folder / _VIEW

    @property
    def file(self) -> Path:
        """The file that is to be flushed: the image's, or the view of one that has none here."""
        return self.view if self.of.node is not None else Path(self.of.path)

    async def build(self) -> None:
        """The nodes of a new process."""
        await self.gate.build()
        await self.daemon.serve_nbd()
        self.save()

    async def attach(self, user: str) -> None:
        """Begin to use it, inactive."""
        async with self._order("attach"):
            if user == DOMAIN and DOMAIN not in await self.daemon.exports():
                await self.daemon.execute(
                    "block-export-add",
                    {
                        "type": "nbd",
                        "id": DOMAIN,
                        "node-name": self.gate.nodes.gate,
                        "name": EXPORT,
                        "writable": not self.of.read_only,
                    },
                )
            self.users.setdefault(user, False)
            self.save()

    async def activate(self, user: str) -> None:
        """Open the image for this user."""
        async with self._order("activate"):
            if user not in self.users:
                raise VdiInUse(self.of.vdi, f"it is not attached for {user}")
            before = self.users[user]
            self.users[user] = True
            try:
                await self._settle()
            except BaseException:
                self.users[user] = before
                await self._close_what_failed()
                raise
            self.save()

    async def deactivate(self, user: str) -> None:
        """Nothing of this user reaches the image any more when this fires; the image is closed if it was the last."""
        async with self._order("deactivate"):
            if user in self.users:
                self.users[user] = False
                await self._settle()
                self.save()

    async def prepare_brake(self) -> None:
        """Before a copy begins: from now on the domain can be slowed down."""
        async with self._order("prepare to slow down"):
            if self.users.get(DOMAIN):
                await self.gate.prepare_brake()

    async def slow(self, limit: int) -> None:
        """The domain's writes go no faster than `limit` bytes per second; 0: as fast as they go. Over, too, when the
        domain is deactivated."""
        try:
            await self.gate.slow(limit)
        except _TROUBLE as failure:
            raise SrBackendFailure(f"VDI {self.of.vdi} (slow down)", str(failure)) from failure

    async def drop_brake(self) -> None:
        """After the copy: the domain is as fast as before. Repeatable, also after a restart of the daemon."""
        async with self._order("slow down no longer"):
            await self.gate.drop_brake(bool(self.users.get(DOMAIN)))

    async def end_view(self) -> None:
        """Deactivate "target" but leave the image open: the domain's activation is next, and a guest waits for it."""
        async with self._order("deactivate"):
            if TARGET in self.users:
                self.users[TARGET] = False
                await self._hide_view()
                self.save()

    def exchanged(self, of: DatapathOf) -> None:
        """It shows another VDI's image from now on, with the same content at this moment."""
        self.of = of
        self.gate.exchanged(of.vdi, of.location, ImageNodes(of.turn))
        self.save()

    async def detach(self, user: str) -> bool:
        """End the use. True when nobody is left: the owner then ends the process."""
        await self.deactivate(user)
        async with self._order("detach"):
            if user == DOMAIN:
                await self.daemon.drop_export(DOMAIN)
            self.users.pop(user, None)
            self.save()
            return not self.users

    async def _settle(self) -> None:
        """Bring gate, raw view and image to what the users need."""
        active = {user for user, is_active in self.users.items() if is_active}
        if DOMAIN in active:
            position = Position.OPEN
        elif active & {COPY, MOVE}:
            position = Position.FENCED
        else:
            position = Position.SHUT
        await self.gate.move(position)
        if TARGET in active:
            # a raw image too, though tgtd goes past it: the domain's activation will then only have to move the gate
            await self.gate.open_image()
            if not self.of.is_its_file:
                await self._show_view()
        elif TARGET in self.users:
            await self._hide_view()
        if position is Position.OPEN and COPY in active:
            await self.gate.prepare_fence()
        if not active:
            await self.gate.close_image()

    async def _close_what_failed(self) -> None:
        try:
            await self._settle()
        except (SrBackendFailure, *_TROUBLE):
            pass  # the first failure is the one to tell

    async def _show_view(self) -> None:
        if TARGET in await self.daemon.exports():
            return
        await threads.deferToThread(self.view.touch)
        await self.daemon.execute(
            "block-export-add",
            {
                "type": "fuse",
                "id": TARGET,
                "node-name": self.gate.nodes.image,
                "mountpoint": str(self.view),
                "writable": not self.of.read_only,
            },
        )

    async def _hide_view(self) -> None:
        if not self.of.is_its_file:
            await self.daemon.drop_export(TARGET)

    @asynccontextmanager
    async def _order(self, what: str) -> AsyncIterator[None]:
        await self._lock.acquire()
        try:
            yield
        except _TROUBLE as failure:
            reason = str(failure) if self.daemon.alive else f"its datapath died {self.daemon.child.errors()}"
            raise SrBackendFailure(f"VDI {self.of.vdi} ({what})", reason) from failure
        finally:
            self._lock.release()

    def save(self) -> None:
        draft = self.daemon.folder / f"{_STATE}.new"
        of = attrs.evolve(self.of, secrets=dict.fromkeys(self.of.secrets, ""))
        draft.write_text(json.dumps({"of": attrs.asdict(of), "users": self.users}))
        draft.replace(self.daemon.folder / _STATE)


@attrs.frozen
class ImageCalls:
    """What has to be done for an image before it is opened (repeatable), and after the last datapath that used it is
    gone (raises nothing)."""

    attach: Callable[[str], Awaitable[None]]
    detach: Callable[[str], Awaitable[None]]


class Datapaths:
    """All datapaths of the host, by VDI."""

    def __init__(self, reactor: Any, folder: Path, timeouts: SMTimeouts) -> None:
        self._reactor = reactor
        self._folder = folder
        self._timeouts = timeouts
        self._all: dict[str, Datapath] = {}
        self._images: dict[str, ImageCalls] = {}
        self._locks: dict[str, defer.DeferredLock] = {}

    def get(self, vdi: str) -> Datapath | None:
        """The VDI's datapath if it has one that lives."""
        datapath = self._all.get(vdi)
        return datapath if datapath is not None and datapath.daemon.alive else None

    def images_of(self, sr: str, calls: ImageCalls) -> None:
        """What images of this SR need before they are opened and after they are closed."""
        self._images[sr] = calls

    async def image_attach(self, sr: str, vdi: str) -> None:
        """Make an image reachable on this host. `attach` does it by itself."""
        if sr in self._images:
            await self._images[sr].attach(vdi)

    async def image_detach(self, sr: str, vdi: str) -> None:
        """An image is not used on this host any more. `detach` does it by itself."""
        if sr in self._images:
            await self._images[sr].detach(vdi)

    def of_sr(self, sr: str) -> list[str]:
        """The VDIs of this SR that are attached."""
        return [vdi for vdi, datapath in self._all.items() if datapath.of.sr == sr and datapath.daemon.alive]

    async def attach(self, of: DatapathOf, user: str) -> Datapath:
        """The VDI's datapath, started if there is none, with one more user. VdiInUse when it is attached
        in the other mode; SrBackendFailure."""
        async with self._one(of.vdi):
            datapath = self.get(of.vdi)
            if datapath is None:
                datapath = await self._start(of)
            elif datapath.of.read_only and not of.read_only:
                raise VdiInUse(of.vdi, "attached read-only")
            await datapath.attach(user)
            return datapath

    async def detach(self, vdi: str, user: str) -> None:
        """End a use; the last one ends the process. Not attached: nothing happens."""
        async with self._one(vdi):
            datapath = self._all.get(vdi)
            if datapath is None:
                return
            if not datapath.daemon.alive or await datapath.detach(user):
                await self._end(datapath)

    def exchanged(self, datapath: Datapath, of: DatapathOf) -> None:
        """The datapath is another VDI's from now on. Its folder keeps its name: a domain may be connected there."""
        self._all.pop(datapath.of.vdi, None)
        datapath.exchanged(of)
        self._all[of.vdi] = datapath

    async def recover(self) -> None:
        """After a restart of the daemon: know all that live again, clear up after those that died."""
        for folder in sorted(self._folder.glob("*")):
            daemon = await StorageDaemon.find(self._reactor, folder, self._timeouts)
            try:
                kept = json.loads((folder / _STATE).read_text())
                of, users = DatapathOf(**kept["of"]), dict(kept["users"])
            except (OSError, ValueError, KeyError, TypeError):
                if daemon is not None:
                    await daemon.end()
                await self._clear(folder)
                continue
            if daemon is None:
                await self._clear(folder)
                continue
            self._all[of.vdi] = Datapath(daemon, of, users)

    def let_go(self) -> None:
        """Stop watching; the processes live on."""
        for datapath in self._all.values():
            datapath.daemon.let_go()
        self._all.clear()

    def alive(self) -> list[str]:
        """The VDIs that have a living datapath."""
        return [vdi for vdi, datapath in self._all.items() if datapath.daemon.alive]

    async def _start(self, of: DatapathOf) -> Datapath:
        folder = self._folder / of.vdi
        await self._clear(folder)
        try:
            await self.image_attach(of.sr, of.vdi)
            daemon = await StorageDaemon.start(self._reactor, folder, self._timeouts)
            datapath = Datapath(daemon, of, {})
            await datapath.build()
        except BaseException as failure:
            await self.image_detach(of.sr, of.vdi)
            if isinstance(failure, (OSError, ConnectionError, TimeoutError, defer.TimeoutError, QMPError)):
                raise SrBackendFailure(f"attaching VDI {of.vdi}", str(failure)) from failure
            raise
        self._all[of.vdi] = datapath
        return datapath

    async def _end(self, datapath: Datapath) -> None:
        self._all.pop(datapath.of.vdi, None)
        await datapath.daemon.end()
        await self._clear(datapath.daemon.folder)
        await self.image_detach(datapath.of.sr, datapath.of.vdi)

    async def _clear(self, folder: Path) -> None:
        """Remove a folder whose process is gone; a view whose process was killed is still mounted."""
        await threads.deferToThread(_unmount_and_remove, folder)

    @asynccontextmanager
    async def _one(self, vdi: str) -> AsyncIterator[None]:
        lock = self._locks.setdefault(vdi, defer.DeferredLock())
        await lock.acquire()
        try:
            yield
        finally:
            lock.release()


def _unmount_and_remove(folder: Path) -> None:
    if not folder.exists():
        return
    if str(folder / _VIEW) in mounts():
        subprocess.run(["fusermount3", "-u", "-z", str(folder / _VIEW)], check=False, capture_output=True, timeout=10)
    shutil.rmtree(folder, ignore_errors=True)


def mounts() -> list[str]:
    """All mount points of this machine."""
    with Path("/proc/self/mounts").open() as table:
        return [line.split()[1].encode().decode("unicode_escape") for line in table]
