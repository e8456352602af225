"""A real guest's memory goes into a VDI and comes back; the daemon is killed meanwhile."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.system.world import GuestOf, World, as_raw
from xapi_migrate.lab.provisioning import Guest
from xapi_migrate.testing.guests.ticker import Ticker

pytestmark = pytest.mark.system


def goes_on(world: World, made: GuestOf, folder: Path) -> None:
    """It ticks, in one sequence, its disk has what it printed, and no image of its memory is left."""
    world.wait(lambda: world.ticks(made.uuid, world.source), "it does not tick")
    images = world.images(world.source, made.uuid)
    locations = [world.lab.sr_location(world.source, label) for label in world.source.srs]
    there = [path for location in locations for path in location.glob("*.*")]
    # a draft is what a daemon made when another test killed it
    assert sorted(path for path in there if path.suffix != ".new") == sorted(images)
    world.shut_down(world.source, made.uuid)
    console = world.console(made.uuid, world.source)
    assert console.breaks == [] and console.anomalies == []
    for image in images:
        assert made.guest.ticker.lost(as_raw(image, folder), console.counters) == []


@pytest.mark.parametrize("label", ["local-raw", "local-qcow2"])
def test_suspended_and_resumed(world: World, tmp_path: Path, label: str) -> None:
    made = world.new_guest(world.source, Guest(ticker=Ticker(fill_end=24 << 20, fill_pages=600, end=8 << 20, pages=20)))
    with world.session(world.source) as api:
        vm = api.VM.get_by_uuid(made.uuid)
        api.VM.set_suspend_SR(vm, api.SR.get_by_uuid(world.source.srs[label]))
        task = api.Async.VM.suspend(vm)
        seen = world.follow(task)
        assert (seen.status, seen.error_info) == ("success", [])
        record = api.VM.get_record(vm)
        assert record["power_state"] == "Suspended"
        assert api.VDI.get_type(record["suspend_VDI"]) == "suspend"
        for kind in ("domains", "datapaths"):
            assert world.processes(world.source, kind) == []
        world.source.kill()
        world.source.start()
        world.source.wait_ready()
    with world.session(world.source) as api:
        assert api.VM.get_power_state(vm) == "Suspended"
        before = world.console(made.uuid, world.source).counters[-1]
        api.VM.resume(vm, False, False)
        world.wait(lambda: world.console(made.uuid, world.source).counters[-1] > before, "it does not go on")
        assert api.VM.get_suspend_VDI(vm) == "OpaqueRef:NULL"
    goes_on(world, made, tmp_path)


@pytest.mark.parametrize("what", ["suspend", "resume"])
def test_the_daemon_is_killed_meanwhile(world: World, tmp_path: Path, what: str) -> None:
    busy = Ticker(fill_end=200 << 20, fill_pages=3000)
    made = world.new_guest(world.source, Guest(memory=256, ticker=busy))
    time.sleep(0.3)
    with world.session(world.source) as api:
        vm = api.VM.get_by_uuid(made.uuid)
        if what == "resume":
            api.VM.suspend(vm)
            api.Async.VM.resume(vm, False, False)
        else:
            api.Async.VM.suspend(vm)
    time.sleep(0.2)
    world.source.kill()
    world.source.start()
    world.source.wait_ready()
    record = world.vms(world.source)[made.uuid]
    assert record["current_operations"] == {}
    assert list((world.source.state_dir / "suspends").glob("*")) == []
    with world.session(world.source) as api:
        vm = api.VM.get_by_uuid(made.uuid)
        if record["power_state"] == "Suspended":
            api.VM.resume(vm, False, False)
        assert api.VM.get_power_state(vm) == "Running"
    goes_on(world, made, tmp_path)
