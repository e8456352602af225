"""What is handed to every SR of this host, and what of it is alive."""

from __future__ import annotations

import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import attrs
from twisted.internet import threads

from xapi_migrate.errors import HandleInvalid, SrBackendFailure
from xapi_migrate.sm.behind import Behind
from xapi_migrate.sm.copier import Copier, folder_name
from xapi_migrate.sm.copy import CANCELLED, Copy
from xapi_migrate.sm.copy_account import CopyOf, has_account, read_copy
from xapi_migrate.sm.datapath_state import COPY, TARGET
from xapi_migrate.sm.datapaths import Datapaths
from xapi_migrate.sm.flushing import Flushing
from xapi_migrate.sm.interfaces import CopyState, CopyStatus
from xapi_migrate.sm.iscsi_target import ISCSIService
from xapi_migrate.sm.mounts import mounts
from xapi_migrate.sm.nbd_target import NBDService
from xapi_migrate.sm.timeouts import SMTimeouts


@attrs.frozen
class Alive:
    """Everything of ours that runs or is mounted: VDIs with a datapath, refs of copies with a copier, iSCSI target
    names and portals of encrypted disks, mount points, pid of tgtd (0: none)."""

    datapaths: tuple[str, ...]
    copiers: tuple[str, ...]
    targets: tuple[str, ...]
    mounts: tuple[str, ...]
    tgtd: int

    @property
    def nothing(self) -> bool:
        return not (self.datapaths or self.copiers or self.targets or self.mounts or self.tgtd)


class Copies:
    """All copies of the host by the task's ref."""

    def __init__(self, reactor: Any, folder: Path, datapaths: Datapaths, timeouts: SMTimeouts, behind: Behind) -> None:
        self._reactor = reactor
        self._folder = folder
        self._datapaths = datapaths
        self._timeouts = timeouts
        self._behind = behind
        self._all: dict[str, Copy] = {}

    def new(self, of: CopyOf) -> Copy:
        """A copy that has not begun."""
        folder, release = self._folder / folder_name(of.ref), self._releasing(of.vdi)
        copy = Copy(self._reactor, folder, of, self._timeouts, self._behind, release)
        self._all[of.ref] = copy
        return copy

    def get(self, ref: str) -> Copy:
        """HandleInvalid."""
        if ref not in self._all:
            raise HandleInvalid("task", ref)
        return self._all[ref]

    def of_vdi(self, vdi: str) -> Copy | None:
        """The copy that runs from this VDI."""
        return next((copy for copy in self._all.values() if copy.of.vdi == vdi and not copy.over), None)

    async def tidied(self, vdi: str) -> None:
        """Fires when the copies from this VDI that are over have let go of it."""
        for copy in list(self._all.values()):
            if copy.of.vdi == vdi:
                await copy.tidied()

    async def forget(self, ref: str) -> None:
        """End it and remove all traces. Unknown: nothing happens."""
        copy = self._all.get(ref)
        if copy is not None:
            await copy.cancel()
            self._all.pop(ref, None)
            await threads.deferToThread(shutil.rmtree, copy.folder, ignore_errors=True)

    async def recover(self) -> None:
        """After a restart of the daemon, the datapaths being known again."""
        for folder in sorted(self._folder.glob("*")):
            kept = read_copy(folder)
            if kept is None:
                if not has_account(folder):  # it was being forgotten: that goes first
                    await Copier(self._reactor, folder, "", self._timeouts).end()
                    await threads.deferToThread(shutil.rmtree, folder, ignore_errors=True)
                continue
            copy, datapath = self.new(kept.of), self._datapaths.get(kept.of.vdi)
            used = datapath if datapath is not None and COPY in datapath.users else None
            copy.status = kept.status
            if not copy.over and used and kept.url and await copy.has_begun(used, kept):
                await copy.resume(used, kept.url)
                continue
            if not copy.over:
                died = "its datapath died while the daemon was down"
                copy.end_at_once(CopyStatus(CopyState.FAILED, error=CANCELLED if used and kept.url else died))
            await (copy.tidy(used) if used else copy.copier.end())
            if copy.status.error == CANCELLED:  # by the end of the daemon: who wants it still asks for it again
                await self.forget(kept.of.ref)
        for vdi in self._datapaths.alive():
            if self.of_vdi(vdi) is None:
                await self._datapaths.detach(vdi, COPY)

    def let_go(self) -> None:
        """Stop following; everything lives on."""
        for copy in self._all.values():
            copy.let_go()

    def alive(self) -> list[str]:
        """The refs of copies whose copier runs."""
        return [ref for ref, copy in self._all.items() if copy.copier.alive]

    def all(self) -> list[Copy]:
        return list(self._all.values())

    def _releasing(self, vdi: str) -> Callable[[], Awaitable[None]]:
        async def release() -> None:
            await self._datapaths.detach(vdi, COPY)

        return release


class SMServices:
    """`state_dir` holds datapaths/, copiers/, tgt/ and nbd/. `iscsi_port` 0: a free one."""

    def __init__(self, reactor: Any, state_dir: Path, timeouts: SMTimeouts | None = None, iscsi_port: int = 0) -> None:
        self.reactor = reactor
        self.state_dir = state_dir.absolute()
        self.timeouts = timeouts or SMTimeouts()
        self.behind = Behind(reactor)
        self.datapaths = Datapaths(reactor, self.state_dir / "datapaths", self.timeouts)
        self.copies = Copies(reactor, self.state_dir / "copiers", self.datapaths, self.timeouts, self.behind)
        self.iscsi = ISCSIService(reactor, self.state_dir / "tgt", self.timeouts, iscsi_port)
        self.nbd = NBDService(reactor, self.state_dir / "nbd", self.timeouts)
        self.flushing = Flushing(reactor, self.timeouts.flush)

    async def recover(self) -> None:
        """Once, at start of the daemon: find what an earlier one left running."""
        await self.datapaths.recover()
        await self.copies.recover()
        await self.iscsi.recover()
        # An earlier daemon may have closed a LUN and not come to tidy up.
        await self.iscsi.tidy_all()
        await self.nbd.recover()
        served = self.iscsi.served() | self.nbd.served()
        for vdi in self.datapaths.alive():
            datapath = self.datapaths.get(vdi)
            if datapath is not None and TARGET in datapath.users and vdi not in served:
                await self.datapaths.detach(vdi, TARGET)

    def let_go(self) -> None:
        """At the end of the daemon: everything lives on."""
        self.behind.let_go()
        self.flushing.let_go()
        self.copies.let_go()
        self.datapaths.let_go()
        self.iscsi.let_go()
        self.nbd.let_go()

    async def stop(self) -> None:
        """End everything that is alive, copies first. For the administrator and for tests."""
        self.datapaths.rest()
        self.flushing.let_go()
        await self.behind.all_done()
        for copy in self.copies.all():
            await self.copies.forget(copy.of.ref)
        await self.iscsi.stop()
        await self.nbd.stop()
        for vdi in self.datapaths.alive():
            datapath = self.datapaths.get(vdi)
            for user in list(datapath.users) if datapath else ():
                try:
                    await self.datapaths.detach(vdi, user)
                except SrBackendFailure:
                    assert datapath is not None
                    await datapath.daemon.end()

    def alive(self) -> Alive:
        """What of ours runs or is mounted now."""
        ours = [point for point in mounts() if point.startswith(f"{self.state_dir}/")]
        return Alive(
            tuple(self.datapaths.alive()),
            tuple(self.copies.alive()),
            (*self.iscsi.targets(), *self.nbd.portals()),
            tuple(ours),
            self.iscsi.pid,
        )
