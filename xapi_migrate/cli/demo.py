"""xapi-migrate demo: one live migration from beginning to end, and what came of it."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import click

from ..lab.console import wait_for_counters
from ..lab.demonstration import Verdict, judge
from ..lab.lab import Lab
from ..lab.provisioning import Guest
from .failures import ExitCode, Refused
from .interruption import Interrupted, interruptible
from .migrate import migrate, summary
from .migration import Wish

BEFORE = 100
"""Lines that the guest prints before it is moved, and again afterwards."""


@click.command("demo")
@click.option("--guest-disk", type=click.IntRange(32), default=256, show_default=True, help="MiB of its first disk.")
@click.option("--data", type=click.IntRange(1), default=64, show_default=True, help="MiB of that to fill with data.")
def demo(guest_disk: int, data: int) -> int:
    """Start two hosts on this machine, move a running guest with its disks from one to the other, look whether it
    noticed, and clean up."""
    guest = Guest(disk=guest_disk, filled=min(data, guest_disk - 8))
    folder = Path(tempfile.mkdtemp(prefix="xm-demo-", dir="/tmp"))
    lab = Lab(folder, 2, guest)

    def clean_up() -> None:
        lab.end()
        shutil.rmtree(folder, ignore_errors=True)

    try:
        with interruptible(clean_up), lab:
            verdict = _move(lab, guest)
    except Interrupted:
        click.echo("Interrupted: both hosts and the guest have been taken down.", err=True)
        return ExitCode.INTERRUPTED
    if not verdict.good:
        raise Refused("The migration was not clean: see above.")
    return ExitCode.DONE


def _move(lab: Lab, guest: Guest) -> Verdict:
    source, destination = lab.hosts
    uuid = lab.vms[0]["uuid"]
    click.echo(f"Two hosts run: {source.name} at {source.url}, {destination.name} at {destination.url}.")
    click.echo(f"Guest {guest.name_label} runs on {source.name}: {guest.memory} MiB of memory, two disks, "
               f"{guest.disk} MiB with {guest.filled} MiB of data and {guest.second_disk} MiB.")  # fmt: skip
    last = wait_for_counters(source.console(uuid), BEFORE)
    click.echo(f"It counts, writes each number to its disks, then prints it; it has come to {last}. Moving it:")
    moved = migrate(source.server, destination.server, Wish(uuid))
    wait_for_counters(destination.console(uuid), BEFORE)
    verdict = judge(lab, uuid, source, destination, guest.ticker)
    click.echo(summary(moved))
    click.echo(f"  printed on {source.name}: {verdict.before[0]} to {verdict.before[1]}; "
               f"on {destination.name}: {verdict.after[0]} to {verdict.after[1]}")  # fmt: skip
    click.echo(f"  sequence: {_said(verdict.breaks, 'unbroken')}")
    click.echo(f"  guest's memory and disks: {_said(verdict.anomalies, 'no complaint')}")
    click.echo(f"  lost writes: {_said(verdict.lost, 'none')}")
    click.echo(f"  left on {source.name}: {_said(verdict.left, 'nothing')}")
    return verdict


def _said(found: list[str] | list[int] | list[tuple[int, int]], nothing: str) -> str:
    return ", ".join(str(one) for one in found[:10]) if found else nothing
