"""A disk that another VM has too: nobody takes it from that VM, wherever it is and whoever asks."""

from __future__ import annotations

import pytest
from twisted.internet.task import Clock

from tests.migration.test_crashes import over
from xapi_migrate.migration.journal import Mark
from xapi_migrate.sm.interfaces import seen_name
from xapi_migrate.testing.fake_sm import FakeSR
from xapi_migrate.testing.memory_journals import MemoryJournal
from xapi_migrate.testing.two_hosts import SIZE, SimHost, SimTask, TwoHosts
from xapi_migrate.together import started


def owner_of(host: SimHost, vm: str) -> tuple[str, str]:
    """The VM's first VDI: ref and uuid."""
    [vbd] = host.records.get("VM", vm)["VBDs"]
    vdi: str = host.records.get("VBD", vbd)["VDI"]
    return vdi, host.records.get("VDI", vdi)["uuid"]


def give(host: SimHost, vm: str, vdi: str, attached: bool = False) -> str:
    """The VDI is the VM's first disk; the VBD."""
    return host.records.create(
        "VBD", VM=vm, VDI=vdi, userdevice="0", type="Disk", mode="RW", currently_attached=attached
    )


def unharmed(host: SimHost, vm: str, uuid: str) -> bool:
    """The VM's guest runs, and goes on writing to its disk."""
    [guest] = host.hypervisor.guests.values()
    before, written = len(guest.printed), bytes(host.srs[host.sr].storage.disks[uuid])
    host.clock.pump([0.01] * 200)
    return len(guest.printed) > before and bytes(host.srs[host.sr].storage.disks[uuid]) != written


# -- at the receiver --------------------------------------------------------------------------------


class Thief:
    """The source has a VM whose disk is, by the uuids that it names, that of the destination's own VM: on a real host
    no more than a few words in the metadata."""

    def __init__(self, power_state: str, theirs: str = "Running") -> None:
        self.world = world = TwoHosts(Clock())
        self.victim = world.destination.new_vm(disks=1, power_state=theirs)
        self.vdi, self.uuid = owner_of(world.destination, self.victim)
        storage = world.destination.srs[world.destination.sr].storage
        world.destination.records.update("SR", world.destination.sr, uuid=storage.uuid)
        here = world.source
        sr = here.records.create("SR", uuid=storage.uuid, name_label="so it says")
        here.srs[sr] = FakeSR(world.clock, here.luns, storage)
        started(here.srs[sr].attach())
        self.vm = here.new_vm(disks=0, power_state=power_state)
        give(here, self.vm, here.records.create("VDI", uuid=self.uuid, SR=sr, virtual_size=SIZE, type="user"))

    def try_it(self) -> SimTask:
        task = self.world.migrate(self.vm)
        assert self.world.run(60, lambda: over(task))
        self.world.clock.pump([0.1] * 50)
        return task


@pytest.mark.parametrize("power_state", ["Halted", "Running"])
def test_a_sender_that_does_not_see_the_sr_gets_nothing_of_it(power_state: str) -> None:
    """A third host may use the disk: nobody here knows. He takes for proven what he has not read."""
    thief = Thief(power_state, "Halted")
    world, there = thief.world, thief.world.destination
    for vbd in there.records.get("VM", thief.victim)["VBDs"]:
        there.records.destroy("VBD", vbd)
    [storage] = [sr.storage for ref, sr in world.source.srs.items() if ref != world.source.sr]
    blind = {**storage.nonces}

    class Forgetful(dict[str, str]):
        """Of what the sender writes nothing comes to the SR."""

        def __setitem__(self, name: str, value: str) -> None:
            if name not in {seen_name(one) for one in self}:
                super().__setitem__(name, value)

    storage.nonces = Forgetful(blind)
    task = thief.try_it()
    assert task.status == "failure" and "has not shown that it sees the SR" in str(task.value)
    assert [call for call in there.srs[there.sr].calls if call[0] == "vdi_attach" and thief.uuid in call] == []
    assert storage.nonces == {}


@pytest.mark.parametrize("power_state", ["Halted", "Running"])
def test_a_sender_that_sees_the_sr_brings_his_disk(power_state: str) -> None:
    thief = Thief(power_state, "Halted")
    there = thief.world.destination
    for vbd in there.records.get("VM", thief.victim)["VBDs"]:
        there.records.destroy("VBD", vbd)
    assert thief.try_it().status == "success"
    assert owner_of(there, there.records.refs("VM")[-1]) == (thief.vdi, thief.uuid)


