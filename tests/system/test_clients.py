"""A running guest moves, and stays, by the calls of today's clients: host.migrate_receive on one host, then
Async.VM.migrate_send with six arguments on the other."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import XenAPI

from tests.system.world import GuestOf, World, as_raw
from xapi_migrate.lab.provisioning import Guest

pytestmark = pytest.mark.system


def migrate_send(world: World, made: GuestOf, labels: list[str]) -> str:
    """As Xen Orchestra does it: the network of the interface that manages the destination, the answer of
    migrate_receive handed on untouched, every disk and every VIF mapped. The task's ref."""
    with world.session(world.destination) as there:
        [host] = there.host.get_all()
        pifs = there.PIF.get_all_records().values()
        network = next(pif["network"] for pif in pifs if pif["management"] and pif["host"] == host)
        dest = there.host.migrate_receive(host, network, {})
        srs = [there.SR.get_by_uuid(world.destination.srs[label]) for label in labels]
    # the destination's client is gone: its offer stays
    with world.session(world.source) as here:
        vm = here.VM.get_by_uuid(made.uuid)
        vdi_map = {here.VDI.get_by_uuid(vdi): sr for vdi, sr in zip(made.vdis, srs, strict=True)}
        vif_map = dict.fromkeys(here.VM.get_VIFs(vm), network)
        here.VM.assert_can_migrate(vm, dest, True, vdi_map, vif_map, {"force": "false"})
        return str(here.Async.VM.migrate_send(vm, dest, True, vdi_map, vif_map, {"force": "false"}))


def test_migrate_receive_and_migrate_send_move_a_running_guest(world: World, tmp_path: Path) -> None:
    made = world.new_guest(world.source, Guest(filled=24))
    logs = set((world.destination.state_dir / "migrations").glob("*"))
    task = migrate_send(world, made, ["local-raw", "local-qcow2"])
    seen = world.follow(task)
    assert (seen.status, seen.error_info) == ("success", [])
    assert seen.progress == sorted(seen.progress)

    # the same uuid at the destination, gone at the source; the task's result is the VM there
    assert made.uuid not in world.vms(world.source)
    assert world.vms(world.destination)[made.uuid]["power_state"] == "Running"
    with world.session(world.source) as api:
        result = api.task.get_result(task)
        api.task.destroy(task)
    with world.session(world.destination) as api:
        assert result == f"<value>{api.VM.get_by_uuid(made.uuid)}</value>"

    time.sleep(0.3)
    assert world.ticks(made.uuid, world.destination)
    images = world.images(world.destination, made.uuid)
    assert [image.suffix for image in images] == [".raw", ".qcow2"]
    world.shut_down(world.destination, made.uuid)
    console = world.console(made.uuid, world.source, world.destination)
    assert (console.breaks, console.anomalies) == ([], [])
    for image in images:
        assert made.guest.ticker.lost(as_raw(image, tmp_path), console.counters) == []
    world.nothing_left(world.source)
    # one offer was used: one log
    assert len(set((world.destination.state_dir / "migrations").glob("*")) - logs) == 1


def test_migrate_send_is_cancelled_by_its_task(world: World) -> None:
    made = world.new_guest(world.source, Guest(filled=96))
    task = migrate_send(world, made, ["local-raw", "local-raw"])
    cancelled: list[float] = []

    def cancel(record: dict[str, Any]) -> None:
        # at the beginning of the copies: 3.2 is the first step behind the receiver's preparation
        if (
            not cancelled
            and record["other_config"].get("step", "") >= "2.5"
            and "cancel" in record["allowed_operations"]
        ):
            cancelled.append(record["progress"])
            with world.session(world.source) as api:
                try:
                    api.task.cancel(task)
                except XenAPI.Failure:
                    cancelled.clear()

    seen = world.follow(task, cancel)
    assert cancelled
    assert (seen.status, seen.error_info) == ("cancelled", [])
    assert world.vms(world.source)[made.uuid]["power_state"] == "Running"
    assert world.vms(world.source)[made.uuid]["current_operations"] == {}
    assert world.ticks(made.uuid, world.source)
    assert world.console(made.uuid, world.source).breaks == []
    world.nothing_left(world.destination)
