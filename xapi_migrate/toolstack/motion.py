"""Storage motion: the disks of a VM that stays on its host move to other SRs, while it runs or not.

BEGUN      a fresh VDI, the mirror into it; whatever goes wrong, the VM has its old disk
COMMITTED  both images are equal and stay so: the new one is the disk from here on, crash or not
then       pivot, VBDs, the old VDI goes, and the journal
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import uuid4

import attrs
from twisted.internet import task
from twisted.logger import Logger

from xapi_migrate.errors import CopyFailed, HandleInvalid, InternalError, MigrateError, OperationNotAllowed, SrFull
from xapi_migrate.migration.claims import Claims, DiskClaim
from xapi_migrate.migration.host import TaskHandle
from xapi_migrate.migration.journal import IJournal, IJournals, Mark, data_of, marked
from xapi_migrate.refusals import SrCannotMigrate, VdiNeedsVm
from xapi_migrate.sm.interfaces import ISR, IMovesImages, MoveState
from xapi_migrate.store.interfaces import NULL
from xapi_migrate.store.records import Records
from xapi_migrate.toolstack.operations import Operations
from xapi_migrate.toolstack.sender_checks import SenderChecks
from xapi_migrate.toolstack.storage import Storage
from xapi_migrate.toolstack.undertaking import attempt, uncancelled

POLL_SECONDS = 0.2
OPERATION = "migrate_send"
ROLE = "motion"
_KEPT = (
    "name_label", "name_description", "type", "sharable", "read_only", "other_config", "xenstore_data", "on_boot",
    "tags", "is_tools_iso",
)  # fmt: skip
"""What of a VDI's record goes with it."""


@attrs.frozen
class Plan:
    """One disk: its VM, its VDI's uuid and SR, the fresh VDI's uuid and SR (SRs by their uuids)."""

    task: str
    vm: str
    vdi: str
    sr: str
    to: str
    to_sr: str


