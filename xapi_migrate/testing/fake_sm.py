"""Storage in memory: an ISR for simulations of two hosts in one process. It passes the same contract as the real one.

    luns = FakeLuns()
    ours, theirs = FakeSR(clock, luns), FakeSR(clock, luns)              # two hosts, nothing shared
    shared = FakeStorage(); FakeSR(clock, luns, shared), FakeSR(clock, luns, shared)    # one SR, two hosts

Copies move with the clock. `fail`, `stalled` and `break_copy` make things go wrong; `calls` lists what was asked.
"""

from __future__ import annotations

import os
import secrets
import uuid as uuids
from pathlib import Path

import attrs
from twisted.internet.interfaces import IReactorTime
from zope.interface import implementer

from xapi_migrate.errors import (
    CopyFailed,
    HandleInvalid,
    InvalidValue,
    MigrateError,
    SrBackendFailure,
    SrFull,
    SrNotAttached,
    VdiInUse,
    VdiMissing,
)
from xapi_migrate.sm.interfaces import (
    ISR,
    Attachment,
    CopyState,
    CopyStatus,
    IShowsImages,
    Purpose,
    SameDiskProof,
    SRStat,
    TargetUrl,
    VDIInfo,
    seen_name,
)

BLOCK = 4096


@attrs.define(eq=False)
class FakeStorage:
    """The disks themselves; hand one to two FakeSRs and they see the same storage."""

    uuid: str = attrs.Factory(lambda: str(uuids.uuid4()))
    size: int = 1 << 30
    thin: bool = False
    """A disk takes up its blocks that are not zero, and no more."""
    disks: dict[str, bytearray] = attrs.Factory(dict)
    nonces: dict[str, str] = attrs.Factory(dict)
    writers: dict[str, object] = attrs.Factory(dict)
    """The SR object (so: the host) that has a VDI open for its domain; a second one is refused, as by a lock."""


@attrs.define(eq=False)
class _Lun:
    vdi: str
    ids: str
    disk: bytearray | None
    password: str
    open: bool = True


@attrs.define(eq=False)
class FakeLuns:
    """All iSCSI targets of a simulated world. `unreachable`: the addresses that nobody can reach, or "" for all."""

    luns: dict[str, _Lun] = attrs.Factory(dict)
    unreachable: str | None = None

    def reaches(self, url: str) -> bool:
        return self.unreachable is None or f"//{self.unreachable}" not in url


@attrs.define(eq=False)
class _Copy:
    vdi: str
    url: TargetUrl
    status: CopyStatus = CopyStatus(CopyState.PENDING)
    todo: set[int] = attrs.Factory(set)
    total: int = 0
    same_disk: bool = False

    @property
    def over(self) -> bool:
        return self.status.state in (CopyState.FINISHED, CopyState.FAILED)


