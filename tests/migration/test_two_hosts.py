"""A migration between two simulated hosts: the real machines, phases, engine and journal order, no real time."""

from __future__ import annotations

import attrs
import pytest
from twisted.internet.task import Clock

from tests.migration.findings import Finding, never
from xapi_migrate.domains.interfaces import DomainState
from xapi_migrate.migration.journal import Mark
from xapi_migrate.steps import Step
from xapi_migrate.testing.direct_peer import Fate
from xapi_migrate.testing.memory_journals import MemoryJournal
from xapi_migrate.testing.two_hosts import SIZE, TIMES, SimTask, TwoHosts


def over(task: SimTask) -> bool:
    return task.status != "pending"


def moved(world: TwoHosts, counters: int = 0) -> None:
    """The VM runs at the destination and nowhere else, unbroken, with its disks, and nothing is left at the source."""
    assert world.most_running == 1
    assert world.source.left_behind() == []
    assert world.source.running() == []
    assert len(world.destination.running()) == 1
    world.run(1)
    guest = next(iter(world.destination.hypervisor.guests.values()))
    assert guest.counter > counters
    for sr in world.destination.srs.values():
        for content in sr.storage.disks.values():
            for number in range(max(1, guest.counter - 50), guest.counter + 1):
                at = number % 64 * 16
                assert content[at : at + 16] == number.to_bytes(16, "big")
    assert world.source.journals.all == {}
    assert world.destination.journals.all == {}


def stayed(world: TwoHosts) -> None:
    """The VM runs where it ran, and the destination is empty."""
    assert world.most_running == 1
    assert len(world.source.running()) == 1
    assert world.destination.left_behind() == []
    before = world.source.printed()
    world.run(1)
    after = world.source.printed()
    assert len(after) > len(before)
    assert after == list(range(1, len(after) + 1))
    assert world.source.toolstack.busy == {}


def test_a_running_vm_moves_with_its_disks(world: TwoHosts) -> None:
    vm = world.source.new_vm()
    uuid = world.source.records.get("VM", vm)["uuid"]
    world.run(1)
    printed = world.source.printed()
    task = world.migrate(vm)
    assert world.run(30, lambda: over(task)), task
    assert (task.status, task.value) == ("success", vm)
    assert world.run(5, lambda: not world.source.journals.all)
    moved(world, printed[-1])
    record = world.destination.records.get("VM", vm)
    assert record["uuid"] == uuid
    assert record["power_state"] == "Running"
    assert "HideFromXenCenter" not in record["other_config"]
    assert task.progress == sorted(task.progress)
    [receiving] = world.destination.tasks.all
    assert receiving.status == "success"


def test_a_halted_vm_moves(world: TwoHosts) -> None:
    vm = world.source.new_vm(running=False)
    task = world.migrate(vm)
    assert world.run(30, lambda: over(task))
    assert task.status == "success", task.value
    world.run(2)
    assert world.source.left_behind() == []
    assert world.destination.records.get("VM", vm)["power_state"] == "Halted"
    assert world.destination.hypervisor.guests == {}
    assert "PUT memory" not in world.wire.messages


def test_what_an_administrator_said_of_it_goes_along(world: TwoHosts) -> None:
    vm = world.source.new_vm(running=False)
    blocked = {"destroy": "it is ours", "clean_reboot": "at night"}
    platform = {"cores-per-socket": "2", "vcpu-unrestricted": "true"}
    world.source.records.update("VM", vm, blocked_operations=blocked, platform={**platform, "device-model": "x"})
    task = world.migrate(vm)
    assert world.run(30, lambda: over(task))
    assert task.status == "success", task.value
    record = world.destination.records.get("VM", vm)
    assert record["blocked_operations"] == blocked
    assert {key: record["platform"].get(key) for key in platform} == platform
    assert "device-model" not in record["platform"]


def test_every_message_is_sent_in_the_order_of_the_protocol(world: TwoHosts) -> None:
    task = world.migrate(world.source.new_vm())
    world.run(30, lambda: over(task))
    world.run(1)
    order = [message for message in world.wire.messages if message != "HEAD"]
    assert order == ["PUT metadata", "GET disk/0", "GET disk/1", "PUT memory", "PUT control", "DELETE"]
    assert world.wire.messages[0] == "HEAD"


def test_the_hidden_vm_has_an_identity_of_its_own(world: TwoHosts) -> None:
    vm = world.source.new_vm()
    task = world.migrate(vm)
    assert world.run(30, lambda: bool(world.destination.records.refs("VM")))
    [hidden] = world.destination.records.refs("VM")
    record = world.destination.records.get("VM", hidden)
    assert hidden != vm
    assert record["uuid"] != world.source.records.get("VM", vm)["uuid"]
    assert record["other_config"]["HideFromXenCenter"] == "true"
    assert list(record["current_operations"].values()) == ["import"]
    world.run(30, lambda: over(task))


