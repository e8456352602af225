"""The records of this host itself: host, pool, network, storage backends."""

from __future__ import annotations

import os
import socket
import uuid as uuids
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from xapi_migrate.processes.in_thread import in_thread
from xapi_migrate.sm.interfaces import ISMDriver
from xapi_migrate.store.records import Records
from xapi_migrate.toolstack.profile import Profile


@attrs.frozen
class Machine:
    """What the kernel says. Bytes."""

    uuid: str
    hostname: str
    cpus: int
    cpu_model: str
    memory: int


def free_memory() -> int:
    """Bytes that could be used now without swapping."""
    return _meminfo()["MemAvailable"]


def _meminfo() -> dict[str, int]:
    lines = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
    return {words[0].rstrip(":"): int(words[1]) << 10 for words in lines if len(words) > 1}


def _inspect(state_dir: Path) -> Machine:
    file = state_dir / "host-uuid"
    try:
        uuid = file.read_text().strip()
    except FileNotFoundError:
        uuid = str(uuids.uuid4())
        state_dir.mkdir(parents=True, exist_ok=True)
        draft = state_dir / "host-uuid.new"
        draft.write_text(f"{uuid}\n")
        draft.replace(file)
    model = "unknown"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return Machine(uuid, socket.gethostname(), os.cpu_count() or 1, model, _meminfo()["MemTotal"])


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
    host = _host(records, machine, address, name or machine.hostname, profile or Profile())
    network = _network(records, host, address)
    _pool(records, host)
    _backends(records, drivers)
    records.update("network", network, MTU=1500)
    return host


def _ensure(records: Records, cls: str, found: list[str], **fields: Any) -> str:
    if found:
        records.update(cls, found[0], **fields)
        return found[0]
    return records.create(cls, **fields)


def _host(records: Records, machine: Machine, address: str, name: str, profile: Profile) -> str:
    major, minor = records.model.api_version
    found = records.find("host", uuid=machine.uuid)
    known = records.get("host", found[0])["metrics"] if found else ""
    live = [known] if known in records.refs("host_metrics") else []
    metrics = _ensure(records, "host_metrics", live, live=True, memory_total=machine.memory, memory_free=free_memory())
    cpu = {"cpu_count": str(machine.cpus), "modelname": machine.cpu_model, "vendor": "GenuineIntel", "features": ""}
    fixed: dict[str, Any] = {} if found else {"uuid": machine.uuid, "name_label": name}
    return _ensure(
        records, "host", found, **fixed, hostname=machine.hostname, address=address, enabled=True, metrics=metrics,
        API_version_major=major, API_version_minor=minor, API_version_vendor="xapi_migrate",
        software_version=profile.software_version(records.model) | {"hostname": machine.hostname},
        license_params=profile.license_params(), edition="free", cpu_info=cpu,
        capabilities=["hvm-3.0-x86_64"], allowed_operations=["evacuate", "vm_migrate", "vm_start"],
    )  # fmt: skip


def _pool(records: Records, host: str) -> None:
    found = records.refs("pool")
    _ensure(records, "pool", found, master=host)


def _network(records: Records, host: str, address: str) -> str:
    found = records.find("network", _default=True)
    network = _ensure(
        records, "network", found, _default=True, **({} if found else {"name_label": "Pool-wide network"})
    )
    pifs = [ref for ref in records.find("PIF", host=host) if records.get("PIF", ref)["management"]]
    _ensure(
        records, "PIF", pifs, host=host, network=network, management=True, managed=True, currently_attached=True,
        device="eth0", IP=address, ip_configuration_mode="Static", MTU=1500, VLAN=-1, physical=True,
    )  # fmt: skip
    return network


def _backends(records: Records, drivers: Mapping[str, ISMDriver]) -> None:
    """One SM record for each storage backend that is installed; those that are gone lose theirs."""
    for ref in records.refs("SM"):
        if records.get("SM", ref)["type"] not in drivers:
            records.destroy("SM", ref)
    for name, driver in drivers.items():
        features = sorted(driver.features)
        _ensure(
            records, "SM", records.find("SM", type=name), type=name, name_label=name, vendor=driver.vendor,
            name_description=driver.description, version=driver.version, required_api_version="2.0",
            capabilities=features, features=dict.fromkeys(features, 1),
            supported_image_formats=list(driver.formats),
        )  # fmt: skip
