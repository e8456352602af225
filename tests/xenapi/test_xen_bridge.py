"""PyPI's xen-bridge: every object is a Python object, every field converted to the type that XenAPI's documentation
says, so that a wrong type, an unknown value of an enumeration or a date of another form is an error."""

from __future__ import annotations

import time
import typing
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
import xenbridge
from twisted.internet import threads

from tests.xenapi.two_servers import PASSWORD, USER, Server, two_servers

KINDS = {
    "Host": xenbridge.Host, "Pool": xenbridge.Pool, "SR": xenbridge.SR, "PBD": xenbridge.PBD, "SM": xenbridge.SM,
    "Network": xenbridge.Network, "PIF": xenbridge.PIF, "VM": xenbridge.VM, "VBD": xenbridge.VBD,
    "VDI": xenbridge.VDI, "VIF": xenbridge.VIF, "Console": xenbridge.Console, "Task": xenbridge.Task,
    "VMMetrics": xenbridge.VMMetrics, "HostMetrics": xenbridge.HostMetrics, "Role": xenbridge.Role,
}  # fmt: skip


def connect(server: Server) -> Any:
    return xenbridge.XenConnection(server.url, USER, PASSWORD)


def leave(*connections: Any) -> None:
    for one in connections:
        one.call("session.logout")
        one.proxy("close")()


def read_all(kind: type, thing: Any) -> dict[str, Any]:
    """Each property of the object, as the library converts it."""
    return {name: getattr(thing, name) for name in typing.get_type_hints(kind) if not name.startswith("_")}


async def connections(work: Any, *servers: Server) -> Any:
    def run() -> Any:
        opened = [connect(server) for server in servers]
        try:
            return work(*opened)
        finally:
            leave(*opened)

    return await threads.deferToThread(run)


@pytest_twisted.ensureDeferred
async def test_it_reads_every_field_of_everything(tmp_path: Path) -> None:
    async with two_servers(tmp_path) as world:
        vm = await world.source.new_vm(await world.source.new_sr(), disks=2)

        def work(xen: Any) -> None:
            seen = {}
            for name, kind in KINDS.items():
                for thing in getattr(xen, name).get_all():
                    assert isinstance(thing, kind)
                    seen.setdefault(name, []).append(read_all(kind, thing))
            assert set(seen) >= set(KINDS) - {"Task"}, "nothing of some class was there to be read"
            mine = xenbridge.VM(xen, vm)
            assert mine.power_state is xenbridge.vm.VmPowerState.RUNNING
            assert xenbridge.vm.VmOperations.MIGRATE_SEND in mine.allowed_operations
            assert mine.resident_on.ref == world.source.host and len(mine.VBDs) == 2
            assert mine.snapshot_time.year == 1970 and mine.memory_static_max == 64 << 20
            mine.name_description = "written by xen-bridge"
            assert [one.name_description for one in xen.VM.get_by_name_label("demo")] == ["written by xen-bridge"]
            with pytest.raises(xenbridge.XenError) as refused:
                mine.start(False, False)
            assert refused.value.error_code == "VM_BAD_POWER_STATE"

        await connections(work, world.source)


@pytest.mark.parametrize("background", [True, False])
@pytest_twisted.ensureDeferred
async def test_it_migrates_and_follows(tmp_path: Path, background: bool) -> None:
    async with two_servers(tmp_path) as world:
        vm = await world.source.new_vm(await world.source.new_sr())
        sr = await world.destination.new_sr()
        uuid = world.source.records.get("VM", vm)["uuid"]

        def work(here: Any, there: Any) -> str:
            mine = xenbridge.VM(here, vm)
            [host] = there.Host.get_all()
            [network] = there.Network.get_all()
            dest = host.migrate_receive(network, {})
            vdis = {vbd.VDI: xenbridge.SR(there, sr) for vbd in mine.VBDs}
            vifs = dict.fromkeys(mine.VIFs, network)
            mine.assert_can_migrate(dest, True, vdis, vifs, {}, {})
            here.Event.register(["Task"])
            if background:
                params = [dest, True, vdis, vifs, {}, {}]
                ref = here.call("Async.VM.migrate_send", vm, *xenbridge.XenObject.xen2ref(params))
                assert ref in [event["ref"] for event in here.Event.next()]
                moved = follow(here, xenbridge.Task(here, ref))
            else:
                moved = mine.migrate_send(dest, True, vdis, vifs, {}, {}).ref
            arrived = there.VM.get_by_uuid(uuid)
            assert arrived.ref == moved and here.VM.get_all() == []
            deadline = time.monotonic() + 60
            while arrived.power_state is not xenbridge.vm.VmPowerState.RUNNING:
                assert time.monotonic() < deadline
            assert arrived.resident_on.ref == host.ref
            return str(moved)

        moved = await connections(work, world.source, world.destination)
        assert world.destination.records.get("VM", moved)["uuid"] == uuid


def follow(xen: Any, task: Any) -> str:
    """Its result."""
    progress, deadline = [0.0], time.monotonic() + 60
    while task.status is xenbridge.task.TaskStatusType.PENDING:
        progress.append(task.progress)
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert task.status is xenbridge.task.TaskStatusType.SUCCESS, task.error_info
    assert progress == sorted(progress) and task.progress == 1.0
    assert task.finished >= task.created
    moved = task.result.removeprefix("<value>").removesuffix("</value>")
    task.destroy()
    assert task.ref not in [one.ref for one in xen.Task.get_all()]
    return str(moved)
