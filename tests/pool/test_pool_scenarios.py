"""The cells of the table of scenarios (tests/system/test_scenarios.py) within a pool: on storage that both members see,
where only memory moves, and on storage of each member's own."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest

from tests.pool.pool_world import PoolWorld
from tests.system.cells import OTHER, STATES, Cell, Way, parameters, run
from tests.system.world import GuestOf, World
from xapi_migrate.lab.host import LabHost

pytestmark = pytest.mark.system


def shared(world: World, made: GuestOf, label: str) -> tuple[LabHost, str]:
    """VM.pool_migrate of a running VM; the protocol's own two calls for one that does not run."""
    assert isinstance(world, PoolWorld)
    with world.session(world.source) as api:
        vm = api.VM.get_by_uuid(made.uuid)
        if api.VM.get_power_state(vm) == "Running":
            task = api.Async.VM.pool_migrate(vm, world.ref(world.destination), {})
        else:
            task = world.begin(made.uuid, world.receive(label))
    seen = world.follow(task)
    assert (seen.status, seen.error_info) == ("success", [])
    vdis = set(made.vdis)
    with world.session(world.source) as api:
        assert vdis <= {record["uuid"] for record in api.VDI.get_all_records().values()}, "a disk was copied"
    return world.destination, label


def local(world: World, made: GuestOf, label: str) -> tuple[LabHost, str]:
    """host.migrate_receive and VM.migrate_send: the disks, and a suspend image, go to the other member's SR."""
    assert isinstance(world, PoolWorld)
    with world.session(world.source) as api:
        vm = api.VM.get_by_uuid(made.uuid)
        sr = api.SR.get_by_uuid(world.destination.srs[label])
        dest = api.host.migrate_receive(world.ref(world.destination), api.network.get_all()[0], {})
        vdis = {api.VBD.get_VDI(vbd): sr for vbd in api.VM.get_VBDs(vm)}
        if (image := api.VM.get_suspend_VDI(vm)) != "OpaqueRef:NULL":
            vdis[image] = sr
        task = api.Async.VM.migrate_send(vm, dest, True, vdis, {}, {})
    seen = world.follow(task)
    assert (seen.status, seen.error_info) == ("success", [])
    return world.destination, label


WAYS: dict[str, tuple[Way, tuple[str, ...]]] = {
    "within a pool, shared": (shared, ("shared", "shared-qcow2")),
    "within a pool, local": (local, tuple(OTHER)),
}
CELLS = [Cell(way, state, label) for way, (_, labels) in WAYS.items() for state, label in product(STATES, labels)]
COVER = [
    Cell("within a pool, shared", "Running", "shared-qcow2"),
    Cell("within a pool, shared", "Suspended", "shared"),
    Cell("within a pool, local", "Suspended", "local-qcow2"),
    Cell("within a pool, local", "Halted", "local-raw"),
]
"""tests/pool/test_within_pool.py has the others of a running VM."""


@pytest.mark.parametrize("cell", parameters(CELLS, COVER))
def test_a_cell(pool: PoolWorld, tmp_path: Path, cell: Cell) -> None:
    run(pool, cell, WAYS[cell.way][0], tmp_path, pool.is_left)
