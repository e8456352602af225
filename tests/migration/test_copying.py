"""A halted VM is copied: the source stays as it was, and the copy is another VM, whatever is lost on the way."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.task import Clock

from xapi_migrate.migration.journal import Mark
from xapi_migrate.testing.direct_peer import Fate
from xapi_migrate.testing.memory_journals import Crash, MemoryJournal
from xapi_migrate.testing.two_hosts import SimHost, SimTask, TwoHosts

MAC = "02:00:00:00:00:01"


class Copied:
    """A halted VM with two disks and an interface at the source, and what becomes of it and of its copy."""

    def __init__(self) -> None:
        self.world = TwoHosts(Clock())
        here, there = self.world.source, self.world.destination
        self.vm = here.new_vm(running=False)
        here.records.update("VM", self.vm, other_config={"mac_seed": "s", "folder": "f"})
        network = here.records.create("network", name_label="lan")
        there.records.create("network", name_label="lan")
        here.records.create("VIF", VM=self.vm, network=network, MAC=MAC, device="0")
        self.before = self.state(here)
        for number, disk in enumerate(here.srs[here.sr].storage.disks.values()):
            disk[:4] = bytes((1, 2, 3, number))

    def state(self, host: SimHost) -> Any:
        """Everything but what a VM is busy with."""
        records = {cls: {r: dict(host.records.get(cls, r)) for r in host.records.refs(cls)} for cls in ("VM", "VDI")}
        for record in records["VM"].values():
            record.pop("current_operations")
            record.pop("_domain", "")
        return records

    def begin(self) -> SimTask:
        here, there = self.world.source, self.world.destination
        return self.world.migrate(self.vm, None, dict.fromkeys(here.records.refs("VDI"), there.sr), copy="true")

    def run(self, task: SimTask) -> None:
        assert self.world.run(60, lambda: task.status != "pending")
        self.world.run(10)

    def check(self, task: SimTask) -> None:
        """The copy is whole and another VM; the source is what it was and free."""
        here, there = self.world.source, self.world.destination
        assert task.status == "success", task.value
        [copy] = there.records.refs("VM")
        assert task.value == copy != self.vm
        was, made = here.records.get("VM", self.vm), there.records.get("VM", copy)
        assert made["uuid"] not in (was["uuid"], "") and made["name_label"] == was["name_label"] == "demo"
        assert made["power_state"] == "Halted" and made["other_config"] == {"folder": "f"}
        [vif] = made["VIFs"]
        assert there.records.get("VIF", vif)["MAC"] != MAC
        uuids = {
            host: {host.records.get("VDI", ref)["uuid"] for ref in host.records.refs("VDI")} for host in (here, there)
        }
        assert len(uuids[here]) == len(uuids[there]) == 2 and not uuids[here] & uuids[there]
        contents = [sorted(host.srs[host.sr].content(uuid) for uuid in uuids[host]) for host in (here, there)]
        assert contents[0] == contents[1] and contents[0][0][:3] == bytes((1, 2, 3))
        self.unharmed()
        for host in (here, there):
            assert host.srs[host.sr].left_behind == [] and host.journals.all == {}

    def unharmed(self) -> None:
        here = self.world.source
        assert self.state(here) == self.before
        assert here.toolstack.busy == {}


def test_a_copy_is_another_vm() -> None:
    copied = Copied()
    task = copied.begin()
    copied.run(task)
    copied.check(task)
    again = copied.begin()
    copied.run(again)
    assert again.status == "success" and len(copied.world.destination.records.refs("VM")) == 2


@pytest.mark.parametrize("message", ["PUT control", "DELETE"])
def test_the_answer_is_lost(message: str) -> None:
    copied = Copied()
    lost: list[str] = []

    def fate(number: int, sent: str) -> Fate:
        if sent == message and not lost:
            lost.append(sent)
            return Fate.ANSWER_LOST
        return Fate.DELIVERED

    copied.world.wire.fate = fate
    task = copied.begin()
    copied.run(task)
    copied.check(task)


@pytest.mark.parametrize("mark", [Mark.DONE, Mark.COMMITTED])
def test_the_sender_crashes_and_the_result_is_the_copy(mark: Mark) -> None:
    copied = Copied()
    here = copied.world.source

    def hook(journal: MemoryJournal, written: Mark) -> None:
        if journal.role == "sender" and written is mark and here.up:
            here.crash()
            here.clock.callLater(1, here.start)
            raise Crash

    here.journals.after = hook
    task = copied.begin()
    copied.run(task)
    copied.check(task)


def test_one_that_was_given_up_leaves_nothing() -> None:
    copied = Copied()
    task = copied.begin()
    copied.world.run(60, lambda: bool(copied.world.destination.records.refs("VM")))
    assert task.cancel()
    copied.run(task)
    assert task.status == "cancelled"
    copied.unharmed()
    assert copied.world.destination.left_behind() == []


def test_a_disk_that_no_map_names_is_not_shared_between_two_vms() -> None:
    copied = Copied()
    task = copied.world.migrate(copied.vm, None, {}, copy="true")
    copied.run(task)
    assert task.status == "failure" and task.value.code == "VDI_NOT_IN_MAP"
    running = copied.world.source.new_vm()
    task = copied.world.migrate(running, None, {}, copy="true")
    copied.run(task)
    assert task.status == "failure" and task.value.code == "VM_BAD_POWER_STATE"
    assert copied.world.source.running()
