"""A guest's network interface through a migration: bridges of this machine, taps, and what is heard on the bridges."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.domains.bridges import announcements, new_name, ports
from tests.system.world import World
from xapi_migrate.domains.taps import ip, is_bridge
from xapi_migrate.lab.host import LabHost
from xapi_migrate.lab.provisioning import Guest

pytestmark = pytest.mark.system


@contextmanager
def network(world: World, host: LabHost) -> Iterator[tuple[str, str]]:
    """(ref, bridge) of a network that the host makes a bridge for."""
    name = new_name()
    with world.session(host) as api:
        ref = api.network.create({"name_label": name, "bridge": name, "managed": True})
        try:
            yield ref, name
        finally:
            for vif in api.network.get_VIFs(ref):
                vm = api.VIF.get_VM(vif)
                if api.VM.get_power_state(vm) != "Halted":
                    api.VM.hard_shutdown(vm)
                api.VIF.destroy(vif)
            api.network.destroy(ref)
            left = is_bridge(name)
            if left:
                ip("link", "del", "dev", name)
            assert not left, "the bridge that was made for the network stays"


def migrate(world: World, uuid: str, dest: dict[str, str], network: str) -> str:
    """Async.VM.migrate_send with six arguments, the maps whole. The task."""
    with world.session(world.destination) as there:
        sr = there.SR.get_by_uuid(world.destination.srs["local-raw"])
    with world.session(world.source) as here:
        vm = here.VM.get_by_uuid(uuid)
        vdi_map = {here.VBD.get_VDI(vbd): sr for vbd in here.VM.get_VBDs(vm)}
        vif_map = dict.fromkeys(here.VM.get_VIFs(vm), network)
        return str(here.Async.VM.migrate_send(vm, dest, True, vdi_map, vif_map, {}))


def test_a_guest_is_heard_of_where_it_went(world: World) -> None:
    made = world.new_guest(world.source, Guest())
    with network(world, world.source) as (here, left), network(world, world.destination) as (there, right):
        mac = connect(world, made.uuid, here)
        assert len(ports(left)) == 1
        with announcements(left) as stale, announcements(right) as heard:
            with world.session(world.destination) as api:
                [host] = api.host.get_all()
                [management] = [pif["network"] for pif in api.PIF.get_all_records().values() if pif["management"]]
                dest: dict[str, str] = api.host.migrate_receive(host, management, {})
            task = migrate(world, made.uuid, dest, there)
            assert world.follow(task).status == "success"
            world.wait(lambda: mac in heard(), "nothing is heard of the guest at the destination")
            assert mac not in stale()
        assert (ports(left), len(ports(right))) == ([], 1)
        assert world.ticks(made.uuid, world.destination)
        # whatever ends the domain ends the tap
        [pid] = world.processes(world.destination, "domains")
        world.shut_down(world.destination, made.uuid)
        assert ports(right) == [] and pid not in world.processes(world.destination, "domains")


def connect(world: World, uuid: str, network: str) -> str:
    """Give the guest a VIF on the network and start it again. Its MAC address."""
    with world.session(world.source) as api:
        vm: Any = api.VM.get_by_uuid(uuid)
        api.VM.hard_shutdown(vm)
        vif = api.VIF.create({"VM": vm, "network": network, "device": "0"})
        api.VM.start(vm, False, False)
        return str(api.VIF.get_MAC(vif))
