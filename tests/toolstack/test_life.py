"""SRs, disks and VMs from their making to their end, and what a restarted daemon finds."""

from __future__ import annotations

from pathlib import Path

import pytest
import pytest_twisted
from twisted.internet import defer, reactor
from twisted.internet.task import deferLater

from tests.toolstack.small_host import World, small_host
from xapi_migrate.errors import (
    DomainError,
    HandleInvalid,
    InvalidValue,
    NotEnoughMemory,
    OtherOperationInProgress,
    RemoteError,
    SrBackendFailure,
    SrFull,
    SrNotAttached,
    SrUnknownDriver,
    VdiInUse,
    VmBadPowerState,
)
from xapi_migrate.refusals import DeviceExists, MacInvalid
from xapi_migrate.sm.interfaces import Attachment
from xapi_migrate.store.interfaces import NULL


async def until(check: object) -> None:
    for _ in range(100):
        if check():  # type: ignore[operator]
            return
        await deferLater(reactor, 0.01)
    raise AssertionError("it never came true")


@pytest_twisted.ensureDeferred
async def test_the_host_presents_itself(tmp_path: Path) -> None:
    async with small_host(tmp_path) as here:
        (pool,) = await here.call("pool.get_all")
        host = await here.call("host.get_record", await here.call("pool.get_master", pool))
        assert host["address"] == "127.0.0.1" and host["API_version_major"] == 2 and host["enabled"]
        assert host["software_version"]["product_version"] and host["license_params"]["restrict_connection"] == "false"
        assert (await here.call("SM.get_all_records")).popitem()[1]["type"] == "memory"
        (pif,) = here.server.records.find("PIF", management=True)
        assert here.get("PIF", pif)["host"] == here.host and len(here.server.records.refs("network")) == 1
        first = host["uuid"]
    async with small_host(tmp_path) as again:
        assert again.get("host", again.host)["uuid"] == first
        assert [len(again.server.records.refs(cls)) for cls in ("host", "pool", "network", "PIF", "SM")] == [1] * 5


@pytest_twisted.ensureDeferred
async def test_an_sr_and_its_disks(tmp_path: Path) -> None:
    async with small_host(tmp_path) as here:
        sr = await here.sr()
        assert here.get("pool", here.server.records.refs("pool")[0])["default_SR"] == sr
        vdi = await here.call("VDI.create", {"SR": sr, "virtual_size": "1000", "name_label": "d", "type": "user"})
        assert here.get("VDI", vdi)["virtual_size"] == 1024 and here.get("SR", sr)["VDIs"] == [vdi]
        assert here.get("SR", sr)["physical_size"] == 1 << 30 and here.get("SR", sr)["virtual_allocation"] == 1024
        with pytest.raises(SrFull):
            await here.call("VDI.create", {"SR": sr, "virtual_size": str(1 << 40)})
        with pytest.raises(InvalidValue):
            await here.call("VDI.create", {"SR": sr, "virtual_size": "0"})
        await here.call("VDI.set_name_label", vdi, "e")
        disks = here.world.disks[here.get("SR", sr)["uuid"]].disks
        uuid = here.get("VDI", vdi)["uuid"]
        del disks[uuid]
        disks["11111111-1111-1111-1111-111111111111"] = bytearray(512)
        await here.call("SR.scan", sr)
        (found,) = here.get("SR", sr)["VDIs"]
        assert here.get("VDI", found)["uuid"] == "11111111-1111-1111-1111-111111111111"
        await here.call("VDI.destroy", found)
        assert not disks and here.get("SR", sr)["VDIs"] == []
        await here.call("SR.destroy", sr)
        assert here.server.records.refs("SR") == here.server.records.refs("PBD") == []


@pytest_twisted.ensureDeferred
async def test_an_sr_that_cannot_be_made_leaves_nothing(tmp_path: Path) -> None:
    async with small_host(tmp_path) as here:
        with pytest.raises(InvalidValue):
            await here.sr(bad="1")
        with pytest.raises(SrUnknownDriver):
            await here.call("SR.create", here.host, {}, 0, "", "", "nowhere", "", False)
        assert here.server.records.refs("SR") == here.server.records.refs("PBD") == []
        with pytest.raises(HandleInvalid):
            here.toolstack.sr("OpaqueRef:none")


