"""What a client shows of a VM that runs and of its host, by the official library, before and after a migration."""

from __future__ import annotations

from typing import Any

import pytest

from tests.system.world import World
from xapi_migrate.lab.host import LabHost
from xapi_migrate.lab.provisioning import Guest

pytestmark = pytest.mark.system


def shown(world: World, host: LabHost, uuid: str) -> dict[str, Any]:
    with world.session(host) as api:
        vm = api.VM.get_record(api.VM.get_by_uuid(uuid))
        [this] = api.host.get_all()
        assert vm["resident_on"] == this and api.host.get_resident_VMs(this) == [api.VM.get_by_uuid(uuid)]
        metrics = api.VM_metrics.get_record(vm["metrics"])
        return {
            "domid": int(vm["domid"]),
            "devices": sorted(api.VBD.get_device(vbd) for vbd in vm["VBDs"]),
            "year": metrics["start_time"].value[:4],
            "processors": len(api.host.get_host_CPUs(this)) == int(api.host.get_cpu_info(this)["cpu_count"]) > 0,
            "host year": api.host_metrics.get_last_updated(api.host.get_metrics(this)).value[:4],
        }


def test_at_either_host(world: World) -> None:
    made = world.new_guest(world.source, Guest(filled=4))
    first = shown(world, world.source, made.uuid)
    assert first.pop("domid") > 0
    assert first["devices"] == ["xvda", "xvdb"] and first["processors"] is True
    assert first["year"] >= "2024" and first["host year"] >= "2024"
    seen = world.follow(world.begin(made.uuid, world.receive("local-raw")))
    assert (seen.status, seen.error_info) == ("success", [])
    there = shown(world, world.destination, made.uuid)
    assert there.pop("domid") > 0
    assert there == first
    world.shut_down(world.destination, made.uuid)
    with world.session(world.destination) as api:
        vm = api.VM.get_record(api.VM.get_by_uuid(made.uuid))
        assert int(vm["domid"]) == -1
        assert {api.VBD.get_device(vbd) for vbd in vm["VBDs"]} == {""}
