"""VM.suspend and VM.resume: a domain's memory goes into a VDI, and comes back.

suspend  BEGUN      a fresh VDI, the domain stands still and writes into it; if anything goes wrong, the VM runs and the
                    VDI goes
         COMMITTED  the image is whole and on disk: the VM is Suspended from here on, crash or not
resume   BEGUN      a new domain reads the image and stays paused; if anything goes wrong, it goes and the image stays
         COMMITTED  that domain is the VM from here on, crash or not: it runs, and then the image goes

The hypervisor writes into, and reads from, a file that shows the VDI's bytes: they do not pass through this program.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from uuid import uuid4

import attrs
from twisted.logger import Logger

from xapi_migrate.domains.interfaces import GONE, DomainState, IDomainDriver
from xapi_migrate.errors import DomainError, HandleInvalid, InternalError, MigrateError
from xapi_migrate.migration.host import TaskHandle
from xapi_migrate.migration.journal import IJournal, IJournals, JournalFailed, Mark, data_of, marked
from xapi_migrate.processes.in_thread import in_thread
from xapi_migrate.refusals import SuspendImageNotAccessible, VmHasNoSuspendVdi, VmNoSuspendSr
from xapi_migrate.sm.interfaces import IShowsImages
from xapi_migrate.store.interfaces import NULL
from xapi_migrate.store.records import Records
from xapi_migrate.toolstack import suspend_image
from xapi_migrate.toolstack.machines import Machines
from xapi_migrate.toolstack.operations import Operations
from xapi_migrate.toolstack.storage import Storage
from xapi_migrate.toolstack.undertaking import attempt, uncancelled

SUSPEND, RESUME = "suspend", "resume"


@attrs.frozen
class Plan:
    """`domain` the one that is suspended, or the new one; `vdi` and `sr` the image's, by their uuids; `paused`: the
    domain does not run when it is back."""

    task: str
    vm: str
    domain: str
    vdi: str
    sr: str
    paused: bool = False


class Suspending:
    """Of this host. Made with its records, storage, machines and journals of its own."""

    log = Logger()

    def __init__(
        self, records: Records, storage: Storage, machines: Machines, domains: IDomainDriver, operations: Operations,
        journals: IJournals, host: str,
    ) -> None:  # fmt: skip
        self._records = records
        self._storage = storage
        self._machines = machines
        self._domains = domains
        self._operations = operations
        self._journals = journals
        self._host = host

    async def suspend(self, vm: str, task: TaskHandle) -> None:
        """VM.suspend. VmBadPowerState, VmNoSuspendSr, SrFull, DomainError: then the VM runs, and nothing is left."""
        self._operations.require(vm, "Running")
        sr = self._records.get("SR", self._sr_for(vm))
        with self._operations.operation(vm, SUSPEND, task.ref):
            plan = Plan(task.ref, vm, self._machines.domain_of(vm), str(uuid4()), sr["uuid"])
            await self._do(SUSPEND, plan, task)

    async def resume(self, vm: str, paused: bool, task: TaskHandle) -> None:
        """VM.resume. VmBadPowerState, VmHasNoSuspendVdi, SuspendImageNotAccessible, VdiInUse, DomainError: then the VM
        is Suspended, with its image."""
        record = self._operations.require(vm, "Suspended")
        if record["suspend_VDI"] == NULL:
            raise VmHasNoSuspendVdi(vm)
        self._machines.check_networks(vm)
        vdi = self._records.get("VDI", record["suspend_VDI"])
        sr = self._records.get("SR", vdi["SR"])
        self._operations.check_blocked(vm, RESUME)
        self._operations.check_free(vm)
        await self._machines.claim(vm)
        self._operations.require(vm, "Suspended")
        with self._operations.operation(vm, RESUME, task.ref):
            await self._do(RESUME, Plan(task.ref, vm, str(uuid4()), vdi["uuid"], sr["uuid"], paused), task)

    async def forget(self, vm: str) -> None:
        """A Suspended VM becomes Halted, its memory is given up."""
        vdi = self._records.get("VM", vm)["suspend_VDI"]
        await self._machines.destroy_domain(vm)
        self._records.update("VM", vm, suspend_VDI=NULL)
        await self._records.flush()
        if vdi in self._records.refs("VDI"):
            await self._storage.destroy_vdi(vdi)

    async def recover(self) -> None:
        """What an earlier daemon left: finished if it was decided, else undone. Before the domains are looked at."""
        for journal in await self._journals.read():
            plan = Plan(**data_of(journal, Mark.BEGUN))
            try:
                if marked(journal, Mark.COMMITTED):
                    await self._finish(journal.role, plan, journal)
                else:
                    await self._undo(journal.role, plan, journal)
            except Exception:
                self.log.failure("the {what} of VM {vm} is not settled", what=journal.role, vm=plan.vm)

    # -- both

    async def _do(self, role: str, plan: Plan, task: TaskHandle) -> None:
        journal = self._journals.begin(role, str(uuid4()))
        await journal.record(Mark.BEGUN, **attrs.asdict(plan))
        work: Callable[[Plan], Awaitable[None]] = self._write if role == SUSPEND else self._read
        await attempt(task, work(plan), lambda: self._undo(role, plan, journal))
        await uncancelled(self._commit(role, plan, journal))

    async def _commit(self, role: str, plan: Plan, journal: IJournal) -> None:
        try:
            await journal.record(Mark.COMMITTED)
        except JournalFailed:
            # It may be on disk all the same: only without the journal can it be undone.
            await journal.remove()
            await self._undo(role, plan, journal)
            raise
        await self._finish(role, plan, journal)

    async def _finish(self, role: str, plan: Plan, journal: IJournal) -> None:
        await (self._suspended(plan) if role == SUSPEND else self._resumed(plan))
        await journal.remove()

    async def _undo(self, role: str, plan: Plan, journal: IJournal) -> None:
        await (self._runs_on(plan) if role == SUSPEND else self._stays(plan))
        await journal.remove()

    def _shows(self, plan: Plan) -> IShowsImages:
        shows: IShowsImages = IShowsImages(self._storage.sr(plan.sr))
        return shows

    def _image(self, plan: Plan) -> str:
        """The ref of the suspend VDI; "" if there is none."""
        return next(iter(self._records.find("VDI", uuid=plan.vdi)), "")

    # -- suspend

    def _sr_for(self, vm: str) -> str:
        """Where the image goes: what is nearest to the VM wins, then the SR of its first disk. VmNoSuspendSr."""
        record = self._records.get("VM", vm)
        wanted = [record["suspend_SR"], self._records.get("host", self._host)["suspend_image_sr"]]
        wanted += [self._records.get("pool", pool)["suspend_image_SR"] for pool in self._records.refs("pool")]
        disks = [self._records.get("VBD", vbd)["VDI"] for vbd in self._machines.disks(vm)]
        wanted += [self._records.get("VDI", vdi)["SR"] for vdi in disks]
        for sr in wanted:
            if sr in self._records.refs("SR"):
                if not IShowsImages.providedBy(self._storage.sr(sr)):
                    continue  # its backend has a way of its own to its disks
                return str(sr)
        raise VmNoSuspendSr(vm)

    async def _write(self, plan: Plan) -> None:
        record = self._records.get("VM", plan.vm)
        size = suspend_image.size_for(record["memory_static_max"])
        sr = self._records.find("SR", uuid=plan.sr)[0]
        image = await self._storage.create_vdi(
            sr, plan.vdi, size, type="suspend", name_label="Suspend image",
            name_description=f"Suspend image of {record['name_label']}",
        )  # fmt: skip
        self._records.update("VM", plan.vm, suspend_VDI=image)  # nobody else may destroy it
        path = await self._shows(plan).view_open(plan.vdi)
        descriptor = await in_thread(suspend_image.open_to_write, path)
        try:
            # Stopped first: each page is written once, so that its size is known.
            suspension = await self._domains.suspend(plan.domain, descriptor, live=False)
            try:
                await suspension.suspended()
                await suspension.proceed()
                await suspension.finished()
            except BaseException:
                await suspension.cancel()
                raise
            stream = self._domains.capabilities().stream
            await in_thread(suspend_image.seal, descriptor, size, stream, record["uuid"])
        except (OSError, ValueError) as failure:
            raise InternalError(f"The memory of VM {plan.vm} was not written to VDI {plan.vdi}: {failure}") from failure
        finally:
            await in_thread(os.close, descriptor)
        await self._shows(plan).view_close(plan.vdi)
        await self._records.flush()  # the image's record must be found by whoever finishes this after a crash

    async def _suspended(self, plan: Plan) -> None:
        """After COMMITTED. Repeatable."""
        if plan.vm not in self._records.refs("VM"):
            return
        await self._machines.end_domain(plan.vm, plan.domain)
        if not self._image(plan):
            await self._storage.scan(self._records.find("SR", uuid=plan.sr)[0])
        self._records.update("VM", plan.vm, power_state="Suspended", suspend_VDI=self._image(plan) or NULL)
        await self._records.flush()

    async def _runs_on(self, plan: Plan) -> None:
        """Before COMMITTED: the VM runs, and nothing is left of the image. Repeatable."""
        try:
            if await self._domains.state(plan.domain) not in GONE:
                await self._domains.resume(plan.domain)
        except DomainError:
            if await self._domains.state(plan.domain) not in GONE:
                raise
        if plan.vm in self._records.refs("VM"):
            self._records.update("VM", plan.vm, suspend_VDI=NULL)
        await self._drop_image(plan)

    # -- resume

    async def _read(self, plan: Plan) -> None:
        self._machines.set_domain(plan.vm, plan.domain)
        await self._records.flush()  # a daemon that is killed has to know of this domain
        path = await self._shows(plan).view_open(plan.vdi)
        descriptor = await self._open_image(plan, path)
        try:
            attachments = await self._machines.attach_disks(plan.vm)
            spec = self._machines.spec_of(plan.vm, plan.domain, attachments)
            restoration = await self._domains.restore(spec, descriptor)
            try:
                await restoration.finished()
            except BaseException:
                await restoration.cancel()
                raise
        finally:
            await in_thread(os.close, descriptor)
        await self._shows(plan).view_close(plan.vdi)

    async def _open_image(self, plan: Plan, path: Path) -> int:
        vdi = self._image(plan)
        try:
            size = self._records.get("VDI", vdi)["virtual_size"]
            descriptor, head = await in_thread(suspend_image.open_to_read, path, size)
        except (OSError, ValueError) as failure:
            raise SuspendImageNotAccessible(vdi, plan.vm, str(failure)) from failure
        for what, found, wanted in (
            ("of a VM with the uuid", head.vm, self._records.get("VM", plan.vm)["uuid"]),
            ("in the form", head.stream, self._domains.capabilities().stream),
        ):
            if found != wanted:
                await in_thread(os.close, descriptor)
                raise SuspendImageNotAccessible(vdi, plan.vm, f"it is {what} {found}, and not {wanted}")
        return descriptor

    async def _resumed(self, plan: Plan) -> None:
        """After COMMITTED. Repeatable. The image goes when the domain runs."""
        if plan.vm in self._records.refs("VM"):
            await self._let_run(plan)
            self._records.update("VM", plan.vm, suspend_VDI=NULL)
            await self._records.flush()
        await self._drop_image(plan)

    async def _let_run(self, plan: Plan) -> None:
        self._machines.set_domain(plan.vm, plan.domain)
        state = await self._domains.state(plan.domain)
        if state is DomainState.PAUSED and not plan.paused:
            try:
                await self._domains.unpause(plan.domain)
            except MigrateError as failure:
                self.log.warn("VM {vm} is resumed and does not run yet: {why}", vm=plan.vm, why=failure)
            state = await self._domains.state(plan.domain)
        if state in GONE:
            await self._machines.destroy_domain(plan.vm)
        else:
            self._machines.running(plan.vm, "Running" if state is DomainState.RUNNING else "Paused")

    async def _stays(self, plan: Plan) -> None:
        """Before COMMITTED: the VM is Suspended, with its image. Repeatable."""
        if plan.vm in self._records.refs("VM"):
            await self._machines.end_domain(plan.vm, plan.domain)
            self._records.update("VM", plan.vm, power_state="Suspended")  # a daemon that ends may have looked at it
        await self._shows(plan).view_close(plan.vdi)

    async def _drop_image(self, plan: Plan) -> None:
        await self._shows(plan).view_close(plan.vdi)
        vdi = self._image(plan)
        try:
            if vdi:
                await self._storage.destroy_vdi(vdi)
            else:
                await self._storage.sr(plan.sr).vdi_destroy(plan.vdi)
        except HandleInvalid:
            pass
