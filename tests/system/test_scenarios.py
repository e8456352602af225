"""The table: each way to move a VM, in each power state, in each format, with a real guest and real storage.

A cell ends with one VM in the right power state, its disks as they were, and nothing left where they were. A running
guest counts on in one sequence, a suspended one resumes with its next number, a halted one boots from its disks.
`make test` takes the cells of `COVER`, `make test-all` all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from pathlib import Path

import attrs
import pytest

from tests.system.world import GuestOf, World, as_raw, equal
from xapi_migrate.lab.host import LabHost
from xapi_migrate.lab.provisioning import Guest
from xapi_migrate.testing.guests.ticker import Ticker

pytestmark = pytest.mark.system

GUEST = Guest(memory=48, disk=40, second_disk=9, filled=6, ticker=Ticker(fill_end=16 << 20, fill_pages=400))
STATES = ("Running", "Suspended", "Halted")
FORMATS = ("local-raw", "local-qcow2")
OTHER = {"local-raw": "local-qcow2", "local-qcow2": "local-raw"}


# -- how it is moved: each answers the host where the VM is afterwards


def cross_pool(world: World, made: GuestOf, label: str) -> LabHost:
    """VM.receive and VM.migrate; a Suspended VM's image goes where its disks go."""
    seen = world.follow(world.begin(made.uuid, world.receive(label)))
    assert (seen.status, seen.error_info) == ("success", [])
    return world.destination


def cross_pool_by_send(world: World, made: GuestOf, label: str) -> LabHost:
    """host.migrate_receive and VM.migrate_send, as XenCenter does; nobody says where a suspend image goes."""
    with world.session(world.destination) as api:
        host, network = api.host.get_all()[0], api.network.get_all()[0]
        dest, sr = api.host.migrate_receive(host, network, {}), api.SR.get_by_uuid(world.destination.srs[label])
    with world.session(world.source) as api:
        vm = api.VM.get_by_uuid(made.uuid)
        vdis = {api.VDI.get_by_uuid(vdi): sr for vdi in made.vdis}
        api.VM.assert_can_migrate(vm, dest, True, vdis, {}, {})
        task = api.Async.VM.migrate_send(vm, dest, True, vdis, {}, {})
    seen = world.follow(task)
    assert (seen.status, seen.error_info) == ("success", [])
    return world.destination


def storage_motion(world: World, made: GuestOf, label: str) -> LabHost:
    """All disks, and the suspend image, to the SR of the other format on the same host."""
    with world.session(world.source) as api:
        host, network = api.host.get_all()[0], api.network.get_all()[0]
        dest, sr = api.host.migrate_receive(host, network, {}), api.SR.get_by_uuid(world.source.srs[OTHER[label]])
        vm = api.VM.get_by_uuid(made.uuid)
        vdis = {api.VDI.get_by_uuid(vdi): sr for vdi in made.vdis}
        if (image := api.VM.get_suspend_VDI(vm)) != "OpaqueRef:NULL":
            vdis[image] = sr
        task = api.Async.VM.migrate_send(vm, dest, True, vdis, {}, {})
    seen = world.follow(task)
    assert (seen.status, seen.error_info) == ("success", [])
    return world.source


WAYS: dict[str, Callable[[World, GuestOf, str], LabHost]] = {
    "cross-pool": cross_pool,
    "cross-pool by migrate_send": cross_pool_by_send,
    "storage motion": storage_motion,
}


@attrs.frozen
class Cell:
    """`label`: the SR where the VM's disks are before."""

    way: str
    state: str
    label: str

    def __str__(self) -> str:
        return f"{self.way}, {self.state}, {self.label.removeprefix('local-')}"


CELLS = [Cell(*cell) for cell in product(WAYS, STATES, FORMATS)]
COVER = [
    Cell("cross-pool", "Running", "local-qcow2"),
    Cell("cross-pool", "Suspended", "local-raw"),
    Cell("cross-pool", "Halted", "local-qcow2"),
    Cell("cross-pool by migrate_send", "Suspended", "local-qcow2"),
    Cell("storage motion", "Running", "local-raw"),
    Cell("storage motion", "Suspended", "local-qcow2"),
]
"""Every way, state and format, and every pair of a way and a format that another test does not have."""


def cells() -> list[object]:
    return [pytest.param(cell, id=str(cell), marks=() if cell in COVER else pytest.mark.every_cell) for cell in CELLS]


# -- before and after


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
        vm = api.VM.get_by_uuid(uuid)
        if state == "Suspended":
            assert api.VDI.get_type(api.VM.get_suspend_VDI(vm)) == "suspend"
            api.VM.resume(vm, False, False)
            assert api.VM.get_suspend_VDI(vm) == "OpaqueRef:NULL"
        elif state == "Halted":
            api.VM.start(vm, False, False)
        assert api.VM.get_power_state(vm) == "Running"


@pytest.mark.parametrize("cell", cells())
def test_a_cell(world: World, tmp_path: Path, cell: Cell) -> None:
    made = prepare(world, cell)
    before = [] if cell.state == "Running" else copies(world, world.source, made.uuid, tmp_path / "before")
    printed = world.console(made.uuid, world.source).counters

    there = WAYS[cell.way](world, made, cell.label)

    record = world.vms(there)[made.uuid]
    assert (record["power_state"], record["current_operations"]) == (cell.state, {})
    label = OTHER[cell.label] if there is world.source else cell.label
    images = world.images(there, made.uuid)
    assert {image.parent for image in images} == {world.lab.sr_location(there, label)}
    if before:
        assert all(equal(*pair) for pair in zip(before, images, strict=True))
    if there is not world.source:
        world.nothing_left(world.source)
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
        raw = as_raw(image, tmp_path)
        assert made.guest.ticker.lost(raw, now) == []
        # what a halted guest wrote in its earlier life, and has not overwritten since
        assert cell.state != "Halted" or made.guest.ticker.lost(raw, printed[len(now) + 1 :]) == []
