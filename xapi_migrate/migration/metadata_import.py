"""Step 2.1, the receiver's half: what a document says about the VM that is to come.

Nothing of it is trusted. Only the fields and keys named here are taken over, each checked; no path, no
reference except `maps_to`, no device setting crosses.
"""

from __future__ import annotations

import re
from typing import Any

import attrs

from ..errors import ImportError_
from ..mac import MAC
from ..uuids import UUID
from .metadata_xml import read_value

REF = re.compile(r"OpaqueRef:[0-9A-Za-z-]{1,64}")
PROOF = re.compile(r"[0-9a-f]{64}")
HARDWARE_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
MOST_DISKS = 64
MOST_NICS = 16
LARGEST_DISK = 1 << 46

# What a client may have set and a guest may need; never keys that name host files, devices or driver domains.
VM_STRINGS = ("name_label", "name_description", "HVM_boot_policy", "PV_bootloader", "PV_args")
VM_TEXT_MAPS = {
    "platform": re.compile(
        r"acpi|apic|nx|pae|viridian|timeoffset|device_id|videoram|vga|usb|cores-per-socket|vcpu-unrestricted"
    ),
    "other_config": re.compile(
        r"auto_poweron|folder|mac_seed|base_template_name|linux_template|XenCenter\..*|xo:.*|xe:.*"
    ),
    "blocked_operations": re.compile(
        r"start|start_on|clean_shutdown|hard_shutdown|shutdown|clean_reboot|hard_reboot|pause|unpause|suspend|resume"
        r"|resume_on|migrate_send|pool_migrate|destroy|snapshot|checkpoint|clone|copy|export|make_into_template"
    ),
    "HVM_boot_params": re.compile(r"order"),
    "VCPUs_params": re.compile(r"weight|cap|mask"),
    "xenstore_data": re.compile(r"vm-data.*"),
}
VDI_OTHER_CONFIG = re.compile(r"content_id|folder|XenCenter\..*|xo:.*")


@attrs.frozen
class IncomingDisk:
    """One disk: `maps_to` the SR ref it was mapped to, "" if it was not; sizes in bytes. `userdevice` is "" for a
    suspend image."""

    userdevice: str
    bootable: bool
    read_only: bool
    vdi_uuid: str
    sr_uuid: str
    virtual_size: int
    name_label: str
    name_description: str
    other_config: dict[str, str]
    maps_to: str


@attrs.frozen
class IncomingNic:
    device: str
    mac: str
    mtu: int
    network_label: str
    maps_to: str


@attrs.frozen
class IncomingVM:
    """A VM that is to come: `fields` go into its record as they are; `stream` names the memory stream's format."""

    ref: str
    uuid: str
    power_state: str
    memory: int
    vcpus: int
    machine: str
    cpu: str
    stream: str
    protocol: int
    leave_paused: bool
    member: str
    fields: dict[str, Any]
    disks: tuple[IncomingDisk, ...]
    """In the order of GET disk/N: by userdevice, then a Suspended VM's image."""
    drives: tuple[str, ...]
    """The userdevices of its CD drives, which come empty."""
    nics: tuple[IncomingNic, ...]
    is_a_template: bool = False


