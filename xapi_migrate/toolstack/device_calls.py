"""VBD.* and VIF.* as clients call them. Devices come and go while their VM is off; hot-plug is not done. CD drives are
records alone: no guest sees them, so that nothing about them can keep a VM from moving."""

from __future__ import annotations

from typing import Any

from xapi_migrate.errors import HandleInvalid, OperationNotAllowed, RemoteError
from xapi_migrate.mac import new_mac, of_one_interface
from xapi_migrate.refusals import (
    DeviceAttached,
    DeviceDetached,
    DeviceExists,
    MacInvalid,
    VbdIsEmpty,
    VbdNotEmpty,
    VbdNotRemovable,
)
from xapi_migrate.store.interfaces import NULL, Record
from xapi_migrate.store.records import Records
from xapi_migrate.toolstack.operations import Operations
from xapi_migrate.xenapi.calls import CallContext

MOST_DEVICES = 16


class DeviceCalls:
    def __init__(self, records: Records, operations: Operations) -> None:
        self._records = records
        self._operations = operations

    def _halted(self, vm: str) -> None:
        if vm == NULL:
            raise HandleInvalid("VM", vm)
        self._operations.require_off(vm)

    def VM_get_allowed_VBD_devices(self, call: CallContext, vm: str) -> list[str]:
        used = {self._records.get("VBD", vbd)["userdevice"] for vbd in self._records.get("VM", vm)["VBDs"]}
        return [str(number) for number in range(MOST_DEVICES) if str(number) not in used]

    def VM_get_allowed_VIF_devices(self, call: CallContext, vm: str) -> list[str]:
        used = {self._records.get("VIF", vif)["device"] for vif in self._records.get("VM", vm)["VIFs"]}
        return [str(number) for number in range(MOST_DEVICES) if str(number) not in used]

    # -- VBD --------------------------------------------------------------------------------------

    def VBD_create(self, call: CallContext, args: dict[str, Any]) -> str:
        given = dict(args)
        vm = given.get("VM", NULL)
        self._halted(vm)
        free = self.VM_get_allowed_VBD_devices(call, vm)
        if given.get("userdevice", "autodetect") in ("", "autodetect"):
            given["userdevice"] = free[0] if free else ""
        if given["userdevice"] not in free:
            raise DeviceExists(vm, given["userdevice"])
        given.pop("currently_attached", None)
        given.setdefault("type", "Disk")
        given.setdefault("mode", "RO" if given["type"] == "CD" else "RW")
        if given["type"] == "CD" and given["mode"] != "RO":
            raise RemoteError(["VBD_CDS_MUST_BE_READONLY"], "A CD drive is read-only.")
        given["empty"] = given.get("VDI", NULL) == NULL
        if given["empty"] and given["type"] != "CD":
            raise HandleInvalid("VDI", NULL)
        return self._records.create("VBD", **given)

    def VBD_destroy(self, call: CallContext, self_: str) -> None:
        self._halted(self._records.get("VBD", self_)["VM"])
        self._records.destroy("VBD", self_)

    def VBD_plug(self, call: CallContext, self_: str) -> None:
        self._plug("VBD", self_)

    def VBD_unplug(self, call: CallContext, self_: str) -> None:
        self._unplug("VBD", self_)

    def VBD_unplug_force(self, call: CallContext, self_: str) -> None:
        self._unplug("VBD", self_)

    def VBD_insert(self, call: CallContext, vbd: str, vdi: str) -> None:
        if not self._drive(vbd)["empty"]:
            raise VbdNotEmpty(vbd)
        self._records.update("VBD", vbd, VDI=vdi, empty=False)

    def VBD_eject(self, call: CallContext, vbd: str) -> None:
        if self._drive(vbd)["empty"]:
            raise VbdIsEmpty(vbd)
        self._records.update("VBD", vbd, VDI=NULL, empty=True)

    def VBD_assert_attachable(self, call: CallContext, self_: str) -> None:
        self._halted(self._records.get("VBD", self_)["VM"])

    def _drive(self, vbd: str) -> Record:
        record = self._records.get("VBD", vbd)
        if record["type"] != "CD":
            raise VbdNotRemovable(vbd)
        self._halted(record["VM"])
        return record

    # -- VIF --------------------------------------------------------------------------------------

    def VIF_create(self, call: CallContext, args: dict[str, Any]) -> str:
        given = dict(args)
        vm = given.get("VM", NULL)
        self._halted(vm)
        if given.get("network", NULL) == NULL:
            raise HandleInvalid("network", NULL)
        free = self.VM_get_allowed_VIF_devices(call, vm)
        if given.get("device", "autodetect") in ("", "autodetect"):
            given["device"] = free[0] if free else ""
        if given["device"] not in free:
            raise DeviceExists(vm, given["device"])
        given.pop("currently_attached", None)
        if not given.get("MAC"):
            given["MAC"] = new_mac()
        elif not of_one_interface(given["MAC"]):
            raise MacInvalid(given["MAC"])
        if given.get("MTU", 0) <= 0:
            given["MTU"] = self._records.get("network", given["network"])["MTU"]
        return self._records.create("VIF", **given)

    def VIF_destroy(self, call: CallContext, self_: str) -> None:
        self._halted(self._records.get("VIF", self_)["VM"])
        self._records.destroy("VIF", self_)

    def VIF_move(self, call: CallContext, self_: str, network: str) -> None:
        self._halted(self._records.get("VIF", self_)["VM"])
        self._records.update("VIF", self_, network=network)

    def VIF_plug(self, call: CallContext, self_: str) -> None:
        self._plug("VIF", self_)

    def VIF_unplug(self, call: CallContext, self_: str) -> None:
        self._unplug("VIF", self_)

    def VIF_unplug_force(self, call: CallContext, self_: str) -> None:
        self._unplug("VIF", self_)

    # -- both -------------------------------------------------------------------------------------

    def _plug(self, cls: str, ref: str) -> None:
        record = self._records.get(cls, ref)
        if record["currently_attached"]:
            raise DeviceAttached(ref)
        self._refuse(record["VM"])

    def _unplug(self, cls: str, ref: str) -> None:
        record = self._records.get(cls, ref)
        if not record["currently_attached"]:
            raise DeviceDetached(ref)
        self._refuse(record["VM"])

    def _refuse(self, vm: str) -> None:
        self._operations.check_free(vm)
        self._operations.require(vm, "Running")
        raise OperationNotAllowed("Devices of running VMs are not changed by this server.")
