"""host.migrate_receive, VM.assert_can_migrate and VM.migrate_send between two whole servers."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.task import Clock

from tests.xenapi.two_servers import DISK, FREE_MEMORY, Server, TwoServers, two_servers
from xapi_migrate.errors import MigrateError, VmBadPowerState
from xapi_migrate.store.interfaces import NULL
from xapi_migrate.toolstack.destination import ABOUT, OFFER
from xapi_migrate.uris.offer import parse

UNKNOWN = "OpaqueRef:00000000-0000-0000-0000-000000000000"


async def migrate_receive(server: Server) -> dict[str, str]:
    answer: dict[str, str] = await server.call("host.migrate_receive", server.host, server.network, {})
    return answer


async def failure(server: Server, method: str, *params: Any) -> list[str]:
    with pytest.raises(MigrateError) as caught:
        await server.call(method, *params)
    return caught.value.failure()


@pytest_twisted.ensureDeferred
async def test_the_map_has_xapis_keys_and_our_offer(tmp_path: Path) -> None:
    async with two_servers(tmp_path) as world:
        there = world.destination
        sr = await there.new_sr()
        got = await migrate_receive(there)
        assert set(got) == {"SM", "host", "xenops", "session_id", "master", OFFER, ABOUT}
        assert got["host"] == there.host
        assert got["master"] == "http://127.0.0.1"
        assert got["SM"] == f"http://127.0.0.1/services/SM?session_id={got['session_id']}"
        assert got["xenops"] == f"http://127.0.0.1/services/xenops?session_id={got['session_id']}"
        # the session in it has the right form and opens nothing
        assert got["session_id"].startswith("OpaqueRef:")
        with pytest.raises(MigrateError) as caught:
            await there.server.dispatcher.call("VM.get_all", [got["session_id"]], "here")
        assert caught.value.failure() == ["SESSION_INVALID", got["session_id"]]
        assert [parse(uri).port for uri in got[OFFER].split(" ")] == [there.port]
        about = json.loads(got[ABOUT])
        uuid = there.records.get("SR", sr)["uuid"]
        assert about["srs"] == {sr: {"uuid": uuid, "attached": True, "free": 1 << 30}}
        assert about["memory_free"] == FREE_MEMORY
        assert about["networks"] == [there.network]


@pytest_twisted.ensureDeferred
async def test_migrate_receive_checks_its_network(tmp_path: Path) -> None:
    async with two_servers(tmp_path) as world:
        there = world.destination
        host, records = there.host, there.records
        internal = records.create("network", name_label="internal")
        lacking = ["HOST_CANNOT_ATTACH_NETWORK", host, internal]
        assert await failure(there, "host.migrate_receive", host, internal, {}) == lacking
        assert await failure(there, "host.migrate_receive", UNKNOWN, internal, {}) == [
            "HANDLE_INVALID",
            "host",
            UNKNOWN,
        ]
        pif = records.create("PIF", host=host, network=internal, ip_configuration_mode="None")
        assert await failure(there, "host.migrate_receive", host, internal, {}) == [
            "PIF_HAS_NO_NETWORK_CONFIGURATION", pif
        ]  # fmt: skip
        records.update("PIF", pif, ip_configuration_mode="DHCP")
        assert await failure(there, "host.migrate_receive", host, internal, {}) == ["INTERFACE_HAS_NO_IP", pif]


@pytest_twisted.ensureDeferred
async def test_hundreds_of_offers_cost_no_records_no_files_and_expire(tmp_path: Path) -> None:
    async with two_servers(tmp_path) as world:
        there = world.destination
        clock = Clock()
        there.engine._host.clock = clock
        generation = there.records.generation
        capabilities = [parse((await migrate_receive(there))[OFFER]).capability.text for _ in range(500)]
        assert len(set(capabilities)) == 500
        assert all(there.engine.find(capability) for capability in capabilities)
        # the sessions of this test are the only thing that has changed
        changes = there.records.generation - generation
        assert changes == 2 * 500
        assert list(there.stories.iterdir()) == []
        assert there.journals.all == {}
        clock.advance(there.engine._host.config.times.offer + 1)
        assert [capability for capability in capabilities if there.engine.find(capability)] == []
        assert clock.getDelayedCalls() == []


@pytest.mark.parametrize("extra", [(), ({},), ({}, {})], ids=["six", "seven", "eight"])
@pytest_twisted.ensureDeferred
async def test_a_running_vm_moves_by_six_to_eight_arguments(tmp_path: Path, extra: tuple[Any, ...]) -> None:
    async with two_servers(tmp_path) as world:
        here, there = world.source, world.destination
        vm = await here.new_vm(await here.new_sr(), disks=2)
        uuid = here.records.get("VM", vm)["uuid"]
        mac = here.records.get("VIF", here.records.get("VM", vm)["VIFs"][0])["MAC"]
        sr, network = await there.new_sr(), there.records.create("network", name_label="other")
        vdi_map, vif_map = here.maps(vm, sr, network)
        dest = await migrate_receive(there)
        options = {"force": "false", "compress": "true", "live": "true", "x-unknown": "1"}
        arguments = (vm, dest, True, vdi_map, vif_map, options)
        assert await here.call("VM.assert_can_migrate", *arguments) is None
        assert there.records.refs("VM") == there.records.refs("VDI") == []
        moved = await here.call("VM.migrate_send", *arguments, *extra)
        # the reference is the destination's
        record = there.records.get("VM", moved)
        assert record["uuid"] == uuid
        assert record["power_state"] == "Running"
        assert "HideFromXenCenter" not in record["other_config"]
        assert [there.records.get("VDI", r)["SR"] for r in there.records.refs("VDI")] == [sr, sr]
        [vif] = record["VIFs"]
        assert there.records.get("VIF", vif)["network"] == network
        assert there.records.get("VIF", vif)["MAC"] == mac
        assert here.records.refs("VM") == here.records.refs("VDI") == []
        [task] = [
            r for r in here.records.refs("task") if here.records.get("task", r)["name_label"] == "VM.migrate_send"
        ]
        assert here.records.get("task", task)["other_config"]["applies_to"] == f"{vm},{here.host}"


@pytest_twisted.ensureDeferred
async def test_an_asynchronous_one_is_followed_and_cancelled(tmp_path: Path) -> None:
    async with two_servers(tmp_path) as world:
        here, there = world.source, world.destination
        vm = await here.new_vm(await here.new_sr())
        uuid = here.records.get("VM", vm)["uuid"]
        vdi_map, vif_map = here.maps(vm, await there.new_sr(), there.network)
        here.slow()
        dest = await migrate_receive(there)
        task = await here.call("Async.VM.migrate_send", vm, dest, True, vdi_map, vif_map, {})
        await world.until(lambda: here.records.get("task", task)["progress"] > 0.05)
        record = here.records.get("task", task)
        assert (record["name_label"], record["status"]) == ("Async.VM.migrate_send", "pending")
        assert record["allowed_operations"] == ["cancel"]
        assert here.records.get("VM", vm)["current_operations"] == {task: "migrate_send"}
        assert here.records.get("VM", vm)["allowed_operations"] == []
        busy = await failure(here, "VM.migrate_send", vm, dest, True, vdi_map, vif_map, {})
        assert busy == ["OTHER_OPERATION_IN_PROGRESS", "VM", vm, "migrate_send", task]
        await here.call("task.cancel", task)
        await world.until(lambda: here.records.get("task", task)["status"] != "pending")
        assert here.records.get("task", task)["status"] == "cancelled"
        assert here.records.get("VM", vm)["uuid"] == uuid
        assert here.records.get("VM", vm)["power_state"] == "Running"
        await world.until(lambda: not there.records.refs("VM") and not there.records.refs("VDI"))


class Asked:
    """A VM, a destination and whole maps, of which each test spoils one thing."""

    def __init__(self, world: TwoServers, vm: str, sr: str, dest: dict[str, str]) -> None:
        self.world, self.here, self.there = world, world.source, world.destination
        self.vm, self.sr, self.dest = vm, sr, dest
        self.vdi_map, self.vif_map = self.here.maps(vm, sr, self.there.network)
        self.options: dict[str, str] = {}

    @property
    def vdi(self) -> str:
        return next(iter(self.here.maps(self.vm, self.sr, "")[0]))

    @property
    def vif(self) -> str:
        return str(self.here.records.get("VM", self.vm)["VIFs"][0])

    async def refusal(self) -> list[str]:
        """The same by all three calls."""
        arguments = (self.vm, self.dest, True, self.vdi_map, self.vif_map, self.options)
        said = await failure(self.here, "VM.migrate_send", *arguments)
        assert await failure(self.here, "VM.assert_can_migrate", *arguments) == said
        task = await self.here.call("Async.VM.migrate_send", *arguments)
        await self.world.until(lambda: self.here.records.get("task", task)["status"] != "pending")
        record = self.here.records.get("task", task)
        assert (record["status"], record["error_info"]) == ("failure", said)
        assert self.there.records.refs("VM") == self.there.records.refs("VDI") == []
        return said

    def about(self, **changed: Any) -> None:
        self.dest = {**self.dest, ABOUT: json.dumps({**json.loads(self.dest[ABOUT]), **changed})}


@pytest_twisted.ensureDeferred
async def test_every_check_names_its_culprit_by_the_code_that_clients_know(tmp_path: Path) -> None:
    async with two_servers(tmp_path) as world:
        here, there = world.source, world.destination
        vm, sr = await here.new_vm(await here.new_sr()), await there.new_sr()
        dest = await migrate_receive(there)

        def asked() -> Asked:
            return Asked(world, vm, sr, dest)

        async def with_vm(**fields: Any) -> list[str]:
            before = {name: here.records.get("VM", vm)[name] for name in fields}
            here.records.update("VM", vm, **fields)
            said = await asked().refusal()
            here.records.update("VM", vm, **before)
            return said

        async def with_vdi(**fields: Any) -> list[str]:
            ref = asked().vdi
            before = {name: here.records.get("VDI", ref)[name] for name in fields}
            here.records.update("VDI", ref, **fields)
            said = await asked().refusal()
            here.records.update("VDI", ref, **before)
            return said

        # the VM itself
        blocked = {"migrate_send": "not today"}
        assert await with_vm(blocked_operations=blocked) == ["OPERATION_BLOCKED", vm, "not today"]
        assert await with_vm(power_state="Suspended") == ["VM_HAS_NO_SUSPEND_VDI", vm]
        busy = {"OpaqueRef:t": "pause"}
        assert await with_vm(current_operations=busy) == [
            "OTHER_OPERATION_IN_PROGRESS", "VM", vm, "pause", "OpaqueRef:t"
        ]  # fmt: skip
        assert await with_vm(is_a_snapshot=True) == ["VM_IS_SNAPSHOT", vm, "migrate_send"]
        assert await with_vm(is_a_template=True) == ["VM_IS_TEMPLATE", vm, "migrate_send"]
        assert await with_vm(platform={"nomigrate": "true"}) == ["VM_IS_IMMOBILE", vm]
        assert (await with_vm(is_control_domain=True))[0] == "OPERATION_NOT_ALLOWED"
        vgpu = here.records.create("VGPU", VM=vm)
        assert await asked().refusal() == ["VM_HAS_VGPU", vm]
        here.records.destroy("VGPU", vgpu)

        # its disks
        vdi = asked().vdi
        assert await with_vdi(sharable=True) == ["VDI_IS_SHARABLE", vdi]
        assert await with_vdi(on_boot="reset") == ["VDI_ON_BOOT_MODE_INCOMPATIBLE_WITH_OPERATION", vdi]
        assert await with_vdi(cbt_enabled=True) == ["VDI_CBT_ENABLED", vdi]
        assert await with_vdi(sm_config={"key_hash": "x"}) == ["VDI_IS_ENCRYPTED", vdi]
        assert (await with_vdi(missing=True))[0] == "VDI_MISSING"
        [pbd] = here.records.refs("PBD")
        here.records.update("PBD", pbd, currently_attached=False)
        assert await asked().refusal() == ["SR_NOT_ATTACHED", here.records.get("VDI", vdi)["SR"]]
        here.records.update("PBD", pbd, currently_attached=True)

        # the destination
        one = asked()
        one.dest = {key: value for key, value in dest.items() if key not in (OFFER, ABOUT)}
        assert (await one.refusal())[0] == "VM_MIGRATE_CONTACT_REMOTE_SERVICE_FAILED"
        one = asked()
        one.dest = {**dest, OFFER: "gopher://x"}
        assert (await one.refusal())[:2] == ["INVALID_VALUE", "dest:xapi_migrate"]
        one = asked()
        one.dest = {**dest, ABOUT: '{"srs":[]}'}
        assert (await one.refusal())[:2] == ["INVALID_VALUE", "dest:xapi_migrate_host"]
        one = asked()
        one.dest = await migrate_receive(here)
        one.vdi_map = {}
        assert (await one.refusal())[0] == "OPERATION_NOT_ALLOWED"
        one = asked()
        one.dest = {**dest, OFFER: dest[OFFER].rpartition("/")[0] + "/" + "A" * 43}
        gone = await one.refusal()
        assert gone[0] == "VM_MIGRATE_CONTACT_REMOTE_SERVICE_FAILED"
        assert "A" * 43 not in " ".join(gone)

        for changed, said in (
            ({"protocol": 99}, ["VM_HOST_INCOMPATIBLE_VERSION_MIGRATE", vm, there.host]),
            ({"enabled": False}, ["HOST_DISABLED", there.host]),
            ({"cpus": 0}, ["HOST_NOT_ENOUGH_PCPUS", "1", "0"]),
            ({"memory_free": 1}, ["HOST_NOT_ENOUGH_FREE_MEMORY", str(64 << 20), "1"]),
            ({"srs": {}}, ["HANDLE_INVALID", "SR", sr]),
            ({"srs": {sr: {"uuid": "u", "attached": False, "free": -1}}}, ["SR_NOT_ATTACHED", sr]),
            ({"srs": {sr: {"uuid": "u", "attached": True, "free": 512}}}, ["SR_FULL", str(DISK), "512"]),
            ({"networks": []}, ["HANDLE_INVALID", "network", there.network]),
        ):
            one = asked()
            one.about(**changed)
            assert await one.refusal() == said
        one = asked()
        one.about(stream="another")
        assert (await one.refusal())[:3] == ["VM_INCOMPATIBLE_WITH_THIS_HOST", vm, there.host]

        # options and maps
        one = asked()
        one.options = {"copy": "true"}
        assert await one.refusal() == ["VM_BAD_POWER_STATE", vm, "halted", "running"]
        second = await here.new_vm(here.records.get("VDI", vdi)["SR"], running=False, disks=2, vifs=2)
        one = Asked(world, second, sr, dest)
        left_out, _ = one.vdi_map.popitem()
        assert await one.refusal() == ["VDI_NOT_IN_MAP", left_out]
        one = Asked(world, second, sr, dest)
        left_out, _ = one.vif_map.popitem()
        assert await one.refusal() == ["VIF_NOT_IN_MAP", left_out]

        # and after all that it may go
        one = asked()
        assert await here.call("VM.assert_can_migrate", vm, one.dest, True, one.vdi_map, one.vif_map, {}, {}) is None


@pytest_twisted.ensureDeferred
async def test_empty_maps_are_taken_by_a_look_and_not_by_the_migration(tmp_path: Path) -> None:
    async with two_servers(tmp_path) as world:
        here, there = world.source, world.destination
        vm = await here.new_vm(await here.new_sr())
        dest = await migrate_receive(there)
        assert await here.call("VM.assert_can_migrate", vm, dest, True, {}, {}, {}) is None
        vdi_map, vif_map = here.maps(vm, NULL, there.network)
        [vdi], [vif] = vdi_map, vif_map
        assert await failure(here, "VM.migrate_send", vm, dest, True, {}, vif_map, {}) == ["VDI_NOT_IN_MAP", vdi]
        assert await failure(here, "VM.migrate_send", vm, dest, True, vdi_map, {}, {}) == ["VIF_NOT_IN_MAP", vif]
        short = await failure(here, "VM.migrate_send", vm, dest, True, {}, {})
        assert short == ["MESSAGE_PARAMETER_COUNT_MISMATCH", "VM.migrate_send", "6", "5"]


@pytest_twisted.ensureDeferred
async def test_where_a_vm_may_be_in_a_pool_of_one(tmp_path: Path) -> None:
    async with two_servers(tmp_path) as world:
        here = world.source
        sr = await here.new_sr()
        vm = await here.new_vm(sr, running=False)
        assert await here.call("VM.assert_can_boot_here", vm, here.host) is None
        assert await here.call("VM.get_possible_hosts", vm) == [here.host]
        await here.call("VM.set_memory_limits", vm, "0", str(FREE_MEMORY * 2), "0", str(FREE_MEMORY * 2))
        assert await failure(here, "VM.assert_can_boot_here", vm, here.host) == [
            "HOST_NOT_ENOUGH_FREE_MEMORY", str(FREE_MEMORY * 2), str(FREE_MEMORY)
        ]  # fmt: skip
        here.records.update("VM", vm, memory_static_max=1 << 20)
        [pbd] = here.records.refs("PBD")
        here.records.update("PBD", pbd, currently_attached=False)
        assert await failure(here, "VM.assert_can_boot_here", vm, here.host) == ["VM_REQUIRES_SR", vm, sr]
        here.records.update("PBD", pbd, currently_attached=True)
        await here.call("host.disable", here.host)
        assert await failure(here, "VM.assert_can_boot_here", vm, here.host) == ["HOST_DISABLED", here.host]
        assert await here.call("VM.get_possible_hosts", vm) == []
        await here.call("host.enable", here.host)
        await here.call("VM.start", vm, False, False)
        assert (await failure(here, "VM.pool_migrate", vm, here.host, {"live": "true"}))[0] == "OPERATION_NOT_ALLOWED"
        assert await failure(here, "host.evacuate", here.host) == ["NO_HOSTS_AVAILABLE"]
        await here.call("VM.hard_shutdown", vm)
        assert await here.call("host.evacuate", here.host) is None
        [pif] = here.records.find("PIF", management=True)
        assert await here.call("host.get_management_interface", here.host) == pif


@pytest_twisted.ensureDeferred
async def test_every_call_has_its_place_in_the_documentation(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs/xenapi.md").read_text()
    rows = {cells[1].strip(): cells[2] for line in page.splitlines() if len(cells := line.split("|")) == 4}
    refused = "".join(key for key in rows if "." in key)
    async with two_servers(tmp_path) as world:
        missing = []
        for name, call in world.source.server.dispatcher._calls.items():
            cls, _, message = name.partition(".")
            if not hasattr(call.run, "__self__"):
                continue  # made from the data model
            of_class = next((text for key, text in rows.items() if cls in key.split(", ")), "")
            if not re.search(rf"\b{message}\b", of_class) and name not in refused:
                missing.append(name)
        assert missing == []


@pytest_twisted.ensureDeferred
async def test_what_waits_its_turn_says_so_and_can_be_cancelled(tmp_path: Path) -> None:
    """As a client sees it, over HTTP between the hosts: three go, the others know behind how many they wait."""
    async with two_servers(tmp_path) as world:
        here, there = world.source, world.destination
        sr, to = await here.new_sr(), await there.new_sr()
        here.slow()
        tasks = []
        for _ in range(5):
            vm = await here.new_vm(sr)
            vdis, vifs = here.maps(vm, to, there.network)
            dest = await migrate_receive(there)
            tasks.append(await here.call("Async.VM.migrate_send", vm, dest, True, vdis, vifs, {}, {}))

        def told() -> list[tuple[str, str]]:
            other = [here.records.get("task", ref)["other_config"] for ref in tasks]
            return [(one.get("waiting", ""), one.get("behind", "")) for one in other]

        expected = [("", "")] * 3 + [("to be sent", "3"), ("to be sent", "4")]
        await world.until(lambda: told() == expected, str(told()))
        await world.until(lambda: len(there.records.refs("VM")) == 3)
        assert here.records.get("task", tasks[3])["allowed_operations"] == ["cancel"]
        await here.call("task.cancel", tasks[3])
        await world.until(lambda: here.records.get("task", tasks[3])["status"] == "cancelled")
        await world.until(lambda: told()[4] == ("to be sent", "3"))
        for ref in (*tasks[:3], tasks[4]):
            await here.call("task.cancel", ref)
        await world.until(lambda: all(here.records.get("task", ref)["status"] != "pending" for ref in tasks))
        assert len(here.hypervisor.guests) == 5


@pytest_twisted.ensureDeferred
async def test_interfaces_come_to_the_bridge_of_the_mapped_network_and_are_announced(tmp_path: Path) -> None:
    async with two_servers(tmp_path) as world:
        here, there = world.source, world.destination
        vm = await here.new_vm(await here.new_sr())
        [vif] = here.records.get("VM", vm)["VIFs"]
        mac = here.records.get("VIF", vif)["MAC"]
        network = await there.call("network.create", {"name_label": "n", "bridge": "br3", "managed": True})
        vdi_map, vif_map = here.maps(vm, await there.new_sr(), network)
        arguments = (vm, await migrate_receive(there), True, vdi_map, vif_map, {})
        there.hypervisor.bridges.clear()
        lacking = (vm, await migrate_receive(there), True, vdi_map, vif_map, {})
        for method in ("VM.assert_can_migrate", "VM.migrate_send"):
            assert await failure(here, method, *lacking) == ["HOST_CANNOT_ATTACH_NETWORK", there.host, network]
        # it was there when the sender looked, and is gone when the receiver does
        assert await failure(here, "VM.migrate_send", *arguments) == ["BRIDGE_NOT_AVAILABLE", "br3"]
        assert there.records.refs("VM") == there.records.refs("VDI") == []
        assert here.records.get("VM", vm)["power_state"] == "Running"
        other = await there.new_vm(await there.new_sr(), running=False)
        await there.call("VIF.create", {"VM": other, "network": network, "device": "1"})
        assert await failure(there, "VM.assert_can_boot_here", other, there.host) == [
            "VM_REQUIRES_NETWORK", other, network
        ]  # fmt: skip
        there.hypervisor.bridges.add("br3")
        assert await there.call("VM.assert_can_boot_here", other, there.host) is None
        moved = await here.call("VM.migrate_send", vm, await migrate_receive(there), True, vdi_map, vif_map, {})
        [guest] = there.hypervisor.guests.values()
        assert [(nic.mac, nic.bridge) for nic in guest.spec.nics] == [(mac, "br3")]
        assert there.hypervisor.announced == [mac] and here.hypervisor.announced == []
        [vif] = there.records.get("VM", moved)["VIFs"]
        assert there.records.get("VIF", vif)["currently_attached"]


@pytest_twisted.ensureDeferred
async def test_a_halted_vm_is_copied(tmp_path: Path) -> None:
    async with two_servers(tmp_path) as world:
        here, there = world.source, world.destination
        vm = await here.new_vm(await here.new_sr(), running=False, disks=2)
        record = dict(here.records.get("VM", vm))
        vdi_map, vif_map = here.maps(vm, await there.new_sr(), there.network)
        arguments = (vm, await migrate_receive(there), True, vdi_map, vif_map, {"copy": "true"})
        assert await here.call("VM.assert_can_migrate", *arguments) is None
        task = await here.call("Async.VM.migrate_send", *arguments)
        await world.until(lambda: here.records.get("task", task)["status"] != "pending")
        ended = here.records.get("task", task)
        assert ended["other_config"]["XenCenterMeddlingActionTitle"] == "Copying demo"
        [copy] = there.records.refs("VM")
        assert (ended["status"], ended["result"]) == ("success", f"<value>{copy}</value>")
        assert there.records.get("VM", copy)["uuid"] != record["uuid"]
        assert {k: v for k, v in here.records.get("VM", vm).items() if k[0] != "_"} == {
            k: v for k, v in record.items() if k[0] != "_"
        }
        # two VMs from now on
        await here.call("VM.start", vm, False, False)
        await there.call("VM.start", copy, False, False)
        macs = {side.records.get("VIF", ref)["MAC"] for side in (here, there) for ref in side.records.refs("VIF")}
        assert len(macs) == 2
        # in its own pool it is not done by this call
        dest = await migrate_receive(here)
        await here.call("VM.hard_shutdown", vm)
        own = dict.fromkeys(vdi_map, await here.new_sr("other"))
        refused = await failure(here, "VM.migrate_send", vm, dest, True, own, {}, {"copy": "true"})
        assert refused[0] == "OPERATION_NOT_ALLOWED"


@pytest_twisted.ensureDeferred
async def test_a_halted_vm_that_another_member_starts_is_not_sent(tmp_path: Path) -> None:
    """Its record says nothing of that yet: it would run there, and be here at the receiver too."""
    async with two_servers(tmp_path) as world:
        here, there = world.source, world.destination
        vm = await here.new_vm(await here.new_sr(), running=False)
        vdi_map, vif_map = here.maps(vm, await there.new_sr(), there.network)
        here.records.update("VM", vm, _domain_host="OpaqueRef:another-member")
        arguments = (vm, await migrate_receive(there), True, vdi_map, vif_map, {})
        with pytest.raises(VmBadPowerState):
            await here.call("VM.migrate_send", *arguments)
        assert here.records.get("VM", vm)["current_operations"] == {}
        assert here.records.get("VM", vm)["_domain_host"] == "OpaqueRef:another-member"
        here.records.update("VM", vm, _domain_host="")
        await here.call("VM.migrate_send", *arguments)
        assert here.records.refs("VM") == [] and len(there.records.refs("VM")) == 1
        assert there.records.get("VM", there.records.refs("VM")[0]).get("_domain_host") in (None, "")