@pytest_twisted.ensureDeferred
async def test_a_vm_runs_and_stops(tmp_path: Path) -> None:
    async with small_host(tmp_path) as here:
        sr = await here.sr()
        vm = await here.vm(sr, disks=2)
        assert here.get("VM", vm)["allowed_operations"] == ["start", "migrate_send", "destroy"]
        await here.call("VM.start", vm, False, False)
        record = here.get("VM", vm)
        assert record["power_state"] == "Running" and record["resident_on"] == here.host
        assert "migrate_send" in record["allowed_operations"] and record["current_operations"] == {}
        guest = here.world.hypervisor.guests[here.toolstack.domain_of(vm)]
        assert [disk.device for disk in guest.spec.disks] == ["0", "1"]
        assert guest.spec.memory == 64 << 20 and guest.spec.machine == record["platform"]["machine"] == "fake-1"
        assert guest.spec.console_path == str(tmp_path / "consoles" / f"{record['uuid']}.log")
        with pytest.raises(VmBadPowerState):
            await here.call("VM.start", vm, False, False)
        with pytest.raises(VmBadPowerState):
            await here.call("VM.destroy", vm)
        with pytest.raises(VdiInUse):
            await here.call("VDI.destroy", here.get("VBD", record["VBDs"][0])["VDI"])
        await here.call("VM.pause", vm)
        await here.call("VM.unpause", vm)
        await here.call("VM.clean_shutdown", vm)
        assert here.get("VM", vm)["power_state"] == "Halted" and here.get("VM", vm)["resident_on"] == NULL
        assert here.world.hypervisor.guests == {} and here.users(sr) == []
        await here.call("VM.start", vm, False, False)
        await here.call("VM.hard_shutdown", vm)
        assert here.users(sr) == []
        await here.call("VM.destroy", vm)
        assert here.server.records.refs("VM") == here.server.records.refs("VBD") == []


@pytest_twisted.ensureDeferred
async def test_a_vm_without_memory_does_not_start(tmp_path: Path) -> None:
    async with small_host(tmp_path) as here:
        for memory in ("0", str((1 << 20) - 1)):
            vm = await here.call("VM.create", {"name_label": "none", "memory_static_max": memory, "VCPUs_max": "1"})
            with pytest.raises(InvalidValue, match="memory_static_max"):
                await here.call("VM.start", vm, False, False)
            assert here.get("VM", vm)["power_state"] == "Halted"
            assert not here.toolstack.machines.domain_of(vm)
        assert not here.world.hypervisor.guests


@pytest_twisted.ensureDeferred
async def test_a_start_that_fails_leaves_nothing(tmp_path: Path) -> None:
    async with small_host(tmp_path) as here:
        sr = await here.sr()
        vm = await here.vm(sr)
        here.world.hypervisor.faults.start = "no luck"
        with pytest.raises(DomainError):
            await here.call("VM.start", vm, False, False)
        record = here.get("VM", vm)
        assert record["power_state"] == "Halted" and here.toolstack.domain_of(vm) == "" and here.users(sr) == []
        assert not here.get("VBD", record["VBDs"][0])["currently_attached"] and record["current_operations"] == {}


@pytest_twisted.ensureDeferred
async def test_two_vms_do_not_share_a_disk(tmp_path: Path) -> None:
    async with small_host(tmp_path) as here:
        sr = await here.sr()
        first, second = await here.vm(sr), await here.vm(sr, disks=0)
        vdi = here.get("VBD", here.get("VM", first)["VBDs"][0])["VDI"]
        await here.call("VBD.create", {"VM": second, "VDI": vdi})
        await here.call("VM.start", first, False, False)
        with pytest.raises(VdiInUse):
            await here.call("VM.start", second, False, False)
        assert here.get("VM", first)["power_state"] == "Running" and here.get("VM", second)["power_state"] == "Halted"
        await here.call("VM.hard_shutdown", first)
        here.toolstack.begin_operation(first, "migrate_send", "OpaqueRef:task")  # its disks are attached to no VM then
        with pytest.raises(VdiInUse):
            await here.call("VM.start", second, False, False)
        here.toolstack.end_operation(first, "OpaqueRef:task")
        here.server.records.update("VM", first, _incoming_uuid="of a VM that is being received")
        with pytest.raises(VdiInUse):
            await here.call("VM.start", second, False, False)
        here.server.records.update("VM", first, _incoming_uuid="")


