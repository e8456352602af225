"""VM.resume: a new domain reads its memory from the suspend image."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from twisted.logger import Logger

from xapi_migrate.domains.interfaces import GONE, DomainState, IDomainDriver
from xapi_migrate.errors import MigrateError
from xapi_migrate.processes.in_thread import in_thread
from xapi_migrate.refusals import SuspendImageNotAccessible
from xapi_migrate.store.interfaces import NULL
from xapi_migrate.store.records import Records
from xapi_migrate.toolstack import suspend_image
from xapi_migrate.toolstack.machines import Machines
from xapi_migrate.toolstack.suspend_vdi import Plan, SuspendVDIs


class ResumeWork:
    """A Kind of undertaking."""

    log = Logger()
    call, operation = "VM.resume", "resume"
    undone = "the VM is Suspended, with its image."

    def __init__(self, records: Records, machines: Machines, domains: IDomainDriver, images: SuspendVDIs) -> None:
        self._records = records
        self._machines = machines
        self._domains = domains
        self._images = images

    async def read(self, plan: Plan, built: Callable[[], None]) -> None:
        """Before the decision: the new domain has read the whole image, and is paused; `built` is told when there is
        a domain. SuspendImageNotAccessible, VdiInUse, DomainError."""
        self._machines.set_domain(plan.vm, plan.domain)
        await self._records.flush()  # a daemon that is killed has to know of this domain
        path = await self._images.shows(plan).view_open(plan.vdi)
        descriptor = await self._open_image(plan, path)
        try:
            attachments = await self._machines.attach_disks(plan.vm)
            spec = self._machines.spec_of(plan.vm, plan.domain, attachments)
            restoration = await self._domains.restore(spec, descriptor)
            built()
            try:
                await restoration.finished()
            except BaseException:
                await restoration.cancel()
                raise
        finally:
            await in_thread(os.close, descriptor)
        await self._images.shows(plan).view_close(plan.vdi)

    async def finish(self, plan: Plan) -> None:
        """The domain runs."""
        await self._let_run(plan)
        self._records.update("VM", plan.vm, suspend_VDI=NULL)
        await self._records.flush()

    async def undo(self, plan: Plan) -> None:
        """The VM is Suspended, with its image."""
        await self._machines.end_domain(plan.vm, plan.domain)
        self._records.update("VM", plan.vm, power_state="Suspended")  # a daemon that ends may have looked at it

    async def clear(self, plan: Plan, decided: bool) -> None:
        """Once it has run the image is nothing."""
        await (self._images.drop if decided else self._images.close)(plan)

    async def withdraw(self, plan: Plan, decided: bool) -> None:
        """The VM has another domain, or none."""
        await self._machines.end_strange(plan.vm, plan.domain)

    async def _open_image(self, plan: Plan, path: Path) -> int:
        vdi = self._images.ref(plan)
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
