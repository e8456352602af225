"""The lock on a VM of the upstream's while it is sent, and what becomes of the VM when it has been.

The lock is in the upstream's own database: blocked_operations of all that could start, copy or change the VM. So it
holds whatever becomes of this daemon. A file here says what was locked, written before and kept until it is undone,
with the session that may undo it.
"""

from __future__ import annotations

from pathlib import Path
from uuid import uuid4

import attrs
from twisted.logger import Logger

from ..errors import MigrateError, OperationNotAllowed, RemoteError
from .client import UpstreamClient
from .notes import Notes
from .plugs import Plugs
from .reading import OURS, read_disk

BLOCKED = (
    "start", "start_on", "clone", "copy", "snapshot", "export", "migrate_send", "make_into_template", "provision",
    "destroy", "resume", "resume_on", "hard_shutdown", "power_state_reset", "revert",
)  # fmt: skip
HELD, MOVING, MOVED, KEPT = "held", "moving", "moved", "kept"

log = Logger()


@attrs.define
class Lease:
    """`state`: held (it is locked, no more; it may wait its turn), moving (its turn has come), moved (the VM is at the
    receiver: `destroy` and `forget` are VDIs that the upstream is to destroy, or only to forget), kept (somebody has
    said that it is, and nothing else does: all of it stays, and may be destroyed, not started). `forced`: somebody has
    said so, and the engine is about to believe it. `task`: that of the migration, once its turn has come."""

    id: str
    vm: str
    session: str = attrs.field(repr=False)
    vdis: list[str]
    state: str = HELD
    destroy: list[str] = attrs.Factory(list)
    forget: list[str] = attrs.Factory(list)
    uuid: str = ""
    forced: bool = False
    task: str = ""

    @property
    def name(self) -> str:
        """Of the VM, for people."""
        return self.uuid or self.vm

    @property
    def reason(self) -> str:
        return f"{OURS} it has moved to another host, or is being moved ({self.id})"


class Leases:
    """All of them; their files are in `folder`."""

    def __init__(self, client: UpstreamClient, folder: Path) -> None:
        self._client = client
        self._plugs = Plugs(client)
        self.active: set[str] = set()
        """The ids of those with which something is being done."""
        self._notes = Notes(folder, Lease)
        self.known = self._notes.known
        self.load = self._notes.load
        self.save = self._notes.save
        self.unreadable = self._notes.leftovers

    async def take(self, vm: str, uuid: str, session: str, vdis: list[str]) -> Lease:
        """Lock the VM and its disks; it is `active` then. RemoteError, and then it is not locked."""
        lease = Lease(str(uuid4()), vm, session, vdis, uuid=uuid)
        self.active.add(lease.id)
        try:
            await self.save(lease)
            for operation in BLOCKED:
                await self._client.call("VM.add_to_blocked_operations", session, vm, operation, lease.reason)
            await self._plugs.plug(lease.id, session, vdis)
        except BaseException:
            await self.settle(lease)
            self.active.discard(lease.id)
            raise
        return lease

    async def settle(self, lease: Lease, session: str = "") -> bool:
        """`undo`; False: it could not be done yet. Never anything for a VM that is moving."""
        if lease.state == MOVING:
            return False
        try:
            await self.undo(lease, session)
        except (MigrateError, OSError) as why:
            log.warn("VM {vm} of the toolstack stays locked for now: {why}", vm=lease.vm, why=str(why))
            return False
        return True

    async def undo(self, lease: Lease, session: str = "") -> None:
        """Undo the lock, or remove the VM that has moved; by `session`, or that which took the lease. RemoteError,
        UpstreamSilent, OSError: it could not be done yet."""
        assert lease.state != MOVING, lease.id
        session = session or lease.session
        await self._plugs.unplug(lease.id, session, lease.vdis)
        if lease.state == MOVED:
            await self._remove(lease, session)
        else:
            await self._unblock(lease, session, ("destroy", "hard_shutdown") if lease.state == KEPT else BLOCKED)
        await self._notes.forget(lease)

    async def _remove(self, lease: Lease, session: str) -> None:
        blocked = await self._blocked(lease, session)
        if blocked is not None and blocked.get("start") != lease.reason:
            log.error("VM {vm} has moved, but somebody has unlocked it here: it is left as it is", vm=lease.vm)
            return
        if blocked is not None:
            await self._unblock(lease, session, ("destroy",))
            await self._destroy(lease, session)
        for vdi in lease.destroy:
            await self._destroy_disk(lease, session, vdi)
        for vdi in lease.forget:
            await self._client.tolerant("VDI.forget", session, vdi)

    async def _destroy(self, lease: Lease, session: str) -> None:
        """The VM. One that is Suspended is Halted before, which may take its image along."""
        try:
            await self._client.tolerant("VM.destroy", session, lease.vm)
        except RemoteError as refusal:
            if refusal.failure()[0] != "VM_BAD_POWER_STATE":
                raise
            await self._unblock(lease, session, ("hard_shutdown",))
            await self._client.tolerant("VM.hard_shutdown", session, lease.vm)
            await self._client.tolerant("VM.destroy", session, lease.vm)

    async def _destroy_disk(self, lease: Lease, session: str, vdi: str) -> None:
        """Unless somebody has begun to use it meanwhile: it can be read, cloned and have snapshots all the time."""
        try:
            await read_disk(self._client, session, vdi, "")
        except OperationNotAllowed as why:
            log.error("VM {vm} has moved, and a disk of it stays here: {why}", vm=lease.name, why=str(why))
            return
        except RemoteError as refusal:
            if refusal.failure()[0] != "HANDLE_INVALID":
                raise
            return
        await self._client.tolerant("VDI.destroy", session, vdi)

    async def _blocked(self, lease: Lease, session: str) -> dict[str, str] | None:
        """What is blocked of the VM; None if it is not there."""
        try:
            blocked = await self._client.call("VM.get_blocked_operations", session, lease.vm)
        except RemoteError as refusal:
            if refusal.failure()[0] == "HANDLE_INVALID":
                return None
            raise
        return blocked if isinstance(blocked, dict) else {}

    async def _unblock(self, lease: Lease, session: str, operations: tuple[str, ...]) -> None:
        """Take back what this lease has blocked, and nothing else."""
        blocked = await self._blocked(lease, session) or {}
        for operation in operations:
            if blocked.get(operation) == lease.reason:
                await self._client.call("VM.remove_from_blocked_operations", session, lease.vm, operation)

    async def settle_all(self, session: str = "") -> None:
        """Whatever can be settled now."""
        for lease in list(self.known.values()):
            if lease.id not in self.active:
                await self.settle(lease, session)
