"""xapi-migrate vm-list."""

from __future__ import annotations

from typing import Any

import click

from .connection import Server, server_option
from .output import json_option, show, size


@click.command("vm-list")
@server_option
@click.option("--all", "everything", is_flag=True, help="Also VMs that are being received (hidden) and templates.")
@json_option
def vm_list(server: Server, everything: bool, as_json: bool) -> None:
    """List the VMs of a host or pool."""
    with server.session() as session:
        records = session.xenapi.VM.get_all_records()
        hosts = {ref: record["name_label"] for ref, record in session.xenapi.host.get_all_records().items()}
    rows = [_row(ref, record, hosts) for ref, record in records.items() if everything or _shown(record)]
    rows.sort(key=lambda row: (row["name_label"], row["uuid"]))
    for row in rows:
        row["memory"] = size(row["memory_bytes"])
    show(rows, ("name_label", "uuid", "power_state", "host", "memory"), as_json, "No VMs.")


def _shown(record: dict[str, Any]) -> bool:
    hidden = record["other_config"].get("HideFromXenCenter") == "true"
    return not (hidden or record["is_a_template"] or record["is_control_domain"] or record["is_a_snapshot"])


def _row(ref: str, record: dict[str, Any], hosts: dict[str, str]) -> dict[str, Any]:
    return {
        "name_label": record["name_label"],
        "uuid": record["uuid"],
        "ref": ref,
        "power_state": record["power_state"],
        "host": hosts.get(record["resident_on"], ""),
        "memory_bytes": int(record["memory_static_max"]),
        "current_operations": record["current_operations"],
    }
