"""VM.*, VBD.* and VIF.* as clients call them."""

from __future__ import annotations

from typing import Any

from twisted.internet.interfaces import IReactorTime

from xapi_migrate.errors import HandleInvalid, InvalidValue, NotImplementedHere, RemoteError
from xapi_migrate.refusals import SrOperationNotSupported
from xapi_migrate.store.records import Records
from xapi_migrate.toolstack.machines import Machines
from xapi_migrate.toolstack.operations import Operations
from xapi_migrate.toolstack.suspending import Suspending
from xapi_migrate.xenapi.calls import CallContext

CLEAN_SHUTDOWN_SECONDS = 60.0
MOST_DEVICES = 16


class MachineCalls:
    """`host` is this host's ref."""

    def __init__(
        self, records: Records, machines: Machines, suspending: Suspending, operations: Operations,
        clock: IReactorTime, host: str,
    ) -> None:  # fmt: skip
        self._records = records
        self._machines = machines
        self._suspending = suspending
        self._host = host
        self._operations = operations
        self._clock = clock

    # -- VM -----------------------------------------------------------------------------------

    def VM_create(self, call: CallContext, args: dict[str, Any]) -> str:
        given = dict(args)
        for made_here in ("power_state", "suspend_VDI", "last_booted_record", "last_boot_CPU_flags"):
            given.pop(made_here, None)
        memory = given.get("memory_static_max", 0)
        if memory < 0 or given.get("VCPUs_max", 0) < 0:
            raise InvalidValue("memory_static_max", str(memory))
        given.setdefault("VCPUs_at_startup", given.get("VCPUs_max", 0))
        # Xen Orchestra writes it into every VM that lacks it
        given["platform"] = {"cores-per-socket": "1", **given.get("platform", {})}
        return self._records.create("VM", domid=-1, **given)

    async def VM_destroy(self, call: CallContext, self_: str) -> None:
        self._operations.check_blocked(self_, "destroy")
        self._operations.check_free(self_)
        record = self._operations.require(self_, "Halted")
        for cls, field in (("VBD", "VBDs"), ("VIF", "VIFs"), ("console", "consoles")):
            for ref in record[field]:
                self._records.destroy(cls, ref)
        self._records.destroy("VM", self_)

    async def VM_start(self, call: CallContext, vm: str, start_paused: bool, force: bool) -> None:
        record = self._operations.require(vm, "Halted")
        if record["is_a_template"]:
            raise RemoteError(["VM_IS_TEMPLATE", vm, "start"], f"The VM {vm} is a template and cannot be started.")
        await self._machines.start_halted(vm, call.task.ref, start_paused)

    async def VM_start_on(self, call: CallContext, vm: str, host: str, start_paused: bool, force: bool) -> None:
        if host != self._host:
            raise HandleInvalid("host", host)
        await self.VM_start(call, vm, start_paused, force)

    async def VM_clean_shutdown(self, call: CallContext, vm: str) -> None:
        self._operations.require(vm, "Running")
        with self._operations.operation(vm, "clean_shutdown", call.task.ref):
            await self._power_off(vm)

    async def _power_off(self, vm: str) -> None:
        try:
            await self._machines.shutdown(vm, CLEAN_SHUTDOWN_SECONDS, self._clock)
        except TimeoutError:
            text = f"The guest of VM {vm} did not shut down within {CLEAN_SHUTDOWN_SECONDS:g} seconds."
            raise RemoteError(["VM_SHUTDOWN_TIMEOUT", vm, f"{CLEAN_SHUTDOWN_SECONDS:g}"], text) from None

    async def VM_hard_shutdown(self, call: CallContext, vm: str) -> None:
        record = self._operations.require(vm, "Running", "Paused", "Suspended")
        with self._operations.operation(vm, "hard_shutdown", call.task.ref):
            if record["power_state"] == "Suspended":
                await self._suspending.forget(vm)
            else:
                await self._machines.destroy_domain(vm)

    async def VM_clean_reboot(self, call: CallContext, vm: str) -> None:
        """A new domain, as after a shutdown and a start."""
        self._operations.require(vm, "Running")
        with self._operations.operation(vm, "clean_reboot", call.task.ref):
            await self._power_off(vm)
            await self._machines.start(vm)

    async def VM_hard_reboot(self, call: CallContext, vm: str) -> None:
        self._operations.require(vm, "Running", "Paused")
        with self._operations.operation(vm, "hard_reboot", call.task.ref):
            await self._machines.destroy_domain(vm)
            await self._machines.start(vm)

    async def VM_suspend(self, call: CallContext, vm: str) -> None:
        await self._suspending.suspend(vm, call.task)

    async def VM_resume(self, call: CallContext, vm: str, start_paused: bool, force: bool) -> None:
        await self._suspending.resume(vm, start_paused, call.task)

    async def VM_resume_on(self, call: CallContext, vm: str, host: str, start_paused: bool, force: bool) -> None:
        if host != self._host:
            raise HandleInvalid("host", host)
        await self._suspending.resume(vm, start_paused, call.task)

    async def VM_pause(self, call: CallContext, vm: str) -> None:
        self._operations.require(vm, "Running")
        with self._operations.operation(vm, "pause", call.task.ref):
            await self._machines.pause(vm)

    async def VM_unpause(self, call: CallContext, vm: str) -> None:
        self._operations.require(vm, "Paused")
        with self._operations.operation(vm, "unpause", call.task.ref):
            await self._machines.unpause(vm)

    def VM_set_memory_limits(
        self, call: CallContext, self_: str, static_min: int, static_max: int, dynamic_min: int, dynamic_max: int
    ) -> None:
        self._operations.require_off(self_)
        if not 0 <= static_min <= dynamic_min <= dynamic_max <= static_max:
            text = "Memory limits must satisfy static_min <= dynamic_min <= dynamic_max <= static_max."
            raise RemoteError(["MEMORY_CONSTRAINT_VIOLATION", text], text)
        self._records.update(
            "VM", self_, memory_static_min=static_min, memory_static_max=static_max, memory_dynamic_min=dynamic_min,
            memory_dynamic_max=dynamic_max,
        )  # fmt: skip

    # -- what no SR here does -----------------------------------------------------------------

    def VM_snapshot(self, call: CallContext, vm: str, new_name: str, ignore_vdis: list[str]) -> None:
        self._refuse(vm, "VDI_SNAPSHOT")

    def VM_checkpoint(self, call: CallContext, vm: str, new_name: str) -> None:
        self._refuse(vm, "VDI_SNAPSHOT")

    def VM_clone(self, call: CallContext, vm: str, new_name: str) -> None:
        self._refuse(vm, "VDI_CLONE")

    def _refuse(self, vm: str, operation: str) -> None:
        """Named is the SR of the VM's first disk; one without disks is not copied either."""
        for vbd in self._machines.disks(vm):
            vdi = self._records.get("VBD", vbd)["VDI"]
            raise SrOperationNotSupported(self._records.get("VDI", vdi)["SR"], operation)
        raise NotImplementedHere(operation)

    def VM_update_allowed_operations(self, call: CallContext, self_: str) -> None:
        """They are true always."""
