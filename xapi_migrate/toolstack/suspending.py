"""VM.suspend and VM.resume: a domain's memory goes into a VDI, and comes back.

suspend  BEGUN      a fresh VDI, the domain stands still and writes into it; if anything goes wrong, the VM runs and the
                    VDI goes
         COMMITTED  the image is whole and on disk: the VM is Suspended from here on, crash or not
resume   BEGUN      a new domain reads the image and stays paused; if anything goes wrong, it goes and the image stays
         COMMITTED  that domain is the VM from here on, crash or not: it runs, and then the image goes

The hypervisor writes into, and reads from, a file that shows the VDI's bytes: they do not pass through this program.
"""

from __future__ import annotations

from uuid import uuid4

from xapi_migrate.domains.interfaces import IDomainDriver
from xapi_migrate.migration.host import TaskHandle
from xapi_migrate.migration.journal import IJournals
from xapi_migrate.refusals import VmHasNoSuspendVdi
from xapi_migrate.store.interfaces import NULL
from xapi_migrate.store.records import Records
from xapi_migrate.toolstack.machines import Machines
from xapi_migrate.toolstack.operations import Operations
from xapi_migrate.toolstack.resume_work import ResumeWork
from xapi_migrate.toolstack.storage import Storage
from xapi_migrate.toolstack.suspend_vdi import Plan, SuspendVDIs
from xapi_migrate.toolstack.suspend_work import SuspendWork
from xapi_migrate.toolstack.undertaking import ITasks, Undertakings
from xapi_migrate.toolstack.unsettled import Unsettled

SUSPEND, RESUME = "suspend", "resume"


class Suspending:
    """Of this host. Made with its records, storage, machines and journals of its own."""

    def __init__(
        self, records: Records, storage: Storage, machines: Machines, domains: IDomainDriver, operations: Operations,
        journals: IJournals, host: str, tasks: ITasks, unsettled: Unsettled,
    ) -> None:  # fmt: skip
        self._records = records
        self._storage = storage
        self._machines = machines
        self._operations = operations
        self._images = SuspendVDIs(records, storage, machines, host)
        self._suspend = SuspendWork(records, storage, machines, domains, self._images)
        self._resume = ResumeWork(records, machines, domains, self._images)
        self._undertakings: Undertakings[Plan] = Undertakings(
            journals, operations, Plan, {SUSPEND: self._suspend, RESUME: self._resume}, tasks, unsettled
        )

    async def suspend(self, vm: str, task: TaskHandle) -> None:
        """VM.suspend. VmBadPowerState, VmNoSuspendSr, SrFull, DomainError: then the VM runs, and nothing is left."""
        self._operations.require(vm, "Running")
        sr = self._records.get("SR", self._images.sr_for(vm))
        with self._operations.operation(vm, SUSPEND, task.ref):
            given_up = self._operations.given_up(vm)
            plan = Plan(task.ref, vm, self._machines.domain_of(vm), str(uuid4()), sr["uuid"], given_up=given_up)
            await self._undertakings.do(SUSPEND, plan, task, lambda: self._suspend.write(plan))

    async def resume(self, vm: str, paused: bool, task: TaskHandle) -> None:
        """VM.resume. VmBadPowerState, VmHasNoSuspendVdi, SuspendImageNotAccessible, VdiInUse, NotEnoughMemory,
        DomainError: then the VM is Suspended, with its image."""
        record = self._operations.require(vm, "Suspended")
        if record["suspend_VDI"] == NULL:
            raise VmHasNoSuspendVdi(vm)
        self._machines.check_networks(vm)
        vdi = self._records.get("VDI", record["suspend_VDI"])
        sr = self._records.get("SR", vdi["SR"])
        self._operations.check_blocked(vm, RESUME)
        self._operations.check_free(vm)
        with self._machines.room_for(vm) as built:
            await self._machines.claim(vm)
            self._operations.require(vm, "Suspended")
            with self._operations.operation(vm, RESUME, task.ref):
                given_up = self._operations.given_up(vm)
                plan = Plan(task.ref, vm, str(uuid4()), vdi["uuid"], sr["uuid"], paused, given_up)
                await self._undertakings.do(RESUME, plan, task, lambda: self._resume.read(plan, built))

    async def forget(self, vm: str) -> None:
        """A Suspended VM becomes Halted, its memory is given up."""
        vdi = self._records.get("VM", vm)["suspend_VDI"]
        await self._machines.destroy_domain(vm)
        self._records.update("VM", vm, suspend_VDI=NULL)
        await self._records.flush()
        if vdi in self._records.refs("VDI"):
            await self._storage.destroy_vdi(vdi)

    async def recover(self) -> None:
        """What an earlier daemon left: see `Undertakings.recover`."""
        await self._undertakings.recover()
