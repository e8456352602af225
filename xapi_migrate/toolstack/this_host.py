"""The records of this host itself: host, pool, network, storage backends."""

from __future__ import annotations

import socket
import uuid as uuids
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import attrs

from xapi_migrate.domains.interfaces import HostMemory
from xapi_migrate.processes.in_thread import in_thread
from xapi_migrate.sm.interfaces import ISMDriver
from xapi_migrate.store.records import Records
from xapi_migrate.toolstack.host_interface import HostInterface, interface_with
from xapi_migrate.toolstack.processors import cpu_info, note_processors
from xapi_migrate.toolstack.profile import Profile
from xapi_migrate.whole_file import write_whole

_ROLES = {
    "pool-admin": "May do everything",
    "pool-operator": "May look after hosts, storage and networks",
    "vm-power-admin": "May make, change and migrate VMs",
    "vm-admin": "May make and change VMs",
    "vm-operator": "May start and stop VMs",
    "read-only": "May look",
}
_OF_MIGRATION = frozenset({"VDI_MIRROR", "VDI_MIRROR_IN", "VDI_SNAPSHOT"})
"""XenCenter takes an SR for a destination of storage motion only if its backend claims these, for that is how xapi
moves disks. Here every backend's disks move, without snapshots."""


@attrs.frozen
class Machine:
    """What the kernel says. Bytes."""

    uuid: str
    hostname: str
    cpu: dict[str, str]
    """cpu_info of the host's record."""


def _inspect(state_dir: Path) -> Machine:
    file = state_dir / "host-uuid"
    try:
        uuid = file.read_text().strip()
    except FileNotFoundError:
        uuid = str(uuids.uuid4())
        state_dir.mkdir(parents=True, exist_ok=True)
        write_whole(file, f"{uuid}\n")
    return Machine(uuid, socket.gethostname(), cpu_info())


async def prepare_host(
    records: Records,
    state_dir: Path,
    drivers: Mapping[str, ISMDriver],
    address: str,
    name: str = "",
    profile: Profile | None = None,
) -> str:
    """Make or refresh the records of this host; its ref. `name` "" is the machine's host name. Safe to repeat."""
    machine = await in_thread(_inspect, state_dir)
    profile = profile or Profile()
    host = _host(records, machine, address, name or machine.hostname, profile)
    note_processors(records, host)
    _network(records, host, address, await in_thread(interface_with, address))
    _pool(records, host, machine, profile)
    _backends(records, drivers)
    _roles(records)
    return host


def _ensure(records: Records, cls: str, found: list[str], pool_wide: str = "", **fields: Any) -> str:
    """`pool_wide` names what there is once in a pool, so that members that start together make the same object."""
    if found:
        records.update(cls, found[0], **fields)
        return found[0]
    if pool_wide:
        fields["ref"], fields["uuid"] = records.pool_wide(pool_wide)
    return records.create(cls, **fields)


def _host(records: Records, machine: Machine, address: str, name: str, profile: Profile) -> str:
    major, minor = profile.api(records.model)
    found = records.find("host", uuid=machine.uuid)
    known = records.get("host", found[0])["metrics"] if found else ""
    live = [known] if known in records.refs("host_metrics") else []
    metrics = _ensure(
        records, "host_metrics", live, live=True, last_updated=datetime.now(UTC)
    )  # fmt: skip
    fixed: dict[str, Any] = {} if found else {"uuid": machine.uuid, "name_label": name}
    return _ensure(
        records, "host", found, **fixed, hostname=machine.hostname, address=address, enabled=True, metrics=metrics,
        API_version_major=major, API_version_minor=minor, API_version_vendor="xapi_migrate",
        software_version=profile.software_version(records.model) | {"hostname": machine.hostname},
        license_params=profile.license_params(), edition="free", cpu_info=machine.cpu,
        chipset_info={"iommu": "false"},
        capabilities=["hvm-3.0-x86_64"],
    )  # fmt: skip


def note_memory(records: Records, host: str, memory: HostMemory) -> None:
    """What its hypervisor says, once it can be asked."""
    metrics = records.get("host", host)["metrics"]
    records.update("host_metrics", metrics, memory_total=memory.total, memory_free=memory.free)


def _pool(records: Records, host: str, machine: Machine, profile: Profile) -> None:
    cpu = {name: machine.cpu[name] for name in ("cpu_count", "socket_count", "vendor", "features_hvm", "features_pv")}
    found = records.refs("pool")
    master = records.get("pool", found[0])["master"] if found else host
    if not records.shared or not records.has("host", master):
        master = host
    _ensure(records, "pool", found, "pool", master=master, restrictions=profile.restrictions(), cpu_info=cpu)


def _roles(records: Records) -> None:
    """Everybody who may log in may do everything; clients want to see the roles that servers have all the same."""
    for name, description in _ROLES.items():
        _ensure(
            records,
            "role",
            records.find("role", name_label=name),
            f"role {name}",
            name_label=name,
            name_description=description,
        )


def _network(records: Records, host: str, address: str, interface: HostInterface) -> None:
    """The network of this host's own address. VMs may be on it where that address is a bridge's."""
    found = records.find("network", _default=True)
    network = _ensure(
        records, "network", found, "network", _default=True, bridge=interface.bridge,
        MTU=interface.mtu if interface.bridge else 1500, **({} if found else {"name_label": "Pool-wide network"}),
    )  # fmt: skip
    pifs = [ref for ref in records.find("PIF", host=host) if records.get("PIF", ref)["management"]]
    _ensure(
        records, "PIF", pifs, host=host, network=network, management=True, managed=True, currently_attached=True,
        device=interface.device, MAC=interface.mac, IP=address, netmask=interface.netmask,
        ip_configuration_mode="Static", MTU=interface.mtu, VLAN=-1, physical=interface.physical,
    )  # fmt: skip


def _backends(records: Records, drivers: Mapping[str, ISMDriver]) -> None:
    """One SM record for each storage backend that is installed; those that are gone lose theirs."""
    for ref in records.refs("SM"):
        if records.get("SM", ref)["type"] not in drivers and len(records.refs("host")) < 2:
            records.destroy("SM", ref)
    for name, driver in drivers.items():
        features = sorted(driver.features | _OF_MIGRATION)
        _ensure(
            records, "SM", records.find("SM", type=name), f"SM {name}", type=name, name_label=name,
            vendor=driver.vendor, name_description=driver.description, version=driver.version,
            required_api_version="2.0", capabilities=features, features=dict.fromkeys(features, 1),
            supported_image_formats=list(driver.formats),
        )  # fmt: skip
