"""Networks, the bridges that they are on, and what a VM's interfaces are connected to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import pytest_twisted

from tests.toolstack.small_host import SmallHost, World, small_host
from xapi_migrate.errors import MigrateError


async def failure(here: SmallHost, method: str, *params: Any) -> list[str]:
    with pytest.raises(MigrateError) as caught:
        await here.call(method, *params)
    return caught.value.failure()


async def with_vif(here: SmallHost, network: str) -> tuple[str, str]:
    """A new VM without disks, and its VIF."""
    vm = await here.vm("", disks=0)
    return vm, await here.call("VIF.create", {"VM": vm, "network": network, "device": "0", "MTU": "1400"})


def nics(here: SmallHost) -> list[tuple[str, int]]:
    return [(nic.bridge, nic.mtu) for g in here.world.hypervisor.guests.values() for nic in g.spec.nics]


@pytest_twisted.ensureDeferred
async def test_a_bridge_that_is_there_is_used_and_left_alone(tmp_path: Path) -> None:
    async with small_host(tmp_path) as here:
        bridges = here.world.hypervisor.bridges
        assert await failure(here, "network.create", {"name_label": "n", "bridge": "br7"}) == [
            "BRIDGE_NOT_AVAILABLE", "br7"
        ]  # fmt: skip
        bridges.add("br7")
        network = await here.call("network.create", {"name_label": "n", "bridge": "br7"})
        assert (here.get("network", network)["bridge"], here.get("network", network)["managed"]) == ("br7", False)
        vm, vif = await with_vif(here, network)
        await here.call("VM.start", vm, False, False)
        assert nics(here) == [("br7", 1400)]
        assert here.get("VIF", vif)["currently_attached"]
        assert await failure(here, "network.destroy", network) == ["NETWORK_CONTAINS_VIF", vif]
        await here.call("VM.hard_shutdown", vm)
        assert not here.get("VIF", vif)["currently_attached"]
        await here.call("VM.destroy", vm)
        await here.call("network.destroy", network)
        assert bridges == {"br7"}
        (pif,) = here.server.records.refs("PIF")
        management = here.get("PIF", pif)["network"]
        assert await failure(here, "network.destroy", management) == ["NETWORK_CONTAINS_PIF", pif]


@pytest_twisted.ensureDeferred
async def test_a_managed_bridge_is_made_and_goes_with_its_network(tmp_path: Path) -> None:
    world = World()
    async with small_host(tmp_path, world) as here:
        fields = {"name_label": "n", "bridge": "br8", "managed": True}
        network = await here.call("network.create", fields)
        assert world.hypervisor.bridges == {"br8"}
        assert await failure(here, "network.create", fields) == ["BRIDGE_NOT_AVAILABLE", "br8"]
        assert await failure(here, "network.create", {**fields, "bridge": "br9", "MTU": "9"}) == [
            "INVALID_VALUE", "MTU", "9"
        ]  # fmt: skip
        plain = await here.call("network.create", {"name_label": "plain", "managed": True})
        assert here.get("network", plain)["bridge"] == ""
        vm, _ = await with_vif(here, plain)
        await here.call("VM.start", vm, False, False)
        assert nics(here) == [("", 1400)]
    world.hypervisor.bridges.clear()  # the host was started anew
    async with small_host(tmp_path, world) as here:
        assert world.hypervisor.bridges == {"br8"}
        await here.call("network.destroy", network)
        assert world.hypervisor.bridges == set()


@pytest_twisted.ensureDeferred
async def test_without_the_bridge_no_vm_starts(tmp_path: Path) -> None:
    async with small_host(tmp_path) as here:
        network = await here.call("network.create", {"name_label": "n", "bridge": "br8", "managed": True})
        vm, vif = await with_vif(here, network)
        here.world.hypervisor.bridges.clear()
        assert await failure(here, "VM.start", vm, False, False) == ["BRIDGE_NOT_AVAILABLE", "br8"]
        assert here.world.hypervisor.guests == {}
        assert here.get("VM", vm)["power_state"] == "Halted" and not here.get("VIF", vif)["currently_attached"]


@pytest_twisted.ensureDeferred
async def test_or_it_runs_unconnected_where_that_is_configured(tmp_path: Path) -> None:
    async with small_host(tmp_path, without_bridge="disconnect") as here:
        network = await here.call("network.create", {"name_label": "n", "bridge": "br8", "managed": True})
        vm, _ = await with_vif(here, network)
        here.world.hypervisor.bridges.clear()
        await here.call("VM.start", vm, False, False)
        assert nics(here) == [("", 1400)]
