"""xapi-migrate lab: several hosts on this machine, to try things out."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import click

from ..lab.lab import DESCRIPTION, Lab
from ..lab.provisioning import Guest
from .failures import ExitCode
from .interruption import Interrupted, interruptible

LINUX_MEMORY = 128
"""MiB that the Linux guest needs to boot."""


@click.command("lab")
@click.option(
    "--dir",
    "folder",
    type=click.Path(file_okay=False, path_type=Path),
    required=True,
    help="New or empty directory, or that of an earlier lab, which is then begun anew.",
)
@click.option("--hosts", type=click.IntRange(1, 16), default=2, show_default=True, help="How many hosts.")
@click.option("--one-pool", is_flag=True, help="All hosts in one pool, with a shared SR that has the guest's disks.")
@click.option("--database", default="", help="URL of the pool's database, new or empty [an SQLite file in DIR].")
@click.option(
    "--guest",
    "kind",
    type=click.Choice(["boot-sector", "linux"]),
    default="boot-sector",
    show_default=True,
    help="What the guest is.",
)
@click.option("--guest-memory", type=click.IntRange(32), help="MiB [64; for linux 160].")
@click.option("--guest-disk", type=click.IntRange(32), default=128, show_default=True, help="MiB of its first disk.")
@click.option("--json", "as_json", is_flag=True, help="Print what lab.json says once everything runs.")
def lab(
    folder: Path, hosts: int, one_pool: bool, database: str, kind: str, guest_memory: int | None, guest_disk: int,
    as_json: bool,
) -> int:  # fmt: skip
    """Start hosts on loopback, each its own daemon with two SRs (local-raw, local-qcow2), and a small running guest.

    DIR/lab.json says how to reach them. The lab runs until SIGINT or SIGTERM and then ends all that it and
    its daemons started. The directory stays, with the hosts' logs, consoles and disks.
    """
    if database and not one_pool:
        raise click.UsageError("--database is of a pool: it goes with --one-pool.")
    guest_memory = guest_memory or (160 if kind == "linux" else 64)
    if kind == "linux" and guest_memory < LINUX_MEMORY:
        raise click.UsageError(f"The Linux guest needs --guest-memory {LINUX_MEMORY} or more.")
    guest = Guest(kind=kind, memory=guest_memory, disk=guest_disk)
    running = Lab(folder, hosts, guest, one_pool=one_pool, database=database)
    try:
        with interruptible(running.end), running:
            click.echo(json.dumps(running.description(), indent=2) if as_json else _summary(running))
            while True:
                signal.pause()
    except Interrupted:
        pass
    return ExitCode.DONE


def _summary(running: Lab) -> str:
    lines = [f"{host.name}: {host.url} and {host.https_url}" for host in running.hosts]
    lines += [f"{vm['name_label']}: running on {vm['host']}, uuid {vm['uuid']}" for vm in running.vms]
    lines.append(f"{running.folder / DESCRIPTION} says the rest, passwords too. Ctrl-C ends the lab.")
    return "\n".join(lines)
