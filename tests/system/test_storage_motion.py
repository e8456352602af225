"""Storage motion on a real host: disks go to another SR while their VM runs there, stands still or is off."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.system.world import GuestOf, World, as_raw
from xapi_migrate.lab.provisioning import Guest

pytestmark = pytest.mark.system


@pytest.fixture
def here(world: World) -> Iterator[World]:
    yield world
    world.nothing_left(world.destination)
    assert list((world.source.state_dir / "motions").glob("*")) == []


def sr_of(world: World, label: str) -> str:
    with world.session(world.source) as api:
        return str(api.SR.get_by_uuid(world.source.srs[label]))


def move(world: World, vdi: str, label: str) -> str:
    """Async.VDI.pool_migrate; the task's ref."""
    with world.session(world.source) as api:
        sr = api.SR.get_by_uuid(world.source.srs[label])
        return str(api.Async.VDI.pool_migrate(api.VDI.get_by_uuid(vdi), sr, {}))


def disks(world: World, uuid: str) -> list[dict[str, Any]]:
    """The VDI records of a VM in userdevice order."""
    with world.session(world.source) as api:
        vbds = [api.VBD.get_record(vbd) for vbd in api.VM.get_VBDs(api.VM.get_by_uuid(uuid))]
        return [api.VDI.get_record(vbd["VDI"]) for vbd in sorted(vbds, key=lambda vbd: int(vbd["userdevice"]))]


def files(world: World) -> list[str]:
    found = [world.lab.sr_location(world.source, label).glob("*.[rq]*") for label in world.source.srs]
    return sorted(path.name for paths in found for path in paths)


def goes_on(world: World, made: GuestOf, folder: Path) -> None:
    """One unbroken sequence, everything that was printed is on the disks, and only the VM's own images are there."""
    assert world.ticks(made.uuid, world.source)
    images = world.images(world.source, made.uuid)
    assert files(world) == sorted(image.name for image in images)
    world.shut_down(world.source, made.uuid)
    console = world.console(made.uuid, world.source)
    assert console.breaks == [] and console.anomalies == []
    for image in images:
        assert made.guest.ticker.lost(as_raw(image, folder), console.counters) == []


def test_a_running_guests_disk_moves_to_another_format_and_back(here: World, tmp_path: Path) -> None:
    made = here.new_guest(here.source, Guest(filled=16))
    domains, vdi = here.processes(here.source, "domains"), made.vdis[0]
    name = disks(here, made.uuid)[0]["name_label"]
    for label in ("local-qcow2", "local-raw"):
        seen = here.follow(move(here, vdi, label))
        assert (seen.status, seen.error_info) == ("success", [])
        assert seen.progress == sorted(seen.progress)
        first, second = disks(here, made.uuid)
        assert first["SR"] == sr_of(here, label) and first["uuid"] != vdi
        assert second["uuid"] == made.vdis[1]
        assert first["name_label"] == name
        vdi = first["uuid"]
        assert here.ticks(made.uuid, here.source)
    assert here.processes(here.source, "domains") == domains
    record = here.vms(here.source)[made.uuid]
    assert (record["power_state"], record["current_operations"]) == ("Running", {})
    goes_on(here, made, tmp_path)


def test_all_disks_by_migrate_send_to_the_same_host(here: World, tmp_path: Path) -> None:
    """As XenCenter's "Move VM" does."""
    made = here.new_guest(here.source, Guest(filled=8))
    with here.session(here.source) as api:
        host, network = api.host.get_all()[0], api.network.get_all()[0]
        dest = api.host.migrate_receive(host, network, {})
        sr = api.SR.get_by_uuid(here.source.srs["local-qcow2"])
        vm = api.VM.get_by_uuid(made.uuid)
        vdis = {api.VDI.get_by_uuid(vdi): sr for vdi in made.vdis}
        api.VM.assert_can_migrate(vm, dest, True, vdis, {}, {})
        task = api.Async.VM.migrate_send(vm, dest, True, vdis, {}, {})
    seen = here.follow(task)
    assert (seen.status, seen.error_info) == ("success", [])
    assert {disk["SR"] for disk in disks(here, made.uuid)} == {sr}
    goes_on(here, made, tmp_path)


@pytest.mark.parametrize("state", ["Halted", "Paused"])
def test_a_vm_that_does_not_run(here: World, tmp_path: Path, state: str) -> None:
    made = here.new_guest(here.source, Guest(filled=8))
    with here.session(here.source) as api:
        vm = api.VM.get_by_uuid(made.uuid)
        (api.VM.pause if state == "Paused" else api.VM.hard_shutdown)(vm)
    seen = here.follow(move(here, made.vdis[0], "local-qcow2"))
    assert (seen.status, seen.error_info) == ("success", [])
    assert here.vms(here.source)[made.uuid]["power_state"] == state
    with here.session(here.source) as api:
        vm = api.VM.get_by_uuid(made.uuid)
        if state == "Paused":
            api.VM.unpause(vm)
        else:
            before = len(here.console(made.uuid, here.source).counters)
            api.VM.start(vm, False, False)
            here.wait(lambda: len(here.console(made.uuid, here.source).counters) > before + 20, "it does not boot")
    assert here.ticks(made.uuid, here.source)
    here.shut_down(here.source, made.uuid)
    printed = here.console(made.uuid, here.source)
    assert made.guest.ticker.lost(as_raw(here.images(here.source, made.uuid)[0], tmp_path), printed.counters) == []


