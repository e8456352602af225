"""VM.suspend: a domain stands still and its memory goes into a fresh VDI."""

from __future__ import annotations

import os

from xapi_migrate.domains.interfaces import GONE, IDomainDriver
from xapi_migrate.errors import DomainError, InternalError
from xapi_migrate.processes.in_thread import in_thread
from xapi_migrate.store.interfaces import NULL
from xapi_migrate.store.records import Records
from xapi_migrate.toolstack import suspend_image
from xapi_migrate.toolstack.machines import Machines
from xapi_migrate.toolstack.storage import Storage
from xapi_migrate.toolstack.suspend_vdi import Plan, SuspendVDIs


class SuspendWork:
    """A Kind of undertaking."""

    call, operation = "VM.suspend", "suspend"
    undone = "the VM runs on."

    def __init__(
        self, records: Records, storage: Storage, machines: Machines, domains: IDomainDriver, images: SuspendVDIs
    ) -> None:
        self._records = records
        self._storage = storage
        self._machines = machines
        self._domains = domains
        self._images = images

    async def write(self, plan: Plan) -> None:
        """Before the decision: the whole image is in the VDI, and the domain stands still. SrFull, DomainError,
        InternalError."""
        record = self._records.get("VM", plan.vm)
        size = suspend_image.size_for(record["memory_static_max"])
        sr = self._images.sr(plan)
        image = await self._storage.create_vdi(
            sr, plan.vdi, size, type="suspend", name_label="Suspend image",
            name_description=f"Suspend image of {record['name_label']}",
        )  # fmt: skip
        self._records.update("VM", plan.vm, suspend_VDI=image)  # nobody else may destroy it
        path = await self._images.shows(plan).view_open(plan.vdi)
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
        await self._images.shows(plan).view_close(plan.vdi)
        await self._records.flush()  # the image's record must be found by whoever finishes this after a crash

    async def finish(self, plan: Plan) -> None:
        """The VM is Suspended."""
        await self._machines.end_domain(plan.vm, plan.domain)
        if not self._images.ref(plan):
            await self._storage.scan(self._images.sr(plan))
        self._records.update("VM", plan.vm, power_state="Suspended", suspend_VDI=self._images.ref(plan) or NULL)
        await self._records.flush()

    async def undo(self, plan: Plan) -> None:
        """The VM runs."""
        try:
            if await self._domains.state(plan.domain) not in GONE:
                await self._domains.resume(plan.domain)
        except DomainError:
            if await self._domains.state(plan.domain) not in GONE:
                raise
        named = self._records.get("VM", plan.vm)["suspend_VDI"]
        if named == self._images.ref(plan) or not self._records.has("VDI", named):
            self._records.update("VM", plan.vm, suspend_VDI=NULL)

    async def clear(self, plan: Plan, decided: bool) -> None:
        """Undone, nothing is left of the image."""
        if not decided:
            await self._images.drop(plan)

    async def withdraw(self, plan: Plan, decided: bool) -> None:
        """The VM has another domain, or none."""
        await self._machines.end_strange(plan.vm, plan.domain)