@implementer(ISR, IShowsImages)
class FakeSR:
    """One SR on one simulated host. `blocks_per_tick` blocks are copied every `tick` seconds of the clock."""

    def __init__(
        self,
        clock: IReactorTime,
        luns: FakeLuns | None = None,
        storage: FakeStorage | None = None,
        tick: float = 0.05,
        blocks_per_tick: int = 1024,
    ) -> None:
        self._clock = clock
        self._luns = luns or FakeLuns()
        self.storage = storage or FakeStorage()
        self.uuid = self.storage.uuid
        self._tick = tick
        self._pace = blocks_per_tick
        self._is_attached = False
        self._users: dict[str, dict[Purpose, bool]] = {}
        self._copies: dict[str, _Copy] = {}
        self._passwords: dict[str, str] = {}
        self._failing: dict[str, list[Exception]] = {}
        self._views: dict[str, int] = {}
        self.calls: list[tuple[str, ...]] = []
        self.stalled = False
        self.slowed = 0
        """Copies stand still, and a deactivation fails them."""

    # -- what a simulation does

    def fail(self, call: str, error: Exception | None = None, times: int = 1) -> None:
        """Let the next `times` calls of this name raise (SrBackendFailure unless said otherwise)."""
        raised = error or SrBackendFailure(call, "the simulation said so")
        self._failing.setdefault(call, []).extend([raised] * times)

    def break_copy(self, ref: str, reason: str = "the simulation said so") -> None:
        """Let a copy fail now."""
        self._end(self._copies[ref], reason)

    def guest_write(self, attachment: Attachment, offset: int, data: bytes) -> None:
        """A write of the domain. OSError while the gate is shut."""
        vdi = attachment.export
        if not self._active(vdi):
            raise OSError(5, "the gate is shut")
        self.storage.disks[vdi][offset : offset + len(data)] = data
        for copy in self._running(vdi):
            copy.todo.update(range(offset // BLOCK, (offset + len(data) - 1) // BLOCK + 1))
            copy.total += len(data)

    def guest_read(self, attachment: Attachment, offset: int, length: int) -> bytes:
        """A read of the domain. OSError while the gate is shut."""
        if not self._active(attachment.export):
            raise OSError(5, "the gate is shut")
        return bytes(self.storage.disks[attachment.export][offset : offset + length])

    def content(self, vdi: str) -> bytes:
        """What is on the disk."""
        return bytes(self.storage.disks[vdi])

    def close_views(self) -> None:
        """As the daemon's next start does."""
        for uuid in list(self._views):
            self._close_view(uuid)

    @property
    def open_for_domains(self) -> list[str]:
        """The VDIs that a domain can write to."""
        return [vdi for vdi in self._users if self._active(vdi)]

    @property
    def left_behind(self) -> list[str]:
        """What is still attached, running or exported here: empty when everything was cleaned up."""
        attached = [f"attachment {vdi} {user.value}" for vdi, users in self._users.items() for user in users]
        running = [f"copy {ref}" for ref, copy in self._copies.items() if not copy.over]
        exported = [f"LUN {lun.vdi}" for lun in self._luns.luns.values() if lun.open and lun.vdi in self.storage.disks]
        return attached + running + exported

    # -- the SR

    async def attach(self) -> None:
        self._called("attach")
        self._is_attached = True

    async def detach(self) -> None:
        self._called("detach")
        for vdi in self._users:
            raise VdiInUse(vdi, "attached")
        self._is_attached = False

    async def stat(self) -> SRStat:
        self._called("stat")
        self._require_attached()
        used = sum(map(self._taken, self.storage.disks.values()))
        return SRStat(self.storage.size, self.storage.size - used, used, reserves=not self.storage.thin)

    async def scan(self) -> list[VDIInfo]:
        self._called("scan")
        self._require_attached()
        return [VDIInfo(vdi, len(disk), self._taken(disk)) for vdi, disk in self.storage.disks.items()]

    def _taken(self, disk: bytearray) -> int:
        if not self.storage.thin:
            return len(disk)
        return sum(min(BLOCK, len(disk) - at) for at in range(0, len(disk), BLOCK) if any(disk[at : at + BLOCK]))

    # -- VDIs

    async def vdi_create(self, uuid: str, virtual_size: int) -> VDIInfo:
        self._called("vdi_create", uuid)
        self._require_attached()
        if uuid not in self.storage.disks:
            free = (await self.stat()).free
            if virtual_size > free:
                raise SrFull(self.uuid, virtual_size, free)
            self.storage.disks[uuid] = bytearray(-(-virtual_size // 512) * 512)
        return VDIInfo(uuid, len(self.storage.disks[uuid]))

    async def vdi_destroy(self, uuid: str) -> None:
        self._called("vdi_destroy", uuid)
        self._require_attached()
        if uuid in self._users:
            raise VdiInUse(uuid, "attached")
        self.storage.disks.pop(uuid, None)

    async def vdi_resize(self, uuid: str, virtual_size: int) -> VDIInfo:
        self._called("vdi_resize", uuid)
        self._require_attached()
        self._require_vdi(uuid)
        if uuid in self._users:
            raise VdiInUse(uuid, "attached")
        disk = self.storage.disks[uuid]
        if virtual_size < len(disk):
            raise InvalidValue("size", str(virtual_size))
        free = (await self.stat()).free
        if virtual_size - len(disk) > free:
            raise SrFull(self.uuid, virtual_size - len(disk), free)
        disk.extend(bytes(virtual_size - len(disk)))
        return VDIInfo(uuid, len(disk))

    async def vdi_attach(self, uuid: str, purpose: Purpose, read_only: bool = False) -> Attachment:
        self._called("vdi_attach", uuid, purpose.value)
        self._require_attached()
        self._require_vdi(uuid)
        self._users.setdefault(uuid, {}).setdefault(purpose, False)
        return Attachment(f"/fake/{self.uuid}/{uuid}", uuid, len(self.storage.disks[uuid]))

    async def vdi_activate(self, uuid: str, purpose: Purpose = Purpose.DOMAIN) -> None:
        self._called("vdi_activate", uuid, purpose.value)
        if purpose not in self._users.get(uuid, {}):
            raise SrBackendFailure(f"VDI {uuid}", "it is not attached")
        if purpose is Purpose.DOMAIN and self.storage.writers.setdefault(uuid, self) is not self:
            raise SrBackendFailure(f"opening VDI {uuid}", "another host has it open")
        self._users[uuid][purpose] = True

    async def vdi_deactivate(self, uuid: str, purpose: Purpose = Purpose.DOMAIN) -> None:
        self._called("vdi_deactivate", uuid, purpose.value)
        users = self._users.get(uuid, {})
        if purpose in users:
            users[purpose] = False
        if purpose is Purpose.DOMAIN:
            for copy in self._running(uuid):
                self._finish(copy)
            if self.storage.writers.get(uuid) is self:
                del self.storage.writers[uuid]

    async def vdi_detach(self, uuid: str, purpose: Purpose = Purpose.DOMAIN) -> None:
        self._called("vdi_detach", uuid, purpose.value)
        await self.vdi_deactivate(uuid, purpose)
        self._forget_user(uuid, purpose)

    # -- the receiving side

    async def vdi_get_url(self, uuid: str, migration: str, address: str, secure: bool = False) -> TargetUrl:
        self._called("vdi_get_url", uuid, migration)
        self._require_attached()
        self._require_vdi(uuid)
        self._users.setdefault(uuid, {})[Purpose.TARGET] = True
        return self._lun(uuid, migration, address, uuid, self.storage.disks[uuid], secure)

    async def vdi_dummy_url(
        self, uuid: str, virtual_size: int, migration: str, address: str, secure: bool = False
    ) -> TargetUrl:
        self._called("vdi_dummy_url", uuid, migration)
        self._require_attached()
        return self._lun(uuid, migration, address, self.uuid, None, secure)

    async def vdi_close_url(self, uuid: str, migration: str) -> None:
        self._called("vdi_close_url", uuid, migration)
        for lun in self._luns.luns.values():
            if lun.vdi == uuid and lun.password == self._passwords.get(migration):
                lun.open = False
        self._forget_user(uuid, Purpose.TARGET)

    async def vdi_is_served(self, uuid: str, migration: str) -> bool:
        self._called("vdi_is_served", uuid, migration)
        password = self._passwords.get(migration)
        return any(lun.open and lun.vdi == uuid and lun.password == password for lun in self._luns.luns.values())

    async def same_disk_proof(self, migration: str) -> SameDiskProof:
        self._called("same_disk_proof", migration)
        proof = SameDiskProof(str(uuids.uuid5(uuids.NAMESPACE_OID, migration)), secrets.token_hex(16))
        self.storage.nonces[proof.name] = proof.value
        return proof

    async def proof_is_seen(self, migration: str) -> bool:
        self._called("proof_is_seen", migration)
        name = str(uuids.uuid5(uuids.NAMESPACE_OID, migration))
        nonces = self.storage.nonces
        return name in nonces and nonces.get(seen_name(name)) == nonces[name]

    async def forget_proof(self, migration: str) -> None:
        self._called("forget_proof", migration)
        name = str(uuids.uuid5(uuids.NAMESPACE_OID, migration))
        for nonce in (name, seen_name(name)):
            self.storage.nonces.pop(nonce, None)

    # -- the sending side

    async def vdi_copy(
        self, uuid: str, url: TargetUrl, ref: str, proof: SameDiskProof | None, force_copy: bool = False
    ) -> None:
        self._called("vdi_copy", uuid, ref)
        self._require_attached()
        self._require_vdi(uuid)
        if ref in self._copies:
            return
        if self._running(uuid):
            raise VdiInUse(uuid, "another copy")
        copy = self._copies[ref] = _Copy(uuid, url)
        try:
            lun = self._reach(uuid, url)
        except MigrateError as failure:
            self._end(copy, str(failure))
            return
        size = len(self.storage.disks[uuid])
        if lun.vdi == uuid:
            proven = proof is not None and self.storage.nonces.get(proof.name) == proof.value
            if proof is not None and proven and not force_copy and lun.ids == self.uuid:
                self.storage.nonces[proof.seen] = proof.value
                copy.status = CopyStatus(CopyState.FINISHED, size, size, same_disk=True)
            else:
                self._end(copy, "the other host has a VDI of this uuid, and it is not proven to be the same disk")
            return
        copy.todo, copy.total = set(range(-(-size // BLOCK))), size
        copy.status = CopyStatus(CopyState.PENDING, 0, size)
        self._clock.callLater(self._tick, self._move, copy)

    async def copy_state(self, ref: str) -> CopyStatus:
        self._called("copy_state", ref)
        return self._copy(ref).status

    async def copy_replace(self, ref: str, url: TargetUrl) -> None:
        self._called("copy_replace", ref)
        copy = self._copy(ref)
        if copy.over:
            raise CopyFailed(copy.vdi, copy.status.error or "it has ended")
        self._reach(copy.vdi, url)
        copy.url = url

    async def copy_finish(self, ref: str) -> None:
        self._called("copy_finish", ref)
        copy = self._copy(ref)
        if not copy.over:
            self._finish(copy)

    async def copy_cancel(self, ref: str) -> None:
        self._called("copy_cancel", ref)
        copy = self._copies.pop(ref, None)
        if copy is not None and not copy.over:
            self._end(copy, "cancelled")

    # -- the VDI's bytes as a file

    async def view_open(self, uuid: str) -> Path:
        self._called("view_open", uuid)
        self._require_attached()
        self._require_vdi(uuid)
        if uuid not in self._views:
            self._users.setdefault(uuid, {})[Purpose.TARGET] = True
            self._views[uuid] = os.memfd_create(uuid)
            os.pwrite(self._views[uuid], self.storage.disks[uuid], 0)
        return Path(f"/proc/self/fd/{self._views[uuid]}")

    async def view_close(self, uuid: str) -> None:
        self._called("view_close", uuid)
        self._close_view(uuid)

    def _close_view(self, uuid: str) -> None:
        view = self._views.pop(uuid, -1)
        if view >= 0:
            self.storage.disks[uuid][:] = os.pread(view, len(self.storage.disks[uuid]), 0)
            os.close(view)
            self._forget_user(uuid, Purpose.TARGET)

    # -- parts

    def _move(self, copy: _Copy) -> None:
        if copy.over:
            return
        if not self.stalled and self._luns.reaches(copy.url.url):
            try:
                self._transfer(copy, self._pace)
            except MigrateError as failure:
                self._end(copy, str(failure))
                return
            ready = copy.status.state is CopyState.READY or not copy.todo
            state = CopyState.READY if ready else CopyState.PENDING
            copied = max(0, copy.total - len(copy.todo) * BLOCK)
            copy.status = CopyStatus(state, copied, copy.total, slowed=self.slowed)
        self._clock.callLater(self._tick, self._move, copy)

    def _transfer(self, copy: _Copy, blocks: int) -> None:
        lun = self._reach(copy.vdi, copy.url)
        source = self.storage.disks[copy.vdi]
        if lun.disk is None or len(lun.disk) < len(source):
            raise CopyFailed(copy.vdi, "the LUN is too small")
        for block in sorted(copy.todo)[:blocks]:
            place = slice(block * BLOCK, min((block + 1) * BLOCK, len(source)))
            lun.disk[place] = source[place]
            copy.todo.discard(block)

    def _finish(self, copy: _Copy) -> None:
        if copy.status.state is not CopyState.READY:
            self._end(copy, "the VDI was deactivated before all of it had been copied")
        elif self.stalled or not self._luns.reaches(copy.url.url):
            self._end(copy, "the other host did not confirm the last writes")
        else:
            try:
                self._transfer(copy, len(copy.todo))
                copy.status = CopyStatus(CopyState.FINISHED, copy.total, copy.total)
            except MigrateError as failure:
                self._end(copy, str(failure))

    def _end(self, copy: _Copy, reason: str) -> None:
        copy.status = CopyStatus(CopyState.FAILED, copy.status.copied, copy.status.total, error=reason)

    def _reach(self, vdi: str, url: TargetUrl) -> _Lun:
        lun = self._luns.luns.get(url.url)
        if lun is None or not lun.open or not self._luns.reaches(url.url):
            raise CopyFailed(vdi, f"the LUN {url.url} cannot be opened")
        if lun.password != url.password:
            raise CopyFailed(vdi, "the target did not accept the account")
        return lun

    def _lun(self, vdi: str, migration: str, address: str, ids: str, disk: bytearray | None, secure: bool) -> TargetUrl:
        password = self._passwords.setdefault(migration, secrets.token_urlsafe(32))
        target = f"iqn.fake:{uuids.uuid5(uuids.NAMESPACE_OID, migration + self.uuid)}"
        number = vdi.replace("-", "")
        url = f"nbds://{address}:10809/{vdi}/{ids}" if secure else f"iscsi://{address}:3260/{target}/{int(number, 16)}"
        self._luns.luns[url] = _Lun(vdi, ids, disk, password)
        return TargetUrl(url, f"migration-{migration}", password)

    def _copy(self, ref: str) -> _Copy:
        if ref not in self._copies:
            raise HandleInvalid("task", ref)
        return self._copies[ref]

    def _running(self, vdi: str) -> list[_Copy]:
        return [copy for copy in self._copies.values() if copy.vdi == vdi and not copy.over]

    def _active(self, vdi: str) -> bool:
        return self._users.get(vdi, {}).get(Purpose.DOMAIN, False)

    def _forget_user(self, vdi: str, purpose: Purpose) -> None:
        users = self._users.get(vdi, {})
        users.pop(purpose, None)
        if not users:
            self._users.pop(vdi, None)

    def _require_attached(self) -> None:
        if not self._is_attached:
            raise SrNotAttached(self.uuid)

    def _require_vdi(self, vdi: str) -> None:
        if vdi not in self.storage.disks:
            raise VdiMissing(self.uuid, vdi)

    def _called(self, call: str, *arguments: str) -> None:
        self.calls.append((call, *arguments))
        if self._failing.get(call):
            raise self._failing[call].pop(0)