def test_what_is_done_about_a_guest_that_writes_fast_is_told(world: TwoHosts) -> None:
    vm = world.source.new_vm()
    world.source.srs[world.source.sr].slowed = 4096
    world.source.hypervisor.guests[world.source.toolstack.domain_of(vm)].measures = "it stands still"
    told: list[str] = []
    task = world.migrate(vm)
    assert world.run(30, lambda: told.append(task.other.get("convergence", "")) or over(task))
    disks = [f"the guest's writes to disk {n} are limited to 4096 bytes per second" for n in range(2)]
    assert "; ".join(disks) in told
    assert task.other["convergence"] == "; ".join(
        [*disks, "the guest changes its memory faster than it is sent: it stands still"]
    )
    assert task.status == "success"


def test_an_offer_expires(world: TwoHosts) -> None:
    uris = world.receive()
    world.run(61, step=0.5)
    task = world.migrate(world.source.new_vm(), uris)
    assert world.run(20, lambda: over(task))
    assert task.status == "failure"
    assert "HEAD" in str(task.value) or "1.5" in str(task.value)
    stayed(world)


@pytest.mark.parametrize("message", ["HEAD", "PUT metadata", "GET disk/0", "PUT memory"])
@pytest.mark.parametrize("fate", [Fate.REQUEST_LOST, Fate.ANSWER_LOST])
def test_a_lost_message_before_done_ends_with_the_vm_where_it_was(world: TwoHosts, message: str, fate: Fate) -> None:
    vm = world.source.new_vm()
    world.wire.fate = lambda number, sent: fate if sent == message and number < 20 else Fate.DELIVERED
    task = world.migrate(vm)
    assert world.run(60, lambda: over(task)), world.wire.messages
    assert task.status == "failure"
    world.run(30)
    stayed(world)


@pytest.mark.parametrize("fate", [Fate.REQUEST_LOST, Fate.ANSWER_LOST, Fate.TWICE, Fate.LATE])
def test_whatever_becomes_of_done_the_vm_ends_up_at_the_destination(world: TwoHosts, fate: Fate) -> None:
    first: list[str] = []

    def once(number: int, sent: str) -> Fate:
        if sent == "PUT control" and not first:
            first.append(sent)
            return fate
        return Fate.DELIVERED

    world.wire.fate = once
    task = world.migrate(world.source.new_vm())
    assert world.run(90, lambda: over(task)), world.wire.messages
    assert task.status == "success"
    world.run(15)
    moved(world)


def test_in_doubt_the_domain_neither_runs_nor_goes(world: TwoHosts) -> None:
    def cut(number: int, sent: str) -> Fate:
        if sent == "PUT control":
            world.wire.cut = True
        return Fate.ANSWER_LOST if sent == "PUT control" else Fate.DELIVERED

    world.wire.fate = cut
    task = world.migrate(world.source.new_vm())
    assert world.run(30, lambda: world.wire.cut)
    world.run(600, step=0.5)
    assert task.status == "pending"
    assert "in_doubt" in task.other
    assert world.source.running() == []
    assert len(world.source.hypervisor.guests) == 1
    world.wire.cut = False
    world.wire.fate = lambda number, sent: Fate.DELIVERED
    assert world.run(30, lambda: over(task))
    assert task.status == "success"
    world.run(5)
    moved(world)


def test_a_receiver_that_hears_nothing_gives_up_and_its_word_brings_the_vm_back(world: TwoHosts) -> None:
    """`done` never arrives, the heartbeat is lost: ABORT. The sender stays in doubt until it hears of it."""

    def cut(number: int, sent: str) -> Fate:
        world.wire.cut = world.wire.cut or sent == "PUT control"
        return Fate.REQUEST_LOST if world.wire.cut else Fate.DELIVERED

    world.wire.fate = cut
    task = world.migrate(world.source.new_vm())
    assert world.run(30, lambda: world.wire.cut)
    world.run(40, step=0.05)
    assert world.destination.hypervisor.guests == {}
    assert world.source.running() == []
    world.wire.cut = False
    world.wire.fate = lambda number, sent: Fate.DELIVERED
    assert world.run(30, lambda: over(task))
    assert task.status == "failure"
    world.run(5)
    stayed(world)
    assert world.source.journals.all == {}
    assert world.destination.journals.all == {}


def cancel_at(world: TwoHosts, task: SimTask, step: str, cancelled: list[bool]) -> None:
    """Cancel the task as soon as it has told this step."""

    def look(told: str) -> None:
        if told.startswith(step) and not cancelled:
            cancelled.append(True)
            world.clock.callLater(0, task.cancel)

    task.at_step = look


