"""Every check of VM.migrate_send that costs nothing, on the sender's side, before the first byte. The first that fails
wins; they come in the order in which xapi makes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import attrs

from xapi_migrate.errors import (
    HandleInvalid,
    IncompatibleHost,
    NotEnoughMemory,
    OperationNotAllowed,
    OtherOperationInProgress,
    SrFull,
    SrNotAttached,
    VdiMissing,
    VdiNotInMap,
    VifNotInMap,
    VmBadPowerState,
)
from xapi_migrate.migration.engine import MOVABLE
from xapi_migrate.migration.interfaces import PROTOCOL_VERSION
from xapi_migrate.refusals import (
    HostCannotAttachNetwork,
    HostDisabled,
    NotEnoughCpus,
    OperationBlocked,
    OtherVersion,
    VdiCannotMove,
    VmHasDevice,
    VmHasNoSuspendVdi,
    VmIsImmobile,
    VmIsSnapshot,
    VmIsTemplate,
)
from xapi_migrate.store.interfaces import NULL, IRecords, Record
from xapi_migrate.toolstack.destination import About, Destination

_DEVICES = {
    "VGPUs": ("virtual GPU", "VM_HAS_VGPU"),
    "VUSBs": ("USB device of its host", "VM_HAS_VUSBS"),
    "attached_PCIs": ("PCI device of its host", "VM_HAS_PCI_ATTACHED"),
}


@attrs.frozen
class Wish:
    """What a client asks for. `complete`: the maps are meant to be whole; a client that only looks which hosts would
    do (XenCenter) sends them empty."""

    vm: str
    destination: Destination
    vdi_map: Mapping[str, str]
    vif_map: Mapping[str, str]
    copy: bool = False
    complete: bool = True


class SenderChecks:
    """`host` is this host's ref; `stream` names the form of its hypervisor's memory stream."""

    def __init__(self, records: IRecords, host: str, stream: Callable[[], str]) -> None:
        self._records = records
        self._host = host
        self._stream = stream

    def check(self, wish: Wish) -> None:
        """Nothing is said if the VM may go. The errors say what is in the way."""
        record = self._records.get("VM", wish.vm)
        self.check_vm(wish.vm, record, "migrate_send")
        self._check_copy(wish, record)
        if wish.destination.host == self._host:
            for vdi in wish.vdi_map:
                self.check_motion(wish.vm, vdi)
            if all(self._records.get("VDI", vdi)["SR"] == sr for vdi, sr in wish.vdi_map.items()):
                raise OperationNotAllowed(f"The VM {wish.vm} is on that host already, and so are its disks.")
            return  # it stays where it is, and only its disks go to other SRs
        about = wish.destination.about
        if about is not None:
            self._check_host(wish, record, about)
        self._check_vifs(wish, record, about)
        self._check_vdis(wish, about)

    def check_motion(self, vm: str, vdi: str) -> None:
        """What is in the way of moving a disk of the VM to another SR of this host."""
        self.check_vm(vm, self._records.get("VM", vm), "migrate_send")
        self._check_vdi(vdi)

    def check_vm(self, vm: str, record: Record, operation: str, states: tuple[str, ...] = MOVABLE) -> None:
        """What is in the VM's own way."""
        if operation in record["blocked_operations"]:
            raise OperationBlocked(vm, record["blocked_operations"][operation])
        if record["power_state"] not in states:
            raise VmBadPowerState(vm, ", ".join(states).lower(), record["power_state"].lower())
        for task, other in record["current_operations"].items():
            raise OtherOperationInProgress("VM", vm, other, task)
        if record["is_a_snapshot"]:
            raise VmIsSnapshot(vm, operation)
        if record["is_a_template"]:
            raise VmIsTemplate(vm, operation)
        if record["platform"].get("nomigrate") in ("true", "1"):
            raise VmIsImmobile(vm)
        if record["is_control_domain"]:
            raise OperationNotAllowed(f"The VM {vm} is a control domain, which cannot be migrated.")
        for field, (device, code) in _DEVICES.items():
            if record.get(field):
                raise VmHasDevice(vm, device, code)
        for vdi in self.images(vm):
            self._check_vdi(vdi)

    def disks(self, vm: str) -> Iterator[tuple[str, str]]:
        """(VBD, VDI) of each disk that will move."""
        for vbd in self._records.get("VM", vm)["VBDs"]:
            record = self._records.get("VBD", vbd)
            if record["type"] == "Disk" and not record["empty"] and record["VDI"] != NULL:
                yield vbd, record["VDI"]

    def images(self, vm: str) -> list[str]:
        """The VDIs of those disks, and of a Suspended VM the one with its memory. VmHasNoSuspendVdi."""
        record, found = self._records.get("VM", vm), [vdi for _, vdi in self.disks(vm)]
        if record["power_state"] != "Suspended":
            return found
        if record["suspend_VDI"] == NULL:
            raise VmHasNoSuspendVdi(vm)
        return [*found, record["suspend_VDI"]]

    def _check_vdi(self, vdi: str) -> None:
        record = self._records.get("VDI", vdi)
        attached = self._records.find("PBD", SR=record["SR"], host=self._host, currently_attached=True)
        if not attached:
            raise SrNotAttached(record["SR"])
        if record["missing"]:
            raise VdiMissing(record["SR"], vdi)
        if record["sharable"]:
            raise VdiCannotMove(vdi, "other VMs may be using it", "VDI_IS_SHARABLE")
        if record["on_boot"] == "reset":
            code = "VDI_ON_BOOT_MODE_INCOMPATIBLE_WITH_OPERATION"
            raise VdiCannotMove(vdi, "it is set back at each start", code)
        if record["cbt_enabled"]:
            raise VdiCannotMove(vdi, "its changes are being tracked", "VDI_CBT_ENABLED")
        if "key_hash" in record["sm_config"]:
            raise VdiCannotMove(vdi, "it is encrypted", "VDI_IS_ENCRYPTED")

    def _check_copy(self, wish: Wish, record: Record) -> None:
        if not wish.copy:
            return
        if record["power_state"] != "Halted":
            raise VmBadPowerState(wish.vm, "halted", record["power_state"].lower())
        if wish.destination.host in self._records.refs("host"):
            raise OperationNotAllowed("VMs are copied to other pools only.")

    def _check_host(self, wish: Wish, record: Record, about: About) -> None:
        host = wish.destination.host
        if about.protocol != PROTOCOL_VERSION:
            raise OtherVersion(host, wish.vm)
        if not about.enabled:
            raise HostDisabled(host)
        if record["power_state"] == "Halted":
            return
        if about.stream != self._stream():
            text = f"its hypervisor reads {about.stream}, this host's writes {self._stream()}"
            raise IncompatibleHost(wish.vm, host, text)
        if record["power_state"] == "Suspended":
            return
        if record["VCPUs_max"] > about.cpus and record["platform"].get("vcpu-unrestricted") not in ("true", "1"):
            raise NotEnoughCpus(record["VCPUs_max"], about.cpus)
        if record["memory_static_max"] > about.memory_free:
            raise NotEnoughMemory(record["memory_static_max"], about.memory_free)

    def _check_vifs(self, wish: Wish, record: Record, about: About | None) -> None:
        for vif in record["VIFs"]:
            network = wish.vif_map.get(vif)
            if network is None:
                if wish.complete or wish.vif_map:
                    raise VifNotInMap(vif)
            elif about is not None and network not in about.networks:
                raise HandleInvalid("network", network)
            elif about is not None and network in about.unattachable:
                raise HostCannotAttachNetwork(wish.destination.host, network)

    def _check_vdis(self, wish: Wish, about: About | None) -> None:
        wanted: dict[str, int] = {}
        for vdi in self.images(wish.vm):
            sr = wish.vdi_map.get(vdi)
            if sr is None:
                if vdi == self._records.get("VM", wish.vm)["suspend_VDI"]:
                    continue  # the receiver has a place for those
                if wish.complete or wish.vdi_map:
                    raise VdiNotInMap(vdi)
            elif about is not None:
                if sr not in about.srs:
                    raise HandleInvalid("SR", sr)
                if not about.srs[sr].attached:
                    raise SrNotAttached(sr)
                if wish.copy or not self._stays(vdi, about.srs[sr].uuid):
                    wanted[sr] = wanted.get(sr, 0) + self._records.get("VDI", vdi)["virtual_size"]
        for sr, size in wanted.items():
            free = about.srs[sr].free if about else -1
            if 0 <= free < size:
                raise SrFull(sr, size, free)

    def moving(self, wish: Wish) -> dict[str, str]:
        """The VDI map without the disks whose SR is the one where they are: the receiver finds those there. Of a copy
        every disk is a new one."""
        if wish.copy:
            return dict(wish.vdi_map)
        about = wish.destination.about
        return {
            vdi: sr
            for vdi, sr in wish.vdi_map.items()
            if about is None or sr not in about.srs or not self._stays(vdi, about.srs[sr].uuid)
        }

    def _stays(self, vdi: str, sr_uuid: str) -> bool:
        return bool(self._records.get("SR", self._records.get("VDI", vdi)["SR"])["uuid"] == sr_uuid)
