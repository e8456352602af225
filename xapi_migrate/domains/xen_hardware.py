"""A domain's virtual hardware, as libxl's own JSON (libxl_domain_config)."""

from __future__ import annotations

import json
from collections.abc import Mapping

from xapi_migrate.domains.interfaces import DomainNic, DomainSpec
from xapi_migrate.domains.xen_config import XenConfig

_LETTERS = "abcdefghijklmnopqrstuvwxyz"


def disk_name(userdevice: str) -> str:
    """Where the guest sees the VBD with this userdevice: xvda for "0". ValueError for one that has no place."""
    number = int(userdevice)
    if not 0 <= number < len(_LETTERS):
        raise ValueError(f"a PVH domain has no place for disk {userdevice}: 0 to {len(_LETTERS) - 1} are there")
    return f"xvd{_LETTERS[number]}"


def config(spec: DomainSpec, xen: XenConfig, devices: Mapping[str, str]) -> str:
    """The configuration of the domain; `devices`: userdevice -> block device of this host. ValueError for hardware that
    there is not."""
    if spec.machine not in ("", xen.machine):
        raise ValueError(f"this host's domains are {xen.machine}, not {spec.machine}")
    kilobytes = spec.memory >> 10
    return json.dumps(
        {
            "c_info": {
                "type": "pvh", "name": spec.domain_id, "uuid": spec.vm_uuid, "run_hotplug_scripts": "True",
            },
            "b_info": {
                "max_vcpus": spec.vcpus,
                "avail_vcpus": list(range(spec.vcpus)),
                "tsc_mode": xen.tsc_mode,
                "max_memkb": kilobytes,
                "target_memkb": kilobytes,
                "video_memkb": 0,
                "claim_mode": "True",
                "kernel": xen.kernel,
                **({"ramdisk": xen.ramdisk} if xen.ramdisk else {}),
                **({"cmdline": xen.arguments} if xen.arguments else {}),
                "type.pvh": {},
            },
            "disks": [
                {
                    "pdev_path": devices[disk.device],
                    "vdev": disk_name(disk.device),
                    "backend": "phy",
                    "format": "raw",
                    "readwrite": 0 if disk.read_only else 1,
                }
                for disk in spec.disks
            ],
            "nics": [_nic(nic) for nic in spec.nics if nic.bridge],
            # what the guest does by itself is the driver's to see
            "on_poweroff": "preserve",
            "on_reboot": "preserve",
            "on_crash": "preserve",
        }
    )  # fmt: skip


def _nic(nic: DomainNic) -> dict[str, object]:
    return {"devid": int(nic.device), "mtu": nic.mtu, "mac": nic.mac, "bridge": nic.bridge, "nictype": "vif"}