@pytest_twisted.ensureDeferred
async def test_two_vms_of_one_host_do_not_even_share_a_sharable_disk(tmp_path: Path) -> None:
    """The host has one process for it, which ends when the first of them lets go."""
    async with small_host(tmp_path) as here:
        sr = await here.sr()
        first, second = await here.vm(sr), await here.vm(sr, disks=0)
        vdi = here.get("VBD", here.get("VM", first)["VBDs"][0])["VDI"]
        here.server.records.update("VDI", vdi, sharable=True)
        await here.call("VBD.create", {"VM": second, "VDI": vdi})
        await here.call("VM.start", first, False, False)
        with pytest.raises(VdiInUse):
            await here.call("VM.start", second, False, False)
        await here.call("VM.hard_shutdown", first)


@pytest.mark.parametrize("event", ["power_off", "crash"])
@pytest_twisted.ensureDeferred
async def test_a_guest_that_ends_by_itself_is_halted_and_its_storage_released(tmp_path: Path, event: str) -> None:
    async with small_host(tmp_path) as here:
        sr = await here.sr()
        vm = await here.vm(sr)
        await here.call("VM.start", vm, False, False)
        getattr(here.world.hypervisor, event)(here.toolstack.domain_of(vm))
        await until(lambda: here.get("VM", vm)["power_state"] == "Halted")
        assert here.users(sr) == [] and here.world.hypervisor.guests == {}


@pytest_twisted.ensureDeferred
async def test_a_vm_under_migration_is_left_alone(tmp_path: Path) -> None:
    async with small_host(tmp_path) as here:
        sr = await here.sr()
        vm = await here.vm(sr)
        await here.call("VM.start", vm, False, False)
        task = here.server.tasks.begin("VM.migrate_send").ref
        here.toolstack.begin_operation(vm, "migrate_send", task)
        assert here.get("VM", vm)["allowed_operations"] == []
        for method in ("VM.hard_shutdown", "VM.clean_shutdown", "VM.pause"):
            with pytest.raises(OtherOperationInProgress):
                await here.call(method, vm)
        with pytest.raises(OtherOperationInProgress):
            here.toolstack.begin_operation(vm, "migrate_send", "OpaqueRef:other")
        here.world.hypervisor.power_off(here.toolstack.domain_of(vm))
        await deferLater(reactor, 0.05)
        assert here.get("VM", vm)["power_state"] == "Running"
        here.toolstack.end_operation(vm, task)
        await until(lambda: here.get("VM", vm)["power_state"] == "Halted")
        here.toolstack.end_operation("OpaqueRef:gone", task)


@pytest_twisted.ensureDeferred
async def test_a_received_vm_has_the_identity_it_will_have(tmp_path: Path) -> None:
    async with small_host(tmp_path) as here:
        sr = await here.sr()
        vm = await here.vm(sr)
        here.server.records.update("VM", vm, _incoming_uuid="final")
        (vbd,) = here.toolstack.disks(vm)
        spec = here.toolstack.spec_of(vm, "d", {vbd: Attachment("/s", "e", 512)})
        assert spec.vm_uuid == "final" and spec.console_path.endswith("/final.log") and spec.disks[0].export == "e"


@pytest_twisted.ensureDeferred
async def test_a_restarted_daemon_finds_what_there_is(tmp_path: Path) -> None:
    world = World()
    async with small_host(tmp_path, world) as here:
        good, lost = await here.sr(), await here.sr()
        running, ended = await here.vm(good), await here.vm(good)
        for vm in (running, ended):
            await here.call("VM.start", vm, False, False)
        here.toolstack.begin_operation(running, "start", "OpaqueRef:task-of-old")
        world.broken.add(here.get("SR", lost)["uuid"])
        pending = here.server.tasks.begin("Async.VM.start").ref
        gone = here.toolstack.domain_of(ended)
    world.hypervisor.power_off(gone)
    async with small_host(tmp_path, world) as again:
        assert again.get("VM", running)["power_state"] == "Running"
        assert again.get("VM", running)["current_operations"] == {}
        assert again.get("VM", ended)["power_state"] == "Halted" and gone not in world.hypervisor.guests
        assert again.get("task", pending)["status"] == "failure"
        assert not again.get("PBD", again.get("SR", lost)["PBDs"][0])["currently_attached"]
        with pytest.raises(SrNotAttached):
            again.toolstack.sr(lost)
        world.broken.clear()
        await again.call("PBD.plug", again.get("SR", lost)["PBDs"][0])
        assert again.toolstack.sr(lost).uuid == again.get("SR", lost)["uuid"]
        await again.call("VM.hard_shutdown", running)
        assert world.hypervisor.guests == {}