SENDER_STEPS = [step.id for step in Step if step.id < "4.5" and step.id not in ("1.1", "1.2", "1.3", "1.4", "4.2")]


@pytest.mark.parametrize("step", SENDER_STEPS)
def test_the_sender_can_be_cancelled_at_every_step_before_done(world: TwoHosts, step: str) -> None:
    cancelled: list[bool] = []
    world.source.tasks.begun = lambda task: cancel_at(world, task, step, cancelled)
    task = world.migrate(world.source.new_vm())
    assert world.run(60, lambda: over(task))
    assert cancelled
    assert task.status == "cancelled"
    world.run(20)
    stayed(world)


@pytest.mark.parametrize("step", ["2.1", "2.2", "2.3", "2.4", "2.5", "4.1", "4.2"])
def test_the_receiver_can_be_cancelled_at_every_step_before_commit(world: TwoHosts, step: str) -> None:
    cancelled: list[bool] = []
    world.destination.tasks.begun = lambda task: cancel_at(world, task, step, cancelled)
    task = world.migrate(world.source.new_vm())
    assert world.run(60, lambda: over(task))
    assert cancelled
    assert [receiving.status for receiving in world.destination.tasks.all] == ["cancelled"]
    assert task.status == "failure"
    world.run(20)
    stayed(world)


def test_a_cancel_in_doubt_is_decided_by_the_receiver(world: TwoHosts) -> None:
    world.wire.fate = lambda n, sent: Fate.REQUEST_LOST if sent in ("PUT control", "GET control") else Fate.DELIVERED
    task = world.migrate(world.source.new_vm())
    assert world.run(30, lambda: "GET control" in world.wire.messages)
    assert task.cancel()
    assert world.run(30, lambda: over(task))
    world.run(10)
    stayed(world)


def test_too_late_to_cancel(world: TwoHosts) -> None:
    task = world.migrate(world.source.new_vm())
    assert world.run(30, lambda: task.other.get("step", "").startswith("5.3"), step=0.0005) or over(task)
    assert not task.cancel()
    assert world.run(30, lambda: over(task))
    assert task.status == "success"


@pytest.mark.parametrize("fault", ["suspend", "final", "restore", "start"])
def test_a_hypervisor_that_fails(world: TwoHosts, fault: str) -> None:
    vm = world.source.new_vm()
    host = world.source if fault in ("suspend", "final") else world.destination
    setattr(host.hypervisor.faults, fault, "the simulation said so")
    task = world.migrate(vm)
    assert world.run(60, lambda: over(task))
    assert task.status == "failure"
    assert "the simulation said so" in str(task.value)
    world.run(20)
    stayed(world)


@pytest.mark.parametrize("call", ["vdi_create", "vdi_get_url", "vdi_attach", "vdi_activate"])
def test_a_receiving_sr_that_fails(world: TwoHosts, call: str) -> None:
    vm = world.source.new_vm()
    world.destination.srs[world.destination.sr].fail(call)
    task = world.migrate(vm)
    assert world.run(60, lambda: over(task))
    assert task.status == "failure"
    world.run(20)
    stayed(world)


@pytest.mark.parametrize("call", ["vdi_copy", "vdi_deactivate", "copy_state"])
def test_a_sending_sr_that_fails(world: TwoHosts, call: str) -> None:
    vm = world.source.new_vm()
    world.source.srs[world.source.sr].fail(call)
    task = world.migrate(vm)
    assert world.run(60, lambda: over(task))
    assert task.status == "failure"
    world.run(20)
    stayed(world)


@pytest.mark.parametrize("told", [True, False], ids=["told", "untold"])
def test_a_domain_that_dies_after_its_memory_came_is_not_committed_to(world: TwoHosts, told: bool) -> None:
    """Whether or not the hypervisor tells of it before `done` comes."""

    def kill(number: int, sent: str) -> Fate:
        hypervisor = world.destination.hypervisor
        if sent == "PUT control":
            for domain, guest in list(hypervisor.guests.items()):
                hypervisor.crash(domain) if told else hypervisor.halt(guest, DomainState.CRASHED)
        return Fate.DELIVERED

    world.wire.fate = kill
    task = world.migrate(world.source.new_vm())
    assert world.run(60, lambda: over(task))
    world.run(20)
    never(not world.source.running(), Finding.NONE)
    assert task.status == "failure"
    stayed(world)


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_domain_that_dies_when_the_receiver_has_all_of_it_goes_on_there(world: TwoHosts, when: str) -> None:
    """Its copy there is the only one: to give that up would be to have none."""

    def kill(journal: MemoryJournal, mark: Mark) -> None:
        if mark is Mark.DONE:
            for domain in list(world.source.hypervisor.guests):
                world.source.hypervisor.crash(domain)

    setattr(world.source.journals, when, kill)
    task = world.migrate(world.source.new_vm())
    assert world.run(60, lambda: over(task))
    assert task.status == "success"
    world.run(5)
    moved(world)