@pytest.mark.parametrize("power_state", ["Halted", "Running"])
def test_a_sender_names_the_disk_of_a_vm_that_runs_here(power_state: str) -> None:
    thief = Thief(power_state)
    task = thief.try_it()
    assert task.status == "failure" and task.value.failure()[0] == "VDI_IN_USE"
    assert "demo" in str(task.value) and "destination" in str(task.value)
    assert unharmed(thief.world.destination, thief.victim, thief.uuid)
    assert thief.world.destination.records.refs("VM") == [thief.victim]


def test_a_sender_names_the_disk_of_a_vm_that_is_off_here() -> None:
    thief = Thief("Halted", "Halted")
    task = thief.try_it()
    assert task.status == "failure" and task.value.failure()[0] == "VDI_IN_USE"
    assert thief.world.destination.records.get("VDI", thief.vdi)["VBDs"]


def test_a_sender_names_a_memory_image() -> None:
    thief = Thief("Halted", "Halted")
    there = thief.world.destination.records
    for vbd in there.get("VM", thief.victim)["VBDs"]:
        there.destroy("VBD", vbd)
    there.update("VM", thief.victim, power_state="Suspended", suspend_VDI=thief.vdi)
    assert thief.try_it().value.failure()[0] == "VDI_IN_USE"


def test_a_vm_gets_the_disk_while_the_metadata_is_looked_at() -> None:
    """Nothing of it is touched when the migration is given up."""
    thief = Thief("Halted", "Running")
    world, there = thief.world, thief.world.destination
    [vbd] = there.records.get("VM", thief.victim)["VBDs"]
    there.records.destroy("VBD", vbd)

    def hook(journal: MemoryJournal, mark: Mark) -> None:
        if mark is Mark.BEGUN and journal.role == "receiver":
            give(there, thief.victim, thief.vdi, attached=True)

    there.journals.after = hook
    assert thief.try_it().value.failure()[0] == "VDI_IN_USE"
    assert unharmed(there, thief.victim, thief.uuid)
    assert world.destination.records.refs("VM") == [thief.victim]


# -- at the sender ----------------------------------------------------------------------------------


def two_owners(other: str) -> tuple[TwoHosts, str, str, str, str]:
    """At the source: a Halted VM, another one in this power state, and their VDI: ref and uuid."""
    world = TwoHosts(Clock())
    theirs = world.source.new_vm(disks=1, power_state=other)
    vdi, uuid = owner_of(world.source, theirs)
    halted = world.source.new_vm(disks=0, power_state="Halted")
    give(world.source, halted, vdi)
    return world, halted, theirs, vdi, uuid


@pytest.mark.parametrize("copy", ["true", "false"])
def test_a_halted_vm_does_not_take_a_disk_with_it_that_another_vm_uses(copy: str) -> None:
    world, halted, theirs, vdi, uuid = two_owners("Running")
    task = world.migrate(halted, vdi_to_sr={vdi: world.destination.sr}, copy=copy)
    assert world.run(60, lambda: over(task))
    assert task.status == "failure" and task.value.failure()[0] == "VDI_IN_USE"
    assert world.source.records.get("VM", theirs)["uuid"] in str(task.value)
    assert unharmed(world.source, theirs, uuid)


def test_a_disk_that_belongs_to_a_vm_that_stays_stays_too() -> None:
    world, halted, theirs, vdi, uuid = two_owners("Halted")
    task = world.migrate(halted, vdi_to_sr={vdi: world.destination.sr})
    assert world.run(60, lambda: over(task))
    world.run(5)
    assert task.status == "success"
    assert world.source.records.refs("VM") == [theirs]
    assert owner_of(world.source, theirs) == (vdi, uuid)
    assert uuid in world.source.srs[world.source.sr].storage.disks
    assert len(world.destination.records.refs("VDI")) == 1


def test_the_end_of_a_halted_vms_move_detaches_no_other_domain() -> None:
    """However the other one came to run."""
    world, halted, theirs, vdi, uuid = two_owners("Running")
    [vbd] = world.source.records.get("VM", theirs)["VBDs"]
    world.source.records.update("VBD", vbd, currently_attached=False)
    task = world.migrate(halted, vdi_to_sr={vdi: world.destination.sr})
    assert world.run(60, lambda: over(task))
    world.run(5)
    assert task.status == "success"
    assert unharmed(world.source, theirs, uuid)


def test_a_hidden_vm_of_an_earlier_attempt_is_not_another_vm() -> None:
    """Elsewhere in the pool a receiver of this very VM may be down, and its hidden VM still be there."""
    world = TwoHosts(Clock(), one_pool=True)
    vm = world.source.new_vm(disks=1)
    vdi, _ = owner_of(world.source, vm)
    records = world.source.records
    hidden = records.create("VM", name_label="demo", _incoming_uuid=records.get("VM", vm)["uuid"], _receiver="gone")
    give(world.source, hidden, vdi)
    task = world.migrate(vm)
    assert world.run(60, lambda: over(task))
    assert task.status == "success"