class StorageMotion:
    """All motions of this host."""

    log = Logger()

    def __init__(
        self, records: Records, storage: Storage, operations: Operations, checks: SenderChecks, journals: IJournals,
        claims: Claims, clock: Any,
    ) -> None:  # fmt: skip
        self._claims = claims
        self._records = records
        self._storage = storage
        self._operations = operations
        self._checks = checks
        self._journals = journals
        self._clock = clock

    async def move(self, vdi: str, sr: str, task_: TaskHandle) -> str:
        """VDI.pool_migrate: the ref of the VDI that is now the disk. Every check comes first; cancelled or failed, the
        VM has its old disk and nothing is left of the new one."""
        vm = self._vm_of(vdi)
        self._check(vm, vdi, sr)
        with self._operations.operation(vm, OPERATION, task_.ref):
            return await self._move(vm, vdi, sr, task_, (0.0, 1.0))

    async def move_all(self, vm: str, vdi_to_sr: dict[str, str], task_: TaskHandle) -> None:
        """VM.migrate_send to the host where the VM is: each disk whose SR is to be another, one after the other."""
        moving = {vdi: sr for vdi, sr in vdi_to_sr.items() if self._records.get("VDI", vdi)["SR"] != sr}
        for vdi, sr in moving.items():
            self._check(vm, vdi, sr)
        share = 1 / max(1, len(moving))
        with self._operations.operation(vm, OPERATION, task_.ref):
            for number, (vdi, sr) in enumerate(moving.items()):
                await self._move(vm, vdi, sr, task_, (number * share, share))

    # -- before anything is done

    def _vm_of(self, vdi: str) -> str:
        """VdiNeedsVm."""
        for vbd in self._records.get("VDI", vdi)["VBDs"]:
            vm = self._records.get("VBD", vbd)["VM"]
            if vm != NULL:
                return str(vm)
        raise VdiNeedsVm(vdi)

    def _check(self, vm: str, vdi: str, sr: str) -> None:
        record = self._records.get("VDI", vdi)
        self._checks.check_motion(vm, vdi)
        if record["SR"] == sr:
            raise OperationNotAllowed(f"The VDI {vdi} is in that SR already.")
        for ref in (record["SR"], sr):
            if not IMovesImages.providedBy(self._storage.sr(ref)):
                raise SrCannotMigrate(ref)

    async def _check_space(self, to: str, sr: str, size: int) -> None:
        free = await self._claims.space(sr, self._storage.sr(sr), before=to)
        if size > free:
            raise SrFull(sr, size, free)

    # -- one disk

    async def _move(self, vm: str, vdi: str, sr: str, task_: TaskHandle, span: tuple[float, float]) -> str:
        to, size = str(uuid4()), self._records.get("VDI", vdi)["virtual_size"]
        self._claims.take(to, 0, [DiskClaim(sr, to, size)])
        try:
            await self._check_space(to, sr, size)
            return await self._move_to(to, vm, vdi, sr, task_, span)
        finally:
            self._claims.release(to)

    async def _move_to(self, to: str, vm: str, vdi: str, sr: str, task_: TaskHandle, span: tuple[float, float]) -> str:
        record = self._records.get("VDI", vdi)
        uuids = {ref: str(self._records.get("SR", ref)["uuid"]) for ref in (record["SR"], sr)}
        plan = Plan(task_.ref, vm, record["uuid"], uuids[record["SR"]], to, uuids[sr])
        journal = self._journals.begin(ROLE, str(uuid4()))
        await journal.record(Mark.BEGUN, **attrs.asdict(plan))
        copying = self._copy(plan, journal, record["virtual_size"], task_, span)
        await attempt(task_, copying, lambda: self._undo(plan, journal))
        return await uncancelled(self._commit(plan, journal))

    async def _copy(
        self, plan: Plan, journal: IJournal, size: int, task_: TaskHandle, span: tuple[float, float]
    ) -> None:
        """Until both images are equal."""
        vdi = self._records.get("VDI", self._ref("VDI", plan.vdi))
        fields = {name: vdi[name] for name in _KEPT}
        await self._storage.create_vdi(self._ref("SR", plan.to_sr), plan.to, size, **fields)
        mover, other = self._sr(plan.sr), self._storage.sr(plan.to_sr)
        task_.set_other("step", f"storage motion: copying VDI {plan.vdi} to SR {plan.to_sr}")
        await mover.move_begin(plan.vdi, other, plan.to)
        while True:
            now = await mover.move_status(plan.vdi, other, plan.to)
            if now.state is MoveState.READY:
                await mover.move_settle(plan.vdi, other, plan.to)
                return
            if now.state is not MoveState.COPYING:
                raise CopyFailed(plan.vdi, now.error or "its mirror ended")
            task_.set_progress(span[0] + span[1] * 0.95 * now.copied / max(1, now.total))
            await task.deferLater(self._clock, POLL_SECONDS)

    async def _commit(self, plan: Plan, journal: IJournal) -> str:
        """From here on the new image is the disk."""
        await journal.record(Mark.COMMITTED)
        try:
            await self._sr(plan.sr).move_pivot(plan.vdi, self._storage.sr(plan.to_sr), plan.to)
        except CopyFailed:
            # the process is there and has the old image: an error of the new one ended the mirror
            await journal.record(Mark.ABORTED)
            await self._undo(plan, journal)
            raise
        return await self._finish(plan, journal)

    async def _finish(self, plan: Plan, journal: IJournal) -> str:
        """Records, and the end of the old VDI. Repeatable."""
        to = self._ref("VDI", plan.to)
        for old in self._records.find("VDI", uuid=plan.vdi):
            for vbd in list(self._records.get("VDI", old)["VBDs"]):
                self._records.update("VBD", vbd, VDI=to)
            for vm in self._records.find("VM", suspend_VDI=old):
                self._records.update("VM", vm, suspend_VDI=to)
            # the old image may go only when no restart can lead back to it
            await self._records.flush()
            try:
                await self._storage.destroy_vdi(old)
            except MigrateError as why:
                self.log.warn(
                    "VDI {vdi} has moved to SR {sr}, and what was left of it stays: {why}",
                    vdi=plan.vdi, sr=plan.to_sr, why=why,
                )  # fmt: skip
        await journal.remove()
        return to

    async def _undo(self, plan: Plan, journal: IJournal) -> None:
        """The VM has its old disk; nothing is left of the new one. Repeatable."""
        await self._sr(plan.sr).move_cancel(plan.vdi, self._storage.sr(plan.to_sr), plan.to)
        known = self._records.find("VDI", uuid=plan.to)
        if known:
            await self._storage.destroy_vdi(known[0])
        else:
            await self._storage.sr(plan.to_sr).vdi_destroy(plan.to)
        await journal.remove()

    # -- after a restart

    async def recover(self, task_of: Callable[[str, str], TaskHandle], tasks: Any) -> None:
        """What an earlier daemon left: committed motions are finished, others undone. Before the domains are looked at.
        `tasks` ends their tasks."""
        for journal in await self._journals.read():
            plan = Plan(**data_of(journal, Mark.BEGUN))
            handle = task_of(plan.task, "VDI.pool_migrate")
            try:
                to = await self._settle(plan, journal)
            except Exception as why:
                self.log.failure("the motion of VDI {vdi} is not settled", vdi=plan.vdi)
                tasks.fail(handle, InternalError(f"The motion of VDI {plan.vdi} could not be settled: {why}"))
                continue
            finally:
                self._operations.end_operation(plan.vm, plan.task)
            if to:
                tasks.succeed(handle, to)
            else:
                tasks.fail(
                    handle, InternalError("The daemon ended while this disk was being moved: it is where it was.")
                )

    async def _settle(self, plan: Plan, journal: IJournal) -> str:
        """The new VDI's ref, "" if it was undone."""
        if marked(journal, Mark.COMMITTED) and not marked(journal, Mark.ABORTED):
            try:
                return await self._commit(plan, journal)
            except CopyFailed:
                return ""
        await self._undo(plan, journal)
        return ""

    def _ref(self, cls: str, uuid: str) -> str:
        """HandleInvalid."""
        found = self._records.find(cls, uuid=uuid)
        if not found:
            raise HandleInvalid(cls, uuid)
        return found[0]

    def _sr(self, uuid: str) -> Any:
        """An IMovesImages."""
        sr: ISR = self._storage.sr(uuid)
        return IMovesImages(sr)
