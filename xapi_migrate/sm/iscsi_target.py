"""The iSCSI side of the receiving host: a target per migration, a LUN per disk, an account that dies with it."""

from __future__ import annotations

import json
import secrets
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import attrs
from twisted.internet import defer, task
from twisted.logger import Logger

from xapi_migrate.errors import SrBackendFailure
from xapi_migrate.sm.addresses import bracketed
from xapi_migrate.sm.interfaces import TargetUrl
from xapi_migrate.sm.tgt_ipc import Mode, Op, TgtError
from xapi_migrate.sm.tgt_process import TgtProcess, free_port
from xapi_migrate.sm.timeouts import SMTimeouts
from xapi_migrate.whole_file import write_whole

_STATE = "state.json"
_PREFIX = "iqn.2011-10.org.xapi-migrate:"
_T = TypeVar("_T")


def migration_id(migration: str) -> str:
    """The uuid that stands for a migration in names on disk and on the wire; says nothing of its secrets."""
    return str(uuid.uuid5(uuid.NAMESPACE_OID, migration))


@attrs.define
class _Target:
    tid: int
    username: str
    password: str = attrs.field(repr=False)
    luns: dict[str, int] = attrs.Factory(dict)
    """LUN by VDI."""
    made: bool = False

    def iqn(self, name: str) -> str:
        return _PREFIX + name


@attrs.define
class _State:
    port: int
    targets: dict[str, _Target] = attrs.Factory(dict)
    """By migration_id."""


