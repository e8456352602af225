"""What a VM's hardware is made of does not change under a guest: the receiver of a migration makes it once more."""

from __future__ import annotations

from pathlib import Path

import pytest
import pytest_twisted

from tests.toolstack.small_host import SmallHost, small_host
from xapi_migrate.errors import InvalidValue, OtherOperationInProgress, VdiInUse, VmBadPowerState
from xapi_migrate.refusals import DeviceExists, OperationBlocked

Change = tuple[str, str, object]


async def changes(here: SmallHost, vm: str) -> list[Change]:
    """One of each: what is changed, and how."""
    first, _ = here.get("VM", vm)["VBDs"]
    return [
        ("VM.set_VCPUs_max", vm, "2"),
        ("VM.set_memory_static_max", vm, str(2**30)),
        ("VM.set_platform", vm, {"machine": "pc", "cpu": "other"}),
        ("VM.set_is_a_template", vm, True),
        ("VBD.set_userdevice", first, "5"),
        ("VBD.set_mode", first, "RO"),
        ("VDI.set_read_only", here.get("VBD", first)["VDI"], True),
    ]


@pytest.mark.parametrize("pause", [False, True])
@pytest_twisted.ensureDeferred
async def test_under_a_guest_it_stays(tmp_path: Path, pause: bool) -> None:
    async with small_host(tmp_path) as here:
        vm = await here.vm(await here.sr(), disks=2)
        await here.call("VM.start", vm, pause, False)
        before = {cls: {ref: here.get(cls, ref) for ref in here.server.records.refs(cls)} for cls in ("VBD", "VDI")}
        machine = here.get("VM", vm)
        for method, ref, value in await changes(here, vm):
            with pytest.raises((VmBadPowerState, VdiInUse)):
                await here.call(method, ref, value)
        assert here.get("VM", vm) == machine and machine["allowed_operations"] != ["destroy"]
        assert all(here.get(cls, ref) == record for cls, records in before.items() for ref, record in records.items())
        # what clients write, and what changes nothing, is taken
        await here.call("VM.add_to_platform", vm, "note", "x")
        await here.call("VM.remove_from_platform", vm, "note")
        with pytest.raises(VmBadPowerState):
            await here.call("VM.remove_from_platform", vm, "machine")
        await here.call("VBD.set_mode", machine["VBDs"][0], "RW")


@pytest_twisted.ensureDeferred
async def test_while_a_halted_vm_is_being_moved_it_stays(tmp_path: Path) -> None:
    async with small_host(tmp_path) as here:
        vm = await here.vm(await here.sr(), disks=2)
        here.toolstack.begin_operation(vm, "migrate_send", "OpaqueRef:task")
        for method, ref, value in await changes(here, vm):
            with pytest.raises(OtherOperationInProgress):
                await here.call(method, ref, value)
        with pytest.raises(OtherOperationInProgress):
            await here.call("VM.set_memory_limits", vm, "0", "4", "0", "4")


@pytest_twisted.ensureDeferred
async def test_of_a_vm_that_is_off_it_changes(tmp_path: Path) -> None:
    async with small_host(tmp_path) as here:
        vm = await here.vm(await here.sr(), disks=2)
        first, second = here.get("VM", vm)["VBDs"]
        for method, ref, value in await changes(here, vm):
            await here.call(method, ref, value)
        machine, vbd = here.get("VM", vm), here.get("VBD", first)
        assert (machine["VCPUs_max"], machine["memory_static_max"], machine["is_a_template"]) == (2, 2**30, True)
        assert (vbd["userdevice"], vbd["mode"], here.get("VDI", vbd["VDI"])["read_only"]) == ("5", "RO", True)
        with pytest.raises(DeviceExists):
            await here.call("VBD.set_userdevice", second, "5")
        for method in ("VM.set_VCPUs_max", "VM.set_memory_static_max"):
            with pytest.raises(InvalidValue):
                await here.call(method, vm, "-1")
        await here.call("VM.set_is_a_template", vm, False)
        await here.call("VM.add_to_blocked_operations", vm, "make_into_template", "no")
        with pytest.raises(OperationBlocked):
            await here.call("VM.set_is_a_template", vm, True)
