"""Storage motion: the disks of a VM that stays on its host move to other SRs, while it runs or not.

BEGUN      a fresh VDI, the mirror into it; whatever goes wrong, the VM has its old disk
           both images are equal, the guest is stopped, and the new one is flushed
COMMITTED  the new one is the disk from here on, crash or not
then       pivot, the guest goes on, VBDs, the old VDI goes, and the journal
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Any
from uuid import uuid4

from xapi_migrate.domains.interfaces import IDomainDriver
from xapi_migrate.errors import OperationNotAllowed, SrFull, VdiInUse
from xapi_migrate.migration.claims import Claims, DiskClaim
from xapi_migrate.migration.disk_users import other_user
from xapi_migrate.migration.host import TaskHandle
from xapi_migrate.migration.journal import IJournals
from xapi_migrate.refusals import SrCannotMigrate, VdiNeedsVm
from xapi_migrate.sm.interfaces import IMovesImages
from xapi_migrate.store.interfaces import NULL
from xapi_migrate.store.records import Records
from xapi_migrate.toolstack.machines import Machines
from xapi_migrate.toolstack.motion_work import MotionWork, Plan
from xapi_migrate.toolstack.operations import Operations
from xapi_migrate.toolstack.sender_checks import SenderChecks
from xapi_migrate.toolstack.storage import Storage
from xapi_migrate.toolstack.undertaking import ITasks, Undertakings
from xapi_migrate.toolstack.unsettled import Unsettled

OPERATION = "migrate_send"
ROLE = "motion"


class StorageMotion:
    """All motions of this host. `turn` is held by each: the VMs of a client wait for each other."""

    def __init__(
        self, records: Records, storage: Storage, operations: Operations, machines: Machines, domains: IDomainDriver,
        checks: SenderChecks, journals: IJournals, claims: Claims, clock: Any,
        turn: Callable[[TaskHandle], AbstractAsyncContextManager[None]], tasks: ITasks, unsettled: Unsettled,
        host: str,
    ) -> None:  # fmt: skip
        self._turn = turn
        self._claims = claims
        self._records = records
        self._storage = storage
        self._operations = operations
        self._checks = checks
        self._machines = machines
        self._host = host
        self._work = MotionWork(records, storage, domains, clock)
        self._undertakings: Undertakings[Plan] = Undertakings(
            journals, operations, Plan, {ROLE: self._work}, tasks, unsettled
        )

    async def move(self, vdi: str, sr: str, task: TaskHandle) -> str:
        """VDI.pool_migrate: the ref of the VDI that is now the disk. Every check comes first; cancelled or failed, the
        VM has its old disk and nothing is left of the new one."""
        vm = self._vm_of(vdi)
        self._check(vm, vdi, sr)
        with self._operations.operation(vm, OPERATION, task.ref):
            async with self._turn(task):
                return await self._move(vm, vdi, sr, task, (0.0, 1.0))

    async def move_all(self, vm: str, vdi_to_sr: dict[str, str], task: TaskHandle) -> None:
        """VM.migrate_send to the host where the VM is: each disk whose SR is to be another, one after the other."""
        moving = {vdi: sr for vdi, sr in vdi_to_sr.items() if self._records.get("VDI", vdi)["SR"] != sr}
        for vdi, sr in moving.items():
            self._check(vm, vdi, sr)
        share = 1 / max(1, len(moving))
        with self._operations.operation(vm, OPERATION, task.ref):
            async with self._turn(task):
                for number, (vdi, sr) in enumerate(moving.items()):
                    await self._move(vm, vdi, sr, task, (number * share, share))

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
        if other := other_user(self._records, self._host, vdi, (vm,), busy=True):
            raise VdiInUse(vdi, f"it is a disk of {other} too")
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

    async def _move(self, vm: str, vdi: str, sr: str, task: TaskHandle, span: tuple[float, float]) -> str:
        to, size = str(uuid4()), self._records.get("VDI", vdi)["virtual_size"]
        self._claims.take(to, 0, [DiskClaim(sr, to, size)])
        try:
            await self._check_space(to, sr, size)
            return await self._move_to(to, vm, vdi, sr, task, span)
        finally:
            self._claims.release(to)

    async def _move_to(self, to: str, vm: str, vdi: str, sr: str, task: TaskHandle, span: tuple[float, float]) -> str:
        record = self._records.get("VDI", vdi)
        uuids = {ref: str(self._records.get("SR", ref)["uuid"]) for ref in (record["SR"], sr)}
        runs = self._records.get("VM", vm)["power_state"] == "Running"
        plan = Plan(
            task.ref, vm, record["uuid"], uuids[record["SR"]], to, uuids[sr], self._machines.domain_of(vm), runs,
            self._operations.given_up(vm),
        )  # fmt: skip
        task.set_other("step", f"storage motion: copying VDI {plan.vdi} to SR {plan.to_sr}")

        def progress(share: float) -> None:
            task.set_progress(span[0] + span[1] * 0.95 * share)

        copying = partial(self._work.copy, plan, record["virtual_size"], progress)
        return str(await self._undertakings.do(ROLE, plan, task, copying))

    # -- after a restart

    async def recover(self) -> None:
        """What an earlier daemon left: see `Undertakings.recover`."""
        await self._undertakings.recover()
