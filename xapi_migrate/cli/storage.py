"""xapi-migrate sr-list (a server's SRs) and sm-list (the storage backends installed here)."""

from __future__ import annotations

import click

from .connection import Server, server_option
from .output import json_option, show, size


@click.command("sr-list")
@server_option
@json_option
def sr_list(server: Server, as_json: bool) -> None:
    """List the SRs of a host or pool."""
    with server.session() as session:
        srs = session.xenapi.SR.get_all_records()
        pbds = session.xenapi.PBD.get_all_records()
        hosts = {ref: record["name_label"] for ref, record in session.xenapi.host.get_all_records().items()}
        defaults = {pool["default_SR"] for pool in session.xenapi.pool.get_all_records().values()}
    rows = []
    for ref, record in srs.items():
        attached = [pbds[pbd]["host"] for pbd in record["PBDs"] if pbd in pbds and pbds[pbd]["currently_attached"]]
        total, used = int(record["physical_size"]), int(record["physical_utilisation"])
        rows.append({
            "name_label": record["name_label"], "uuid": record["uuid"], "ref": ref, "type": record["type"],
            "shared": record["shared"], "default": ref in defaults,
            "attached_to": [hosts.get(host, host) for host in attached],
            "total_bytes": total, "used_bytes": used, "free": size(max(0, total - used)),
        })  # fmt: skip
    rows.sort(key=lambda row: (row["name_label"], row["uuid"]))
    show(rows, ("name_label", "uuid", "type", "free", "shared", "default", "attached_to"), as_json, "No SRs.")


@click.command("sm-list")
@json_option
def sm_list(as_json: bool) -> None:
    """List the storage backends installed on this machine, and why any of them cannot be used."""
    from ..sm.discovery import discover

    drivers = discover()
    rows = [
        {
            "type": driver.name, "version": driver.version, "vendor": driver.vendor, "formats": list(driver.formats),
            "features": sorted(driver.features), "description": driver.description, "problem": "",
        }
        for driver in drivers.usable.values()
    ]  # fmt: skip
    rows += [
        {"type": broken.where, "version": "", "vendor": "", "formats": [], "features": [], "description": "",
         "problem": broken.reason}
        for broken in drivers.broken
    ]  # fmt: skip
    columns = ["type", "version", "vendor", "formats", "description"] + ["problem"] * bool(drivers.broken)
    show(rows, columns, as_json, "No storage backends are installed.")
