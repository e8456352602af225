"""All datapaths of the host: found, started, ended, and started again when they die under a domain."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
from twisted.internet import defer, task, threads
from twisted.logger import Logger

from xapi_migrate.errors import SrBackendFailure, VdiInUse
from xapi_migrate.processes.child import of_this_boot
from xapi_migrate.processes.qmp import QMPError
from xapi_migrate.sm.datapath import (
    COPY,
    DOMAIN,
    TARGET,
    TROUBLE,
    VIEW,
    Datapath,
    DatapathOf,
    Kept,
    can_be_revived,
    read_state,
    save_state,
)
from xapi_migrate.sm.storage_daemon import NBD, StorageDaemon
from xapi_migrate.sm.timeouts import SMTimeouts
from xapi_migrate.together import started


@attrs.frozen
class ImageCalls:
    """What has to be done for an image before it is opened (repeatable), and after the last datapath that used it is
    gone (raises nothing)."""

    attach: Callable[[str], Awaitable[None]]
    detach: Callable[[str], Awaitable[None]]


class Datapaths:
    """All datapaths of the host, by VDI. One that dies while a domain uses it is started again, or, where it has taken
    with it what the domain believes written, is told of as lost."""

    log = Logger()

    def __init__(self, reactor: Any, folder: Path, timeouts: SMTimeouts) -> None:
        self._reactor = reactor
        self._folder = folder
        self._timeouts = timeouts
        self._all: dict[str, Datapath] = {}
        self._images: dict[str, ImageCalls] = {}
        self._locks: dict[str, defer.DeferredLock] = {}
        self._reviving: dict[str, defer.Deferred[None]] = {}
        self._losing: Callable[[str, str], Awaitable[None]] | None = None
        self._lost: list[tuple[Path, str]] = []
        self._flushed: dict[str, defer.Deferred[None]] = {}
        self.waiting: Callable[[str, str], None] = lambda vdi, why: None
        """Called with a VDI and a phrase each time its datapath has died under a domain, or cannot be started in the
        place of one that has; with "" when one has lived for a while."""

    async def when_lost(self, lose: Callable[[str, str], Awaitable[None]]) -> None:
        """`lose(socket, reason)` is called for each datapath that dies and has lost writes of its domain, which is
        connected to this socket; first for those of which an earlier daemon could not tell. To go on with another
        process would be silent corruption: the domain has to be ended."""
        self._losing = lose
        lost, self._lost = self._lost, []
        for folder, reason in lost:
            await lose(str(folder / NBD), reason)
            await self._clear(folder)

    def refused(self, socket: str, why: str) -> None:
        """The disk behind this socket has refused a request of its domain, or ("") takes them again. It may be a flush
        that failed, or may come with one. What was written before may never be on the disk then, and no later flush
        would say so: that disk is lost to its domain."""
        datapath = next((one for one in self._all.values() if str(one.daemon.folder / NBD) == socket), None)
        if datapath is None or not datapath.daemon.alive or not datapath.users.get(DOMAIN):  # then it is the gate
            return
        vdi = datapath.of.vdi
        if not why:
            datapath.doubtful = False
        elif vdi not in self._flushed:
            datapath.doubtful = True
            flushed = self._flushed[vdi] = started(self._check_flushes(datapath))
            flushed.addErrback(lambda failure: failure.trap(defer.CancelledError, SrBackendFailure) and None)
            flushed.addErrback(lambda failure: self.log.failure("a flush of VDI {vdi}", failure, vdi=vdi))
            flushed.addBoth(lambda _: self._flushed.pop(vdi, None) and None)

    async def _check_flushes(self, datapath: Datapath) -> None:
        if await datapath.flush_failed():
            await self._give_up(datapath)
            self._tell_lost(datapath.daemon.folder, _unflushed(datapath.of.vdi))
        else:
            datapath.doubtful = False

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
        await threads.deferToThread(_forget_cached, Path(datapath.of.path))

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
                    self._lost.append((folder, _unflushed(kept.of.vdi) if kept.lost else _died(kept.of.vdi)))
                else:
                    await self._clear(folder)
                continue
            try:
                await self._begin_anew(folder, kept.of, kept.users)
            except (SrBackendFailure, *TROUBLE, OSError):
                self.log.failure("the datapath of VDI {vdi} died and cannot be started again", vdi=kept.of.vdi)
                self._begin_reviving(kept.of.vdi, self._timeouts.revive)

    def let_go(self) -> None:
        """Stop watching; the processes live on."""
        self.rest()
        for datapath in self._all.values():
            datapath.daemon.let_go()
        self._all.clear()

    def rest(self) -> None:
        """Nothing is started or ended by itself any more."""
        for work in (*self._reviving.values(), *self._flushed.values()):
            work.cancel()

    def alive(self) -> list[str]:
        """The VDIs that have a living datapath."""
        return [vdi for vdi, datapath in self._all.items() if datapath.daemon.alive]

    async def _start(self, of: DatapathOf) -> Datapath:
        folder = self._folder / of.vdi
        await self._clear(folder)
        daemon = None
        try:
            await self.image_attach(of.sr, of.vdi)
            daemon = await StorageDaemon.start(self._reactor, folder, self._timeouts)
            datapath = Datapath(daemon, of, {})
            await datapath.build()
        except BaseException as failure:
            if daemon is not None:
                await daemon.end()
            await self._clear(folder)
            await self.image_detach(of.sr, of.vdi)
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
                self._tell_lost(datapath.daemon.folder, _died(vdi))
            return
        if vdi not in self._reviving:
            self.log.warn("the datapath of VDI {vdi} died: its domain waits for another one", vdi=vdi)
            self._begin_reviving(vdi)

    def _tell_lost(self, folder: Path, reason: str) -> None:
        """The folder keeps its name when the disk's image is exchanged: its socket is what the domain knows."""
        if self._losing is None:
            self._lost.append((folder, reason))
            return
        losing = started(self._losing(str(folder / NBD), reason))
        losing.addErrback(lambda failure: self.log.failure("the domain of {folder}", failure, folder=folder))

    def _begin_reviving(self, vdi: str, pause: float = 0.0) -> None:
        reviving = self._reviving[vdi] = started(self._revive(vdi, pause))
        reviving.addErrback(lambda failure: failure.trap(defer.CancelledError) and None)
        reviving.addErrback(
            lambda failure: self.log.failure("the datapath of VDI {vdi} cannot be started again", failure, vdi=vdi)
        )
        reviving.addBoth(lambda _: self._reviving.pop(vdi, None) and None)

    async def _revive(self, vdi: str, pause: float) -> None:
        """Until one lives, or nobody wants one any more. In growing pauses, where the image is gone or each process
        dies soon."""
        why, least, most = "has lost its storage process", self._timeouts.revive, self._timeouts.revive_at_most
        while True:
            self.waiting(vdi, why)
            if pause:
                await task.deferLater(self._reactor, pause)
            pause = min(max(least, 2 * pause), most)
            try:
                async with self._one(vdi):
                    datapath = await self._living(vdi)
            except (SrBackendFailure, *TROUBLE, OSError) as failure:
                why = f"has lost its storage process, and another one cannot be started: {failure}"
                self.log.warn("VDI {vdi} {why}; next attempt in {pause:g} s", vdi=vdi, why=why, pause=pause)
                await self._attach_again(vdi)
                continue
            if datapath is None:
                return
            if await self._lives(datapath):
                self.waiting(vdi, "")
                return
            now = self._all.get(vdi)
            if now is None or not now.can_be_revived():
                return
            why = f"loses its storage process again and again: {datapath.daemon.child.errors() or 'it says nothing'}"
            self.log.warn("VDI {vdi} {why}; next attempt in {pause:g} s", vdi=vdi, why=why, pause=pause)

    async def _attach_again(self, vdi: str) -> None:
        """What its image needs before it is opened may have gone: a session to its storage, for example."""
        datapath = self._all.get(vdi)
        if datapath is None:
            return
        try:
            await self.image_attach(datapath.of.sr, vdi)
        except SrBackendFailure as failure:
            self.log.warn("VDI {vdi}: {failure}", vdi=vdi, failure=failure)
        if vdi not in self._all:  # nobody wants it any more
            await self.image_detach(datapath.of.sr, vdi)

    async def _lives(self, datapath: Datapath) -> bool:
        ended = datapath.daemon.child.ended()
        try:
            await ended.addTimeout(self._timeouts.revived, self._reactor)
        except defer.TimeoutError:
            return True
        return False

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
        if vdi in self._reviving:
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


def _died(vdi: str) -> str:
    return f"the storage process of its disk, VDI {vdi}, died, and with it writes that it had taken"


def _unflushed(vdi: str) -> str:
    return f"a flush of its disk, VDI {vdi}, failed, and writes that the disk had taken may be lost"


def _forget_cached(image: Path) -> None:
    """What the kernel could not write and still shows is not to be read by who opens the image next."""
    try:
        descriptor = os.open(image, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def _unmount_and_remove(folder: Path) -> None:
    if not folder.exists():
        return
    if str(folder / VIEW) in mounts():
        subprocess.run(["fusermount3", "-u", "-z", str(folder / VIEW)], check=False, capture_output=True, timeout=10)
    shutil.rmtree(folder, ignore_errors=True)


def mounts() -> list[str]:
    """All mount points of this machine."""
    with Path("/proc/self/mounts").open() as table:
        return [line.split()[1].encode().decode("unicode_escape") for line in table]
