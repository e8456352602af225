"""The table: each way to move a VM, in each power state, in each format, with a real guest and real storage.

A cell ends with one VM in the right power state, its disks as they were, and nothing left where they were. A running
guest counts on in one sequence, a suspended one resumes with its next number, a halted one boots from its disks.
`make test` takes the cells of `COVER`, `make test-all` all of them. Those within a pool are in tests/pool.
"""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest

from tests.system.cells import OTHER, STATES, Cell, Way, parameters, run
from tests.system.world import GuestOf, World
from xapi_migrate.lab.host import LabHost

pytestmark = pytest.mark.system


def cross_pool(world: World, made: GuestOf, label: str) -> tuple[LabHost, str]:
    """VM.receive and VM.migrate; a Suspended VM's image goes where its disks go."""
    seen = world.follow(world.begin(made.uuid, world.receive(label)))
    assert (seen.status, seen.error_info) == ("success", [])
    return world.destination, label


def cross_pool_by_send(world: World, made: GuestOf, label: str) -> tuple[LabHost, str]:
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
    return world.destination, label


def storage_motion(world: World, made: GuestOf, label: str) -> tuple[LabHost, str]:
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
    return world.source, OTHER[label]


WAYS: dict[str, Way] = {
    "cross-pool": cross_pool,
    "cross-pool by migrate_send": cross_pool_by_send,
    "storage motion": storage_motion,
}


CELLS = [Cell(*cell) for cell in product(WAYS, STATES, OTHER)]
COVER = [
    Cell("cross-pool", "Running", "local-qcow2"),
    Cell("cross-pool", "Suspended", "local-raw"),
    Cell("cross-pool", "Halted", "local-qcow2"),
    Cell("cross-pool by migrate_send", "Suspended", "local-qcow2"),
    Cell("storage motion", "Running", "local-raw"),
    Cell("storage motion", "Suspended", "local-qcow2"),
]
"""Every way, state and format, and every pair of a way and a format that another test does not have."""


@pytest.mark.parametrize("cell", parameters(CELLS, COVER))
def test_a_cell(world: World, tmp_path: Path, cell: Cell) -> None:
    run(world, cell, WAYS[cell.way], tmp_path, world.nothing_left)