def import_vm(document: bytes, also: re.Pattern[str] | None = None) -> IncomingVM:
    """Read and check a document. `also`: keys of the VM's other_config that are taken too. ImportError_ names what is
    wrong with it."""
    value = read_value(document)
    if not isinstance(value, dict) or not isinstance(value.get("objects"), list):
        raise ImportError_("it holds no objects")
    objects: dict[str, tuple[str, dict[str, Any]]] = {}
    for item in value["objects"]:
        if isinstance(item, dict) and isinstance(item.get("snapshot"), dict):
            objects[str(item.get("id"))] = (str(item.get("class")), item["snapshot"])
    vms = [snapshot for cls, snapshot in objects.values() if cls == "VM" and snapshot.get("is_a_snapshot") is not True]
    if len(vms) != 1:
        raise ImportError_(f"it holds {len(vms)} VMs instead of one")
    vm = vms[0]
    about = value.get("migration")
    about = about if isinstance(about, dict) else {}
    power_state = _text(vm, "power_state", 16)
    if power_state not in ("Halted", "Suspended", "Running", "Paused"):
        raise ImportError_(f"its VM is {power_state!r}, which is no state that a VM can be received in")
    memory = _number(vm, "memory_static_max", 1 << 20, 1 << 46)
    return IncomingVM(
        ref=_matching(about.get("vm_ref"), REF, ""),
        uuid=_uuid(vm, "VM"),
        power_state=power_state,
        memory=memory,
        vcpus=_number(vm, "VCPUs_max", 1, 512),
        machine=_matching(about.get("machine"), HARDWARE_NAME, ""),
        cpu=_matching(about.get("cpu"), HARDWARE_NAME, ""),
        stream=_matching(about.get("stream"), HARDWARE_NAME, ""),
        protocol=_protocol(about.get("protocol")),
        leave_paused=about.get("leave_paused") is True,
        member=_matching(about.get("member"), PROOF, ""),
        fields=_vm_fields(vm, memory, also),
        disks=_disks(vm, about, objects) + _suspend_image(vm, power_state, objects),
        drives=_drives(objects),
        nics=_nics(objects),
        is_a_template=vm.get("is_a_template") is True,
    )


def _vm_fields(vm: dict[str, Any], memory: int, also: re.Pattern[str] | None) -> dict[str, Any]:
    fields: dict[str, Any] = {name: _text(vm, name, 4096) for name in VM_STRINGS}
    for name, allowed in VM_TEXT_MAPS.items():
        fields[name] = _text_map(vm.get(name), allowed)
    if also is not None:
        fields["other_config"].update(_text_map(vm.get("other_config"), also))
    for name in ("memory_static_max", "memory_dynamic_max", "memory_dynamic_min", "memory_static_min"):
        fields[name] = min(memory, _number(vm, name, 0, 1 << 46))
    for name, most in (("VCPUs_max", 512), ("VCPUs_at_startup", 512), ("user_version", 1 << 31)):
        fields[name] = _number(vm, name, 0, most)
    for name, choices in (
        ("actions_after_shutdown", ("destroy", "restart")),
        ("actions_after_reboot", ("destroy", "restart")),
        ("actions_after_crash", ("destroy", "coredump_and_destroy", "restart", "coredump_and_restart", "preserve")),
    ):
        if vm.get(name) in choices:
            fields[name] = vm[name]
    tags = vm.get("tags")
    fields["tags"] = [tag[:256] for tag in tags[:100] if isinstance(tag, str)] if isinstance(tags, list) else []
    return fields


def _disks(
    vm: dict[str, Any], about: dict[str, Any], objects: dict[str, tuple[str, dict[str, Any]]]
) -> tuple[IncomingDisk, ...]:
    wanted = about.get("disks")
    vbds = [snapshot for cls, snapshot in objects.values() if cls == "VBD" and snapshot.get("type", "Disk") == "Disk"]
    if isinstance(wanted, list):
        vbds = [objects[ref][1] for ref in wanted if isinstance(ref, str) and objects.get(ref, ("", {}))[0] == "VBD"]
    vbds = sorted(vbds, key=lambda vbd: _number(vbd, "userdevice", 0, 255))
    if len(vbds) > MOST_DISKS:
        raise ImportError_(f"its VM has {len(vbds)} disks, more than the {MOST_DISKS} that are taken")
    found: list[IncomingDisk] = []
    for vbd in vbds:
        device = str(_number(vbd, "userdevice", 0, 255))
        disk = _disk(vbd.get("VDI"), objects, f"the VDI of device {device}")
        found.append(
            attrs.evolve(
                disk, userdevice=device, bootable=vbd.get("bootable") is True, read_only=vbd.get("mode") == "RO"
            )
        )
    devices = [disk.userdevice for disk in found]
    if len(set(devices)) != len(devices):
        raise ImportError_("two of its disks have the same device number")
    return tuple(found)


def _suspend_image(
    vm: dict[str, Any], power_state: str, objects: dict[str, tuple[str, dict[str, Any]]]
) -> tuple[IncomingDisk, ...]:
    """One, or none."""
    if power_state != "Suspended":
        return ()
    return (_disk(vm.get("suspend_VDI"), objects, "the suspend VDI of its Suspended VM"),)


