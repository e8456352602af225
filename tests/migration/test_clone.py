"""A receiver whose SR is a clone of the sender's: both have the same uuids, and other content."""

from __future__ import annotations

import pytest
from twisted.internet.task import Clock

from tests.migration.test_crashes import over
from xapi_migrate.testing.fake_sm import FakeSR, FakeStorage
from xapi_migrate.testing.two_hosts import TwoHosts

OTHER = b"another life of this disk"


def cloned(world: TwoHosts, vm: str) -> FakeStorage:
    """The destination's clone of the source's SR, with the VM's VDIs in it."""
    here, there = world.source, world.destination
    [original] = here.srs.values()
    storage = FakeStorage(uuid=original.uuid)
    for uuid, content in original.storage.disks.items():
        storage.disks[uuid] = bytearray(OTHER + bytes(content[len(OTHER) :]))
    sr = FakeSR(world.clock, there.luns, storage)
    sr._is_attached = True
    ref = there.records.create("SR", uuid=storage.uuid, name_label="the clone")
    there.srs[ref] = sr
    for uuid, content in storage.disks.items():
        there.records.create("VDI", uuid=uuid, SR=ref, virtual_size=len(content), type="user")
    return storage


@pytest.mark.parametrize("power_state", ["Running", "Suspended", "Halted"])
@pytest.mark.parametrize("mapped", [False, True])
def test_the_vm_never_runs_on_the_clone(power_state: str, mapped: bool) -> None:
    world = TwoHosts(Clock())
    vm = world.source.new_vm(power_state=power_state)
    world.run(0.5)
    clone = cloned(world, vm)
    before = {uuid: bytes(content) for uuid, content in clone.disks.items()}
    vdis = world.source.records.refs("VDI")
    task = world.migrate(vm, vdi_to_sr=dict.fromkeys(vdis, world.destination.sr) if mapped else {})
    assert world.run(60, lambda: over(task), 0.01)
    world.run(5)
    assert clone.disks == before and clone.nonces == {}
    if mapped:  # to another SR it moves, with fresh uuids
        assert task.status == "success"
        assert world.destination.records.get("VM", vm)["power_state"] == power_state
        assert not set(before) & set(world.destination.srs[world.destination.sr].storage.disks)
    else:
        assert task.status == "failure" and "not proven to be the same disk" in str(task.value)
        assert world.destination.records.refs("VM") == [] and world.destination.hypervisor.guests == {}
        assert world.source.records.get("VM", vm)["power_state"] == power_state
        assert len(world.source.running()) == (power_state == "Running")