def test_a_receiver_that_gives_up_is_quoted_although_its_luns_go_first(world: TwoHosts) -> None:
    """The copies fail before the receiver can say why they do."""
    cancelled: list[bool] = []

    def look(told: str) -> None:
        if told.startswith("3.6") and not cancelled:
            [receiving] = world.destination.tasks.all
            cancelled.append(receiving.cancel())

    vm = world.source.new_vm()
    world.source.tasks.begun = lambda task: setattr(task, "at_step", look)
    world.source.srs[world.source.sr].stalled = True
    task = world.migrate(vm)
    world.run(1, lambda: bool(cancelled))
    world.source.srs[world.source.sr].stalled = False
    assert world.run(60, lambda: over(task))
    assert cancelled == [True]
    assert "The task was cancelled" in str(task.value)
    error = task.value.failure()  # type: ignore[attr-defined]
    assert error[:4] == ["VM_MIGRATE_FAILED", vm, "source", "destination"]
    world.run(20)
    stayed(world)


def test_a_copy_that_fails_by_itself_is_told_as_such(world: TwoHosts) -> None:
    """The receiver has no reason to name, or is not asked in time."""
    sr = world.source.srs[world.source.sr]
    vm = world.source.new_vm()
    task = world.migrate(vm)

    def break_it(told: str) -> None:
        if told.startswith("4.1"):
            sr.break_copy(next(call[2] for call in sr.calls if call[0] == "vdi_copy"), "its copier burst")

    task.at_step = break_it
    assert world.run(60, lambda: over(task))
    assert "its copier burst" in str(task.value)
    world.run(20)
    stayed(world)


def test_a_full_sr_is_refused_before_a_byte_is_copied(world: TwoHosts) -> None:
    world.destination.srs[world.destination.sr].storage.size = SIZE
    task = world.migrate(world.source.new_vm())
    assert world.run(30, lambda: over(task))
    assert task.value.failure()[0] == "SR_FULL"  # type: ignore[attr-defined]
    assert "GET disk/0" not in world.wire.messages
    world.run(10)
    stayed(world)


def test_a_receiver_that_cannot_write_its_decision_decides_nothing(world: TwoHosts) -> None:
    def broken(journal: object, mark: Mark) -> None:
        world.destination.journals.broken = mark in (Mark.COMMITTED, Mark.ABORTED)

    world.destination.journals.before = broken
    task = world.migrate(world.source.new_vm())
    world.run(60)
    assert not over(task)
    assert world.source.running() == world.destination.running() == []
    world.destination.journals.before = lambda journal, mark: None
    world.destination.journals.broken = False
    world.destination.crash()
    world.destination.start()
    assert world.run(60, lambda: over(task))
    world.run(5)
    stayed(world)


@pytest.mark.parametrize(("copy", "left"), [("True", 1), ("1", 1), ("FALSE", 0)])
def test_a_copy_is_a_copy_however_true_is_written(copy: str, left: int) -> None:
    """Read as nothing, it would move the VM away from who asked for a copy."""
    world = TwoHosts(Clock())
    world.source.new_vm(power_state="Halted")
    (vm,) = world.source.records.refs("VM")
    vdis = dict.fromkeys(world.source.records.refs("VDI"), world.destination.sr)
    task = world.migrate(vm, vdi_to_sr=vdis, copy=copy)
    assert world.run(60, lambda: task.status != "pending", 0.01)
    assert (task.status, len(world.source.records.refs("VM"))) == ("success", left)


@pytest.mark.parametrize("option", ["copy", "live"])
def test_options_that_are_neither_true_nor_false_are_refused(option: str) -> None:
    world = TwoHosts(Clock())
    task = world.migrate(world.source.new_vm(), **{option: "maybe"})
    assert world.run(5, lambda: task.status != "pending")
    assert task.status == "failure" and task.value.failure() == ["INVALID_VALUE", f"options:{option}", "maybe"]  # type: ignore[attr-defined]


def test_a_quick_copy_is_not_waited_for_longer_than_it_takes() -> None:
    """Its state is looked at often in the beginning; the task is told no more often than `poll`."""
    world = TwoHosts(Clock(), times=attrs.evolve(TIMES, poll=2.0))
    at: dict[str, float] = {}
    world.source.tasks.begun = lambda task: setattr(
        task, "at_step", lambda step: at.setdefault(step.partition(" ")[0], world.clock.seconds())
    )
    task = world.migrate(world.source.new_vm())
    assert world.run(30, lambda: over(task))
    assert task.status == "success"
    assert at["3.7"] - at["3.6"] < 0.15  # the copies take 0.1 s
    assert len(task.progress) <= 6
