"""Fields out of which a VM's virtual hardware is made. The receiver of a migration makes it once more, and it has to be
what the running guest sees: so they change while the VM is Halted and not busy, and at no other time."""

from __future__ import annotations

from typing import Any

from xapi_migrate.errors import InvalidValue, VdiInUse
from xapi_migrate.refusals import DeviceExists
from xapi_migrate.store.records import Records
from xapi_migrate.toolstack.operations import Operations
from xapi_migrate.xenapi.generic import Check

PINNED = ("machine", "cpu")
"""Keys of VM.platform that are hardware; the others are notes of clients."""


class HardwareFields:
    def __init__(self, records: Records, operations: Operations) -> None:
        self._records = records
        self._operations = operations

    def checks(self) -> dict[tuple[str, str], Check]:
        """What the dispatcher asks before a field is changed. The checks raise VmBadPowerState,
        OtherOperationInProgress, InvalidValue, DeviceExists, VdiInUse."""
        return {
            ("VM", "VCPUs_max"): self._number("VCPUs_max", 1),
            ("VM", "memory_static_max"): self._number("memory_static_max", 0),
            ("VM", "platform"): self._platform,
            ("VM", "is_a_template"): self._template,
            ("VBD", "userdevice"): self._userdevice,
            ("VBD", "mode"): self._mode,
            ("VDI", "read_only"): self._read_only,
        }

    def _number(self, field: str, least: int) -> Check:
        def check(vm: str, value: int) -> None:
            self._operations.require_off(vm)
            if value < least:
                raise InvalidValue(field, str(value))

        return check

    def _platform(self, vm: str, value: dict[str, str]) -> None:
        now = self._records.get("VM", vm)["platform"]
        if any(value.get(key) != now.get(key) for key in PINNED):
            self._operations.require_off(vm)

    def _template(self, vm: str, value: bool) -> None:
        if value:
            self._operations.check_blocked(vm, "make_into_template")
        self._operations.require_off(vm)

    def _userdevice(self, vbd: str, value: str) -> None:
        record = self._records.get("VBD", vbd)
        vm = self._operations.require_off(record["VM"])
        if any(ref != vbd and self._records.get("VBD", ref)["userdevice"] == value for ref in vm["VBDs"]):
            raise DeviceExists(record["VM"], value)

    def _mode(self, vbd: str, value: Any) -> None:
        record = self._records.get("VBD", vbd)
        if value != record["mode"]:
            self._operations.require_off(record["VM"])

    def _read_only(self, vdi: str, value: bool) -> None:
        record = self._records.get("VDI", vdi)
        if value == record["read_only"]:
            return
        for vbd in record["VBDs"]:
            used = self._records.get("VBD", vbd)
            self._operations.check_free(used["VM"])
            if used["currently_attached"]:
                raise VdiInUse(vdi, "attached to a running VM")
