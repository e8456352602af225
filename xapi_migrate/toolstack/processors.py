"""The processors of this host: cpu_info of its record, and a record for each."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from xapi_migrate.store.records import Records


def cpu_info() -> dict[str, str]:
    """From the kernel's description of the processors, in XenAPI's words. Blocks."""
    told: dict[str, str] = {}
    sockets = set()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        told.setdefault(name.strip(), value.strip())
        if name.strip() == "physical id":
            sockets.add(value.strip())
    return {
        "cpu_count": str(os.cpu_count() or 1), "socket_count": str(max(1, len(sockets))),
        "vendor": told.get("vendor_id", "unknown"),
        "modelname": told.get("model name", "unknown"), "speed": told.get("cpu MHz", "0"),
        "family": told.get("cpu family", "0"), "model": told.get("model", "0"), "stepping": told.get("stepping", "0"),
        "flags": told.get("flags", ""), "features": "", "features_hvm": "", "features_pv": "",
    }  # fmt: skip


def note_processors(records: Records, host: str) -> None:
    """host.host_CPUs are those that its cpu_info tells of. How busy they are nobody measures: utilisation stays 0."""
    info: dict[str, str] = records.get("host", host)["cpu_info"]
    fields: dict[str, Any] = {
        "vendor": info["vendor"], "modelname": info["modelname"], "flags": info["flags"],
        "stepping": info["stepping"], "features": info["features"], "speed": _number(info["speed"]),
        "family": _number(info["family"]), "model": _number(info["model"]),
    }  # fmt: skip
    known = {records.get("host_cpu", ref)["number"]: ref for ref in records.find("host_cpu", host=host)}
    count = int(info["cpu_count"])
    for number in range(count):
        if number in known:
            records.update("host_cpu", known[number], **fields)
        else:
            records.create("host_cpu", host=host, number=number, **fields)
    for number, ref in known.items():
        if number >= count:
            records.destroy("host_cpu", ref)


def _number(text: str) -> int:
    try:
        return int(float(text))
    except ValueError:
        return 0