@pytest_twisted.ensureDeferred
async def test_devices(tmp_path: Path) -> None:
    async with small_host(tmp_path) as here:
        sr = await here.sr()
        vm = await here.vm(sr)
        (network,) = here.server.records.refs("network")
        vif = await here.call("VIF.create", {"VM": vm, "network": network, "device": "0"})
        assert here.get("VIF", vif)["MAC"].startswith("02:") and here.get("network", network)["VIFs"] == [vif]
        for wrong in ("nonsense", "01:00:00:00:00:00", "00:00:00:00:00:00", "02-11-22-33-44-55", "02:11:22:33:44:55\n"):
            with pytest.raises(MacInvalid):
                await here.call("VIF.create", {"VM": vm, "network": network, "device": "1", "MAC": wrong})
        with pytest.raises(DeviceExists):
            await here.call("VIF.create", {"VM": vm, "network": network, "device": "0"})
        with pytest.raises(DeviceExists):
            await here.call("VBD.create", {"VM": vm, "userdevice": "0"})
        assert (await here.call("VM.get_allowed_VBD_devices", vm))[0] == "1"
        await here.call("VM.set_memory_limits", vm, "1", "4", "2", "3")
        assert here.get("VM", vm)["memory_static_max"] == 4
        with pytest.raises(RemoteError):
            await here.call("VM.set_memory_limits", vm, "4", "1", "2", "3")


@pytest_twisted.ensureDeferred
async def test_a_broken_detach_does_not_keep_a_vm_from_halting(tmp_path: Path) -> None:
    async with small_host(tmp_path) as here:
        sr = await here.sr()
        vm = await here.vm(sr)
        await here.call("VM.start", vm, False, False)
        here.toolstack.sr(sr).fail("vdi_deactivate", SrBackendFailure("x", "y"))  # type: ignore[attr-defined]
        await here.call("VM.hard_shutdown", vm)
        assert here.get("VM", vm)["power_state"] == "Halted"


@pytest_twisted.ensureDeferred
async def test_a_vm_that_does_not_fit_into_the_memory_that_is_free_stays_as_it_is(tmp_path: Path) -> None:
    world = World()
    async with small_host(tmp_path, world) as here:
        sr = await here.sr()
        vms = [await here.vm(sr) for _ in range(2)]
        needed = here.get("VM", vms[0])["memory_static_max"]
        world.free_memory = needed - 1
        for call in ("VM.start", "VM.start_on"):
            on = (here.host,) if call == "VM.start_on" else ()
            with pytest.raises(NotEnoughMemory) as refused:
                await here.call(call, vms[0], *on, False, False)
            assert refused.value.failure() == ["HOST_NOT_ENOUGH_FREE_MEMORY", str(needed), str(needed - 1)]
        assert here.get("VM", vms[0])["power_state"] == "Halted"
        assert here.get("VM", vms[0])["allowed_operations"] == ["start", "migrate_send", "destroy"]
        assert not here.get("VM", vms[0]).get("_domain_host") and here.world.hypervisor.guests == {}
        # two that are started at once do not both fit
        world.free_memory = 2 * needed - 1
        starting = [defer.ensureDeferred(here.call("VM.start", vm, False, False)) for vm in vms]
        (first, _), (second, failure) = await defer.DeferredList(starting, consumeErrors=True)
        assert (first, second) == (True, False) and failure.check(NotEnoughMemory)
        # what was promised to the one that runs, and not touched yet, is not free; nor is it counted for its reboot
        await here.call("VM.hard_reboot", vms[0])
        await here.call("VM.suspend", vms[0])
        world.free_memory = needed - 1
        with pytest.raises(NotEnoughMemory):
            await here.call("VM.resume", vms[0], False, False)
        assert here.get("VM", vms[0])["power_state"] == "Suspended"
        world.free_memory = needed
        await here.call("VM.resume", vms[0], False, False)
        await here.call("VM.hard_shutdown", vms[0])