def _disk(vdi_id: Any, objects: dict[str, tuple[str, dict[str, Any]]], what: str) -> IncomingDisk:
    cls, vdi = objects.get(str(vdi_id), ("", {}))
    if cls != "VDI":
        raise ImportError_(f"it lacks {what}")
    _, sr = objects.get(str(vdi.get("SR")), ("", {}))
    size = _number(vdi, "virtual_size", 512, LARGEST_DISK)
    if size % 512:
        raise ImportError_(f"a disk's size, {size}, is no multiple of 512")
    other = vdi.get("other_config")
    return IncomingDisk(
        userdevice="",
        bootable=False,
        read_only=False,
        vdi_uuid=_uuid(vdi, "VDI"),
        sr_uuid=_matching(sr.get("uuid"), UUID, ""),
        virtual_size=size,
        name_label=_text(vdi, "name_label", 4096),
        name_description=_text(vdi, "name_description", 4096),
        other_config=_text_map(other, VDI_OTHER_CONFIG),
        maps_to=_matching(other.get("maps_to"), REF, "") if isinstance(other, dict) else "",
    )


def _drives(objects: dict[str, tuple[str, dict[str, Any]]]) -> tuple[str, ...]:
    found = {
        str(_number(snapshot, "userdevice", 0, 255))
        for cls, snapshot in objects.values()
        if cls == "VBD" and snapshot.get("type") == "CD"
    }
    return tuple(sorted(found, key=int))


def _nics(objects: dict[str, tuple[str, dict[str, Any]]]) -> tuple[IncomingNic, ...]:
    vifs = [snapshot for cls, snapshot in objects.values() if cls == "VIF"]
    if len(vifs) > MOST_NICS:
        raise ImportError_(f"its VM has {len(vifs)} network interfaces, more than the {MOST_NICS} that are taken")
    found: list[IncomingNic] = []
    for vif in vifs:
        _, network = objects.get(str(vif.get("network")), ("", {}))
        other = vif.get("other_config")
        mac = _matching(vif.get("MAC"), MAC, "")
        if not mac:
            raise ImportError_("one of its network interfaces has no MAC address")
        found.append(
            IncomingNic(
                device=str(_number(vif, "device", 0, 255)),
                mac=mac.lower(),
                mtu=_number(vif, "MTU", 68, 65535) if vif.get("MTU", "0") != "0" else 1500,
                network_label=_text(network, "name_label", 4096),
                maps_to=_matching(other.get("maps_to"), REF, "") if isinstance(other, dict) else "",
            )
        )
    return tuple(found)


def _text(record: dict[str, Any], name: str, most: int) -> str:
    value = record.get(name, "")
    if not isinstance(value, str) or len(value) > most:
        raise ImportError_(f"{name} is not a text of at most {most} characters")
    return value


def _number(record: dict[str, Any], name: str, least: int, most: int) -> int:
    value = record.get(name, "0")
    if not isinstance(value, str) or not re.fullmatch(r"-?[0-9]{1,19}", value) or not least <= int(value) <= most:
        raise ImportError_(f"{name} is not a number from {least} to {most}")
    return int(value)


def _protocol(value: object) -> int:
    """A document that names none is of the first version."""
    if value is None:
        return 1
    if not re.fullmatch(r"[0-9]{1,9}", str(value)):
        raise ImportError_("its protocol is not a number")
    return int(str(value))


def _uuid(record: dict[str, Any], cls: str) -> str:
    value = record.get("uuid")
    if not isinstance(value, str) or not UUID.fullmatch(value):
        raise ImportError_(f"its {cls} has no valid uuid")
    return value


def _matching(value: Any, form: re.Pattern[str], otherwise: str) -> str:
    return value if isinstance(value, str) and form.fullmatch(value) else otherwise


def _text_map(value: Any, allowed: re.Pattern[str]) -> dict[str, str]:
    if not isinstance(value, dict):
        return {}
    return {
        key: text
        for key, text in list(value.items())[:200]
        if allowed.fullmatch(key) and isinstance(text, str) and len(text) <= 4096
    }
