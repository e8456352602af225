"""What a lab's hosts are given over XenAPI: SRs, and a guest with two disks."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import attrs

from ..cli.failures import Refused
from ..testing.guests.ticker import Ticker

MIB = 1 << 20
NULL = "OpaqueRef:NULL"


@attrs.frozen
class Guest:
    """What the guest is. `memory` and `disk` (its first disk) in MiB; `filled` MiB at the end of the first
    disk hold bytes of no pattern, so that there is something to copy."""

    name_label: str = "demo"
    kind: str = "boot-sector"
    memory: int = 64
    disk: int = 128
    second_disk: int = 16
    filled: int = 16
    ticker: Ticker = Ticker()


def create_sr(session: Any, label: str, location: Path, format: str, shared: bool = False) -> str:
    """An SR of image files in a new folder, attached to the session's host. Its ref."""
    location.mkdir(parents=True, exist_ok=True)
    host = session.xenapi.session.get_this_host(session.handle)
    sr: str = session.xenapi.SR.create(
        host, {"location": str(location), "format": format}, "0", label, f"{format} images in {location}", "file",
        "user", shared, {},
    )  # fmt: skip
    return sr


def join_sr(session: Any, uuid: str, location: Path, format: str) -> None:
    """Attach another member's SR to the session's host too."""
    api = session.xenapi
    pbd = api.PBD.create({
        "host": api.session.get_this_host(session.handle), "SR": api.SR.get_by_uuid(uuid),
        "device_config": {"location": str(location), "format": format},
    })  # fmt: skip
    api.PBD.plug(pbd)


def create_vdi(session: Any, sr: str, label: str, size: int) -> str:
    """A VDI of `size` bytes; its ref."""
    vdi: str = session.xenapi.VDI.create({
        "name_label": label, "name_description": "", "SR": sr, "virtual_size": str(size), "type": "user",
        "sharable": False, "read_only": False, "other_config": {}, "xenstore_data": {}, "sm_config": {}, "tags": [],
    })  # fmt: skip
    return vdi


def create_vm(session: Any, guest: Guest) -> str:
    """A halted VM without disks; its ref."""
    memory = str(guest.memory * MIB)
    vm: str = session.xenapi.VM.create({
        "name_label": guest.name_label, "name_description": f"{guest.kind} guest of a lab", "user_version": "1",
        "is_a_template": False, "affinity": NULL, "memory_static_max": memory, "memory_static_min": memory,
        "memory_dynamic_max": memory, "memory_dynamic_min": memory, "memory_target": memory, "memory_overhead": "0",
        "VCPUs_params": {}, "VCPUs_max": "1", "VCPUs_at_startup": "1",
        "actions_after_shutdown": "destroy", "actions_after_reboot": "restart", "actions_after_crash": "destroy",
        "actions_after_softreboot": "soft_reboot", "PV_bootloader": "", "PV_kernel": "", "PV_ramdisk": "",
        "PV_args": "", "PV_bootloader_args": "", "PV_legacy_args": "",
        "HVM_boot_policy": "BIOS order", "HVM_boot_params": {"order": "c"}, "HVM_shadow_multiplier": 1.0,
        "platform": {}, "PCI_bus": "", "other_config": {}, "recommendations": "", "xenstore_data": {},
        "ha_always_run": False, "ha_restart_priority": "", "tags": [], "blocked_operations": {},
        "protection_policy": NULL, "is_snapshot_from_vmpp": False, "snapshot_schedule": NULL,
        "is_vmss_snapshot": False, "appliance": NULL, "start_delay": "0", "shutdown_delay": "0", "order": "0",
        "suspend_SR": NULL, "version": "0", "generation_id": "", "hardware_platform_version": "0",
        "has_vendor_device": False, "reference_label": "", "domain_type": "hvm", "NVRAM": {},
    })  # fmt: skip
    return vm


def create_vbd(session: Any, vm: str, vdi: str, device: int) -> str:
    """Give the VM a disk; the VBD's ref."""
    vbd: str = session.xenapi.VBD.create({
        "VM": vm, "VDI": vdi, "userdevice": str(device), "bootable": device == 0, "mode": "RW", "type": "Disk",
        "unpluggable": False, "empty": False, "device": "", "currently_attached": False, "other_config": {},
        "qos_algorithm_type": "", "qos_algorithm_params": {},
    })  # fmt: skip
    return vbd


def start_guest(session: Any, sr: str, location: Path, guest: Guest) -> tuple[str, str]:
    """Make the guest with two disks in an SR whose files are in `location`, and start it. Its ref and uuid."""
    api = session.xenapi
    vm = create_vm(session, guest)
    first = create_vdi(session, sr, f"{guest.name_label} 0", guest.disk * MIB)
    [image] = location.glob(f"{api.VDI.get_uuid(first)}.*")
    fill_boot_disk(image, guest)
    second = create_vdi(session, sr, f"{guest.name_label} 1", guest.second_disk * MIB)
    create_vbd(session, vm, first, 0)
    create_vbd(session, vm, second, 1)
    api.VM.start(vm, False, False)
    uuid: str = api.VM.get_uuid(vm)
    return vm, uuid


def fill_boot_disk(image: Path, guest: Guest) -> None:
    """Put the guest's program, and bytes to copy, into an image, raw or qcow2, that is there already."""
    if image.suffix == ".qcow2":
        with tempfile.NamedTemporaryFile(dir=image.parent, suffix=".draft") as draft:
            draft.truncate(guest.disk * MIB)
            fill_boot_disk(Path(draft.name), guest)
            argv = ["qemu-img", "convert", "-n", "-f", "raw", "-O", "qcow2", draft.name, str(image)]
            subprocess.run(argv, check=True, stdin=subprocess.DEVNULL)
        return
    if guest.kind == "linux":
        _write_linux(image, guest)
        return
    with image.open("r+b") as file, Path("/dev/urandom").open("rb") as random:
        file.write(guest.ticker.boot_sector())
        file.seek((guest.disk - guest.filled) * MIB)
        for _ in range(guest.filled):
            file.write(random.read(MIB))


def _write_linux(image: Path, guest: Guest) -> None:
    """Its kernel is fetched once and kept in the user's cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "xapi_migrate"
    argv = [sys.executable, "-m", f"{__package__}.linux_disk", str(image), str(guest.disk * MIB), str(cache)]
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"The Linux guest's disk was not written ({done.returncode})."]
        raise Refused(said[-1])