class ISCSIService:
    """`port` 0: a free one is picked and kept as long as tgtd lives."""

    log = Logger()

    def __init__(self, reactor: Any, folder: Path, timeouts: SMTimeouts, port: int = 0) -> None:
        self._reactor = reactor
        self._folder = folder
        self._timeouts = timeouts
        self._port = port
        self._tgt = TgtProcess(reactor, folder, timeouts)
        self._lock = defer.DeferredLock()
        self._state = _State(port)

    async def recover(self) -> bool:
        """After a restart of the daemon: know again what a living tgtd serves. False: no tgtd, no targets."""
        self._state = _State(self._port)
        if not self._tgt.find():
            (self._folder / _STATE).unlink(missing_ok=True)
            return False
        try:
            kept = json.loads((self._folder / _STATE).read_text())
            self._state = _State(kept["port"], {name: _Target(**target) for name, target in kept["targets"].items()})
        except (OSError, ValueError, TypeError, KeyError):
            await self._tgt.kill()  # nobody knows what it serves
            return False
        return True

    async def add_lun(
        self,
        migration: str,
        vdi: str,
        path: Path,
        address: str,
        *,
        scsi_id: str,
        read_only: bool = False,
    ) -> TargetUrl:
        """Serve the file at `path`, whose holes read as zeroes, as a LUN of the migration's target at the local
        `address`. Repeatable. SrBackendFailure."""
        return await self._locked(
            lambda: self._add_lun(migration_id(migration), vdi, path, address, scsi_id, read_only)
        )

    async def remove_lun(self, migration: str, vdi: str) -> bool:
        """Take a LUN away; when this fires no command is in flight and none can come. The last one takes target,
        sessions and account with it, the last target tgtd. False if there was no such LUN."""
        removed = await self.close_lun(migration, vdi)
        await self.tidy(migration)
        return removed

    async def close_lun(self, migration: str, vdi: str) -> bool:
        """The first half of `remove_lun`: what the receiver has to wait for before it activates the VDI."""
        return await self._locked(lambda: self._close_lun(migration_id(migration), vdi))

    async def tidy(self, migration: str) -> None:
        """The second half: a target without LUNs goes, with its account."""
        await self._locked(lambda: self._tidy(migration_id(migration)))

    async def tidy_all(self) -> None:
        """`tidy` for every target."""
        for name in list(self._state.targets):
            await self._locked(lambda name=name: self._tidy(name))  # type: ignore[misc]

    def served(self) -> set[str]:
        """All VDIs that are LUNs."""
        return {vdi for target in self._state.targets.values() for vdi in target.luns}

    def by_migration(self) -> dict[str, list[str]]:
        """The VDIs that are LUNs, by migration_id."""
        return {name: list(target.luns) for name, target in self._state.targets.items()}

    async def drop(self, name: str) -> None:
        """Take away all that is served under this migration_id."""
        for vdi in self.by_migration().get(name, []):
            await self._locked(lambda vdi=vdi: self._close_lun(name, vdi))  # type: ignore[misc]
        await self._locked(lambda: self._tidy(name))

    async def stop(self) -> None:
        """End tgtd, whatever it serves."""
        await self._locked(self._stop)
        for dummy in self._folder.glob("dummy-*"):
            dummy.unlink(missing_ok=True)

    def let_go(self) -> None:
        """Stop watching; tgtd lives on."""
        self._tgt.let_go()

    def serves(self, migration: str, vdi: str) -> bool:
        """Whether this VDI is a LUN of this migration, and tgtd lives."""
        return self._tgt.alive and vdi in self.vdis(migration)

    def vdis(self, migration: str) -> list[str]:
        """The VDIs that are LUNs of this migration."""
        target = self._state.targets.get(migration_id(migration))
        return list(target.luns) if target else []

    @property
    def alive(self) -> bool:
        return self._tgt.alive

    @property
    def pid(self) -> int:
        """tgtd's, 0 when it does not run."""
        return self._tgt.child.pid if self._tgt.child is not None and self._tgt.alive else 0

    def targets(self) -> list[str]:
        """The names of all targets."""
        return [target.iqn(name) for name, target in self._state.targets.items()]

    async def sessions(self, migration: str) -> list[tuple[int, int]]:
        """The sessions at a migration's target: (session, connection) numbers."""
        target = self._state.targets.get(migration_id(migration))
        return await self._sessions(target.tid) if target and self._tgt.alive else []

    # -- under the lock

    async def _locked(self, work: Callable[[], Awaitable[_T]]) -> _T:
        await self._lock.acquire()
        try:
            return await work()
        finally:
            self._lock.release()

    async def _add_lun(self, name: str, vdi: str, path: Path, address: str, scsi_id: str, read_only: bool) -> TargetUrl:
        try:
            await self._listen(address)
            target = self._state.targets.get(name) or self._new_target(name)
            if not target.made:
                await self._make_target(name, target)
            if vdi not in target.luns:
                await self._make_lun(target, vdi, path, scsi_id, read_only)
        except (TgtError, OSError) as failure:
            begun = self._state.targets.get(name)
            if begun is not None and not begun.luns:
                await self._remove_target(name, begun)
            elif not self._state.targets:
                await self._stop()
            raise SrBackendFailure(f"exporting VDI {vdi}", str(failure)) from failure
        url = f"iscsi://{bracketed(address)}:{self._state.port}/{target.iqn(name)}/{target.luns[vdi]}"
        return TargetUrl(url, target.username, target.password)

    async def _listen(self, address: str) -> None:
        if not self._tgt.alive:
            self._state = _State(self._port or free_port(address))
            await self._tgt.start(address, self._state.port)
            self._save()
        else:
            await self._tgt.open_portal(address, self._state.port)

    def _new_target(self, name: str) -> _Target:
        taken = {target.tid for target in self._state.targets.values()}
        tid = next(number for number in range(1, 65536) if number not in taken)
        target = _Target(tid, f"migration-{name}", secrets.token_urlsafe(32))
        self._state.targets[name] = target
        self._save()  # recorded before it exists, so that a restart finds what to remove
        return target

    async def _make_target(self, name: str, target: _Target) -> None:
        tid = target.tid
        await self._tgt.ask(Mode.TARGET, Op.NEW, tid=tid, text=f"targetname={target.iqn(name)}", what="make a target")
        await self._tgt.ask(Mode.TARGET, Op.UPDATE, tid=tid, text="MaxRecvDataSegmentLength=262144", what="tune it")
        account = f"user={target.username},password={target.password}"
        await self._tgt.ask(Mode.ACCOUNT, Op.NEW, text=account, what="make an account")
        await self._tgt.ask(Mode.ACCOUNT, Op.BIND, tid=tid, text=f"user={target.username}", what="bind the account")
        await self._tgt.ask(Mode.TARGET, Op.BIND, tid=tid, text="initiator-address=ALL", what="open the target")
        target.made = True
        self._save()

    async def _make_lun(self, target: _Target, vdi: str, path: Path, scsi_id: str, read_only: bool) -> None:
        lun = max(target.luns.values(), default=0) + 1
        if "," in str(path):
            raise SrBackendFailure(f"exporting VDI {vdi}", f"tgtd cannot serve a path with a comma: {path}")
        backing = f"path={path},bstype=rdwr,blocksize=512"
        await self._tgt.ask(Mode.DEVICE, Op.NEW, tid=target.tid, lun=lun, text=backing, what=f"open {path}")
        identity = f"vendor_id=XAPIMIG,product_id=VDI,scsi_id={scsi_id},scsi_sn={vdi},thin_provisioning=1,"
        identity += "readonly=1," if read_only else ""
        try:
            await self._tgt.ask(
                Mode.DEVICE, Op.UPDATE, tid=target.tid, lun=lun, text=f"targetOps {identity}", what="name a LUN"
            )
        except TgtError:
            await self._tgt.ask(Mode.DEVICE, Op.DELETE, tid=target.tid, lun=lun, what="remove a LUN")
            raise
        target.luns[vdi] = lun
        self._save()

    async def _close_lun(self, name: str, vdi: str) -> bool:
        target = self._state.targets.get(name)
        if target is None or vdi not in target.luns:
            return False
        if self._tgt.alive:
            try:
                await self._delete_lun(target.tid, target.luns[vdi], last=len(target.luns) == 1)
            except TgtError as failure:
                raise SrBackendFailure(f"closing the LUN of VDI {vdi}", str(failure)) from failure
        del target.luns[vdi]
        self._save_less()
        return True

    async def _tidy(self, name: str) -> None:
        target = self._state.targets.get(name)
        if target is not None and not target.luns:
            await self._remove_target(name, target)

    async def _delete_lun(self, tid: int, lun: int, last: bool) -> None:
        """tgtd refuses while a command is in flight, so success means that there is none. Commands have their time to
        end, except when this is the last LUN: then nobody needs the sessions any more."""
        deadline = self._reactor.seconds() + (0 if last else self._timeouts.close_lun)
        cut = False
        while True:
            try:
                await self._tgt.ask(Mode.DEVICE, Op.DELETE, tid=tid, lun=lun, what="close a LUN in use")
                return
            except TgtError as failure:
                if failure.number in (4, 5):  # no such target or LUN
                    return
                if self._reactor.seconds() > deadline:
                    if cut:
                        raise
                    await self._cut_sessions(tid)
                    deadline, cut = deadline + self._timeouts.close_lun, True
            await task.deferLater(self._reactor, 0.02)

    async def _sessions(self, tid: int) -> list[tuple[int, int]]:
        found, session = [], 0
        for line in (await self._tgt.ask(Mode.CONNECTION, Op.SHOW, tid=tid, what="list sessions")).splitlines():
            key, _, value = line.strip().partition(": ")
            if key == "Session":
                session = int(value)
            elif key == "Connection":
                found.append((session, int(value)))
        return found

    async def _cut_sessions(self, tid: int) -> None:
        try:
            for session, connection in await self._sessions(tid):
                await self._tgt.ask(
                    Mode.CONNECTION, Op.DELETE, tid=tid, sid=session, cid=connection, what="cut a session"
                )
        except TgtError as failure:
            if failure.number not in (4, 6, 7):  # it went by itself
                raise

    async def _remove_target(self, name: str, target: _Target) -> None:
        if self._tgt.alive:
            await self._delete(target, Mode.TARGET, tid=target.tid, force=True)
            await self._delete(target, Mode.ACCOUNT, text=f"user={target.username}")
        del self._state.targets[name]
        if self._state.targets:
            self._save_less()
        else:
            await self._stop()

    async def _delete(self, target: _Target, mode: Mode, **arguments: Any) -> None:
        """Remove a target or its account. An initiator that goes on sending makes tgtd refuse: its sessions are
        cut, which it may answer with new ones, so that is repeated."""
        deadline = self._reactor.seconds() + self._timeouts.close_lun
        while True:
            try:
                await self._tgt.ask(mode, Op.DELETE, what="remove a target or its account", **arguments)
                return
            except TgtError as failure:
                if failure.number in (4, 15):  # gone already
                    return
                if self._reactor.seconds() > deadline:
                    raise SrBackendFailure("the iSCSI target", str(failure)) from failure
            await self._cut_sessions(target.tid)
            await task.deferLater(self._reactor, 0.02)

    async def _stop(self) -> None:
        self._tgt.find()
        await self._tgt.kill()
        self._state = _State(self._port)
        for leftover in (_STATE, "tgt.sock.0", "tgt.sock.0.lock", "process.json", "stdout", "stderr"):
            (self._folder / leftover).unlink(missing_ok=True)

    def _save_less(self) -> None:
        """Something is served no more. Where there is no room to write that down it is gone all the same: whoever finds
        it in an old record, and removes it again, is told by tgtd that it is not there."""
        try:
            self._save()
        except OSError as failure:
            self.log.warn("What tgtd serves cannot be written down: {why}", why=failure)

    def _save(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_whole(self._folder / _STATE, json.dumps(attrs.asdict(self._state)), durable=False)
