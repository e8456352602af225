"""The datapath of one attached VDI: one qemu-storage-daemon through which everybody reaches the image.

Users are named: "domain" (NBD on a unix socket, behind the gate), "target" (a raw view for tgtd), "copy" (a running
VDI.copy, which reads) and "move" (its image is being exchanged for that of another VDI). Each attaches, activates,
deactivates and detaches by its own name; the image is open while one of them is active, the process lives while one of
them is attached. All of it is kept in the process itself and in `state.json`, so that a restarted daemon goes on where
it was.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from twisted.internet import defer, threads
from twisted.internet.error import ConnectionDone, ConnectionLost

from xapi_migrate.errors import SrBackendFailure, VdiInUse
from xapi_migrate.processes.qmp import QMPError
from xapi_migrate.sm.datapath_state import COPY, DOMAIN, MOVE, TARGET, DatapathOf, Kept, can_be_revived, save_state
from xapi_migrate.sm.gate import Gate, ImageNodes, Position
from xapi_migrate.sm.interfaces import Attachment
from xapi_migrate.sm.mounts import VIEW
from xapi_migrate.sm.storage_daemon import NBD, StorageDaemon

TROUBLE = (QMPError, TimeoutError, defer.TimeoutError, ConnectionDone, ConnectionLost)
EXPORT = "disk"
"""The name of the NBD export."""


class Datapath:
    """Made by `Datapaths`. Calls of several users are put in order."""

    def __init__(
        self, daemon: StorageDaemon, of: DatapathOf, users: dict[str, bool], closed: bool = True, lost: bool = False
    ) -> None:
        self.daemon = daemon
        self.of = of
        self.users = users
        """user -> whether active"""
        self.closed = closed
        """The image is closed for certain: the process has nothing of it in memory."""
        self.lost = lost
        """Writes that it had taken may be lost, for a flush has failed."""
        self.doubtful = False
        """It has refused a request, and whether a flush has failed is being found out."""
        self.gate = Gate(daemon, of.vdi, of.location, of.virtual_size, of.read_only, of.turn)
        self._lock = defer.DeferredLock()

    @property
    def attachment(self) -> Attachment:
        return Attachment(str(self.daemon.folder / NBD), EXPORT, self.of.virtual_size)

    @property
    def view(self) -> Path:
        """The file that shows the disk's bytes as they are, for tgtd."""
        return Path(self.of.path) if self.of.is_its_file else self.daemon.folder / VIEW

    async def build(self) -> None:
        """The nodes of a new process."""
        await self.gate.build()
        await self.daemon.serve_nbd()
        self.save()

    async def rebuild(self, users: dict[str, bool]) -> None:
        """The nodes of a process that takes the place of one that died, and its users as they were. Clients are let in
        last: their requests must not find the gate shut."""
        async with self._order("attach"):
            await self.gate.build()
            self.users = dict(users)
            await self._settle()
            await self.daemon.serve_nbd()
            await self._export()
            self.save()

    async def attach(self, user: str) -> None:
        """Begin to use it, inactive."""
        async with self._order("attach"):
            if user == DOMAIN:
                await self._export()
            self.users.setdefault(user, False)
            self.save()

    async def _export(self) -> None:
        if DOMAIN in await self.daemon.exports():
            return
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

    def can_be_revived(self) -> bool:
        """See the function."""
        doubt = self.lost or self.doubtful
        return not doubt and can_be_revived(self.of, self.users, self.closed)

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
        except TROUBLE as failure:
            raise SrBackendFailure(f"VDI {self.of.vdi} (slow down)", str(failure)) from failure

    async def drop_brake(self) -> None:
        """After the copy: the domain is as fast as before. Repeatable, also after a restart of the daemon."""
        async with self._order("slow down no longer"):
            await self.gate.drop_brake(bool(self.users.get(DOMAIN)))

    async def flush_failed(self) -> bool:
        """Whether a flush has failed, after which none will succeed; `lost` then says so. SrBackendFailure."""
        async with self._order("flush"):
            if await self.gate.flush_fails():
                self.lost = True
                self.save()
            return self.lost

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
        self.closed = self.closed and not active
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
            self.closed = True

    async def _close_what_failed(self) -> None:
        try:
            await self._settle()
        except (SrBackendFailure, *TROUBLE):
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
        except TROUBLE as failure:
            reason = str(failure) if self.daemon.alive else f"its datapath died {self.daemon.child.errors()}"
            raise SrBackendFailure(f"VDI {self.of.vdi} ({what})", reason) from failure
        finally:
            self._lock.release()

    def save(self) -> None:
        save_state(self.daemon.folder, Kept(self.of, self.users, self.closed, lost=self.lost))
