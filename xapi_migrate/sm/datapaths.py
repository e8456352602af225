"""All datapaths of the host: found, started, ended, and started again when they die under a domain."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from twisted.internet import defer, threads
from twisted.logger import Logger

from xapi_migrate.errors import SrBackendFailure, VdiInUse
from xapi_migrate.processes.child import of_this_boot
from xapi_migrate.processes.qmp import QMPError
from xapi_migrate.sm.datapath import TROUBLE, Datapath
from xapi_migrate.sm.datapath_state import (
    COPY,
    DOMAIN,
    TARGET,
    DatapathOf,
    Kept,
    can_be_revived,
    read_state,
    save_state,
)
from xapi_migrate.sm.images import Images
from xapi_migrate.sm.lost_writes import LostWrites
from xapi_migrate.sm.mounts import forget_cached, unmount_and_remove
from xapi_migrate.sm.reviving import Reviving
from xapi_migrate.sm.storage_daemon import NBD, StorageDaemon
from xapi_migrate.sm.timeouts import SMTimeouts


class Datapaths:
    """All datapaths of the host, by VDI. One that dies while a domain uses it is started again, or, where it has taken
    with it what the domain believes written, is told of as lost."""

    log = Logger()

    def __init__(self, reactor: Any, folder: Path, timeouts: SMTimeouts) -> None:
        self._reactor = reactor
        self._folder = folder
        self._timeouts = timeouts
        self._all: dict[str, Datapath] = {}
        self._locks: dict[str, defer.DeferredLock] = {}
        self._lost = LostWrites(self._give_up)
        self.images = Images()
        self.reviving = Reviving(reactor, timeouts, self.images, self._all.get, self._living_in_turn)

    async def when_lost(self, lose: Callable[[str, str], Awaitable[None]]) -> None:
        """`lose(socket, reason)` is called for each datapath that dies and has lost writes of its domain, which is
        connected to this socket; first for those of which an earlier daemon could not tell. To go on with another
        process would be silent corruption: the domain has to be ended."""
        for folder in await self._lost.when(lose):
            await self._clear(folder)

    def refused(self, socket: str, why: str) -> None:
        """The disk behind this socket has refused a request of its domain, or ("") takes them again. After a flush that
        failed it is lost to its domain."""
        datapath = next((one for one in self._all.values() if str(one.daemon.folder / NBD) == socket), None)
        if datapath is None or not datapath.daemon.alive or not datapath.users.get(DOMAIN):  # then it is the gate
            return
        if why:
            self._lost.doubt(datapath)
        else:
            datapath.doubtful = False

    def get(self, vdi: str) -> Datapath | None:
        """The VDI's datapath if it has one that lives."""
        datapath = self._all.get(vdi)
        return datapath if datapath is not None and datapath.daemon.alive else None

    def of_sr(self, sr: str) -> list[str]:
        """The VDIs of this SR that are attached."""
        return [vdi for vdi, datapath in self._all.items() if datapath.of.sr == sr and datapath.daemon.alive]

    async def attach(self, of: DatapathOf, user: str) -> Datapath:
        """The VDI's datapath, started if there is none, with one more user. VdiInUse when it is attached
        in the other mode; SrBackendFailure."""
        async with self._one(of.vdi):
            datapath = await self._living(of.vdi)
            if datapath is None:
                datapath = await self._start(of)
            elif datapath.of.read_only and not of.read_only and user != COPY:  # a copy reads only
                raise VdiInUse(of.vdi, "attached read-only")
            await datapath.attach(user)
            return datapath

    async def detach(self, vdi: str, user: str) -> None:
        """End a use; the last one ends the process. Not attached: nothing happens."""
        async with self._one(vdi):
            datapath = self._all.get(vdi)
            if datapath is None:
                return
            if datapath.daemon.alive:
                try:
                    if await datapath.detach(user):
                        await self._end(datapath)
                    return
                except SrBackendFailure:
                    if datapath.daemon.alive:
                        if user != DOMAIN or datapath.users.keys() != {DOMAIN}:
                            raise
                        await self._give_up(datapath)  # the domain is gone
            datapath.users.pop(user, None)
            if not datapath.can_be_revived():
                await self._end(datapath)

    async def _give_up(self, datapath: Datapath) -> None:
        """End the process of one whose image cannot be flushed, and nobody waits for that any more."""
        self.log.warn("VDI {vdi} cannot be flushed: the last writes of its domain may be lost", vdi=datapath.of.vdi)
        datapath.lost = True
        await datapath.daemon.end()
        await threads.deferToThread(forget_cached, Path(datapath.of.path))

    def exchanged(self, datapath: Datapath, of: DatapathOf) -> None:
        """The datapath is another VDI's from now on. Its folder keeps its name: a domain may be connected there."""
        self._all.pop(datapath.of.vdi, None)
        datapath.exchanged(of)
        self._all[of.vdi] = datapath

    async def recover(self) -> None:
        """After a restart of the daemon: know all that live again, revive those with a domain, clear up after the
        others that died."""
        for folder in sorted(self._folder.glob("*")):
            this_boot = of_this_boot(folder)
            daemon = await StorageDaemon.find(self._reactor, folder, self._timeouts)
            kept = read_state(folder)
            if kept is None:
                if daemon is not None:
                    await daemon.end()
                await self._clear(folder)
                continue
            if daemon is not None and not kept.dying and not kept.lost:
                self._keep(Datapath(daemon, kept.of, kept.users, kept.closed))
                continue
            if daemon is not None:
                await daemon.end()
            revivable = not kept.lost and can_be_revived(kept.of, kept.users, kept.closed)
            if not (this_boot or daemon) or not revivable:
                if this_boot and DOMAIN in kept.users:
                    (self._lost.unflushed if kept.lost else self._lost.died)(folder, kept.of.vdi)
                else:
                    await self._clear(folder)
                continue
            try:
                await self._begin_anew(folder, kept.of, kept.users)
            except (SrBackendFailure, *TROUBLE, OSError):
                self.log.failure("the datapath of VDI {vdi} died and cannot be started again", vdi=kept.of.vdi)
                self.reviving.begin(kept.of.vdi, at_once=False)

    def let_go(self) -> None:
        """Stop watching; the processes live on."""
        self.rest()
        for datapath in self._all.values():
            datapath.daemon.let_go()
        self._all.clear()

    def rest(self) -> None:
        """Nothing is started or ended by itself any more."""
        self.reviving.rest()
        self._lost.rest()

    def alive(self) -> list[str]:
        """The VDIs that have a living datapath."""
        return [vdi for vdi, datapath in self._all.items() if datapath.daemon.alive]

    async def _start(self, of: DatapathOf) -> Datapath:
        folder = self._folder / of.vdi
        await self._clear(folder)
        daemon = None
        try:
            await self.images.attach(of.sr, of.vdi)
            daemon = await StorageDaemon.start(self._reactor, folder, self._timeouts)
            datapath = Datapath(daemon, of, {})
            await datapath.build()
        except BaseException as failure:
            if daemon is not None:
                await daemon.end()
            await self._clear(folder)
            await self.images.detach(of.sr, of.vdi)
            if isinstance(failure, (OSError, ConnectionError, TimeoutError, defer.TimeoutError, QMPError)):
                raise SrBackendFailure(f"attaching VDI {of.vdi}", str(failure)) from failure
            raise
        self._keep(datapath)
        return datapath

    def _keep(self, datapath: Datapath) -> None:
        """Know it, and look after it."""
        self._all[datapath.of.vdi] = datapath
        datapath.daemon.child.ended().addCallback(lambda _: self._died(datapath))

    def _died(self, datapath: Datapath) -> None:
        vdi = datapath.of.vdi
        if self._all.get(vdi) is not datapath:
            return
        if not datapath.can_be_revived():
            if DOMAIN in datapath.users and not datapath.lost:
                self._lost.died(datapath.daemon.folder, vdi)
            return
        if vdi not in self.reviving:
            self.log.warn("the datapath of VDI {vdi} died: its domain waits for another one", vdi=vdi)
            self.reviving.begin(vdi)

    async def _living_in_turn(self, vdi: str) -> Datapath | None:
        async with self._one(vdi):
            return await self._living(vdi)

    async def _living(self, vdi: str) -> Datapath | None:
        """The VDI's datapath; one that has died under a domain is started again. In its turn."""
        datapath = self._all.get(vdi)
        if datapath is None or datapath.daemon.alive:
            return datapath
        if not datapath.can_be_revived():
            return None
        return await self._begin_anew(datapath.daemon.folder, datapath.of, datapath.users)

    async def _begin_anew(self, folder: Path, of: DatapathOf, users: dict[str, bool]) -> Datapath:
        """A process in the place of one that died; who was connected to its socket comes back by itself. A copy does
        not go on."""
        wanted = {user: active for user, active in users.items() if user in (DOMAIN, TARGET)}
        closed = not any(wanted.values())  # then it is not opened here
        save_state(folder, Kept(of, wanted, closed, dying=True))
        daemon = await StorageDaemon.start(self._reactor, folder, self._timeouts)
        again = Datapath(daemon, of, dict.fromkeys(wanted, False))
        try:
            await again.rebuild(wanted)
        except BaseException:
            await daemon.end()
            save_state(folder, Kept(of, wanted, closed, dying=True))
            again.users, again.closed = wanted, closed
            self._all[of.vdi] = again  # known, though dead: its domain waits for another one
            raise
        self._keep(again)
        return again

    async def revived(self, vdi: str) -> None:
        """Fires when nothing is being started, at this moment, in the place of a datapath that died."""
        if vdi in self.reviving:
            async with self._one(vdi):
                pass

    async def deactivate_dead(self, vdi: str, user: str) -> None:
        """What will be started in the place of a datapath that died does not open the image for this user."""
        async with self._one(vdi):
            datapath = self._all.get(vdi)
            if datapath is None or user not in datapath.users:
                return
            if datapath.daemon.alive:
                await datapath.deactivate(user)
                return
            datapath.users[user] = False
            kept = Kept(datapath.of, datapath.users, datapath.closed, dying=True, lost=datapath.lost)
            save_state(datapath.daemon.folder, kept)

    async def _end(self, datapath: Datapath) -> None:
        self._all.pop(datapath.of.vdi, None)
        await datapath.daemon.end()
        await self._clear(datapath.daemon.folder)
        await self.images.detach(datapath.of.sr, datapath.of.vdi)

    async def _clear(self, folder: Path) -> None:
        """Remove a folder whose process is gone; a view whose process was killed is still mounted."""
        await threads.deferToThread(unmount_and_remove, folder)

    @asynccontextmanager
    async def _one(self, vdi: str) -> AsyncIterator[None]:
        lock = self._locks.setdefault(vdi, defer.DeferredLock())
        await lock.acquire()
        try:
            yield
        finally:
            lock.release()