def test_more_than_three_wait_for_each_other(here: World) -> None:
    with here.session(here.source) as api:
        raw, qcow2 = (api.SR.get_by_uuid(here.source.srs[label]) for label in ("local-raw", "local-qcow2"))
        vms, vdis = [], []
        for number in range(5):
            vms.append(api.VM.create({"name_label": f"vm {number}", "memory_static_max": str(64 << 20)}))
            vdis.append(api.VDI.create({"SR": raw, "virtual_size": str(16 << 20), "type": "user"}))
            api.VBD.create({"VM": vms[-1], "VDI": vdis[-1], "userdevice": "0"})
        tasks = [api.Async.VDI.pool_migrate(vdi, qcow2, {}) for vdi in vdis]
        said = [api.task.get_other_config(task) for task in tasks]
        assert [one.get("behind", "") for one in said] == ["", "", "", "3", "4"], said
        assert said[4]["waiting"] == "to be moved"
    for task in tasks:
        assert here.follow(task).status == "success"
    with here.session(here.source) as api:
        for vm in vms:
            (vbd,) = api.VM.get_VBDs(vm)
            vdi = api.VBD.get_VDI(vbd)
            assert api.VDI.get_SR(vdi) == qcow2
            api.VM.destroy(vm)
            api.VDI.destroy(vdi)
    assert files(here) == []


def test_what_is_refused(here: World) -> None:
    made = here.new_guest(here.source, Guest())
    with here.session(here.source) as api:
        vdi = api.VDI.get_by_uuid(made.vdis[0])
        raw, qcow2 = (api.SR.get_by_uuid(here.source.srs[label]) for label in ("local-raw", "local-qcow2"))
        lonely = api.VDI.create({"SR": raw, "virtual_size": str(1 << 20), "name_label": "lonely", "type": "user"})
        for wanted, given in (
            (["VDI_NEEDS_VM_FOR_MIGRATE", lonely], (lonely, qcow2, {})),
            (["OPERATION_NOT_ALLOWED"], (vdi, api.VDI.get_SR(vdi), {})),
            (["INVALID_VALUE", "dest-img-format", "vhd"], (vdi, qcow2, {"dest-img-format": "vhd"})),
            (["HANDLE_INVALID", "SR", "OpaqueRef:none"], (vdi, "OpaqueRef:none", {})),
        ):
            with pytest.raises(Exception, match=wanted[0]) as caught:
                api.VDI.pool_migrate(*given)
            assert caught.value.details[: len(wanted)] == wanted  # type: ignore[attr-defined]
        api.VDI.destroy(lonely)
    assert here.ticks(made.uuid, here.source)


def test_cancelled_the_disk_stays(here: World, tmp_path: Path) -> None:
    made = here.new_guest(here.source, Guest(filled=48))
    task = move(here, made.vdis[0], "local-qcow2")
    cancelled: list[bool] = []

    def at(record: dict[str, Any]) -> None:
        if not cancelled and "cancel" in record["allowed_operations"]:
            with here.session(here.source) as api:
                api.task.cancel(task)
            cancelled.append(True)

    seen = here.follow(task, at)
    assert cancelled
    if seen.status == "success":  # it was quicker
        return
    assert (seen.status, seen.error_info) == ("cancelled", [])
    assert [disk["uuid"] for disk in disks(here, made.uuid)] == made.vdis
    goes_on(here, made, tmp_path)


@pytest.mark.parametrize("wait", [0.0, 0.3, 0.8])
def test_killed_at_any_moment_it_has_one_true_disk(here: World, tmp_path: Path, wait: float) -> None:
    made = here.new_guest(here.source, Guest(filled=32))
    task = move(here, made.vdis[0], "local-qcow2")
    time.sleep(wait)
    here.source.kill()
    assert here.ticks(made.uuid, here.source)
    here.source.start()
    here.source.wait_ready()
    moved = disks(here, made.uuid)[0]["uuid"] != made.vdis[0]
    with here.session(here.source) as api:
        known = api.task.get_all_records().get(task)  # one that began in the last moment may not be in the database
    assert known is None or known["status"] == ("success" if moved else "failure"), known
    assert here.vms(here.source)[made.uuid]["current_operations"] == {}
    goes_on(here, made, tmp_path)
