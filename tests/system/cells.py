"""A cell of the table of scenarios: a VM in a power state, with disks in a format, moved in some way; and what is true
before and after."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import attrs
import pytest

from tests.system.world import GuestOf, World, as_raw, equal
from xapi_migrate.lab.host import LabHost
from xapi_migrate.lab.provisioning import Guest
from xapi_migrate.testing.guests.ticker import Ticker

GUEST = Guest(memory=48, disk=40, second_disk=9, filled=6, ticker=Ticker(fill_end=16 << 20, fill_pages=400))
STATES = ("Running", "Suspended", "Halted")
OTHER = {"local-raw": "local-qcow2", "local-qcow2": "local-raw"}


@attrs.frozen
class Cell:
    """`label`: the SR where the VM's disks are before."""

    way: str
    state: str
    label: str

    def __str__(self) -> str:
        return f"{self.way}, {self.state}, {'qcow2' if 'qcow2' in self.label else 'raw'}"


def parameters(cells: list[Cell], cover: list[Cell]) -> list[object]:
    """What is not in the cover is left to `make test-all`."""
    return [pytest.param(cell, id=str(cell), marks=() if cell in cover else pytest.mark.every_cell) for cell in cells]


def prepare(world: World, cell: Cell) -> GuestOf:
    made = world.new_guest(world.source, GUEST, cell.label)
    with world.session(world.source) as api:
        vm = api.VM.get_by_uuid(made.uuid)
        if cell.state == "Suspended":
            api.VM.suspend(vm)
        elif cell.state == "Halted":
            api.VM.hard_shutdown(vm)
    return made


def copies(world: World, host: LabHost, uuid: str, folder: Path) -> list[Path]:
    """What is on the disks now."""
    folder.mkdir()
    kept = []
    for number, image in enumerate(world.images(host, uuid)):
        raw = as_raw(image, folder)
        kept.append(folder / f"{number}.raw")
        kept[-1].write_bytes(raw.read_bytes())
    return kept


def start_again(world: World, host: LabHost, uuid: str, state: str) -> None:
    with world.session(host) as api:
        vm, [where] = api.VM.get_by_uuid(uuid), api.host.get_by_name_label(host.name)
        if state == "Suspended":
            assert api.VDI.get_type(api.VM.get_suspend_VDI(vm)) == "suspend"
            api.VM.resume_on(vm, where, False, False)
            assert api.VM.get_suspend_VDI(vm) == "OpaqueRef:NULL"
        elif state == "Halted":
            api.VM.start_on(vm, where, False, False)
        assert api.VM.get_power_state(vm) == "Running"


Way = Callable[[World, GuestOf, str], tuple[LabHost, str]]
"""Moves it; the host where it is then, and the label of the SR that has its disks."""


def run(world: World, cell: Cell, way: Way, folder: Path, empty: Callable[[LabHost], None]) -> None:
    """Move it, and look; `empty` insists that nothing is left on a host."""
    made = prepare(world, cell)
    before = [] if cell.state == "Running" else copies(world, world.source, made.uuid, folder / "before")
    printed = world.console(made.uuid, world.source).counters

    there, label = way(world, made, cell.label)

    def is_there() -> bool:
        record = world.vms(there)[made.uuid]
        return (record["power_state"], record["current_operations"]) == (cell.state, {})

    world.wait(is_there, f"it is not {cell.state}")
    images = world.images(there, made.uuid)
    assert {image.parent for image in images} == {world.lab.sr_location(there, label)}
    if before:
        assert all(equal(*pair) for pair in zip(before, images, strict=True))
    if there is not world.source:
        empty(world.source)
    start_again(world, there, made.uuid, cell.state)

    hosts = (world.source,) if there is world.source else (world.source, there)
    whole = world.console(made.uuid, *hosts).counters
    enough = len(whole) + 20
    world.wait(lambda: len(world.console(made.uuid, *hosts).counters) > enough, "it does not count")
    locations = [world.lab.sr_location(there, one) for one in there.srs]
    assert sorted(path for place in locations for path in place.glob("*.*")) == sorted(images)
    world.shut_down(there, made.uuid)
    console = world.console(made.uuid, *hosts)
    assert console.anomalies == []
    now = console.counters[len(printed) :] if cell.state == "Halted" else console.counters
    if cell.state == "Halted":
        assert now == list(range(1, len(now) + 1)), "it did not boot"
    else:
        assert console.breaks == []
    for image in images:
        raw = as_raw(image, folder)
        assert made.guest.ticker.lost(raw, now) == []
        # what a halted guest wrote in its earlier life, and has not overwritten since
        assert cell.state != "Halted" or made.guest.ticker.lost(raw, printed[len(now) + 1 :]) == []
