"""VMs that are Paused, Suspended or Halted move, or stay, in that state, on exactly one side, whatever goes wrong."""

from __future__ import annotations

import pytest
from twisted.internet.task import Clock

from tests.migration.test_crashes import DOWN, MESSAGES, WRITES, crash, crash_at, over
from xapi_migrate.domains.interfaces import DomainState
from xapi_migrate.migration.journal import Mark
from xapi_migrate.steps import Step
from xapi_migrate.testing.direct_peer import Fate
from xapi_migrate.testing.memory_journals import Crash, MemoryJournal
from xapi_migrate.testing.two_hosts import IMAGE, SIZE, SimHost, SimTask, TwoHosts

STATES = ["Paused", "Suspended", "Halted"]
every_state = pytest.mark.parametrize("state", STATES)


def messages(state: str) -> list[str]:
    """Those that are sent for such a VM with two disks."""
    if state == "Paused":
        return MESSAGES
    return [one for one in MESSAGES if one != "PUT memory"] + (["GET disk/2"] if state == "Suspended" else [])


def new_vm(world: TwoHosts, state: str) -> str:
    vm = world.source.new_vm(power_state="Running" if state == "Paused" else state)
    if state == "Paused":
        world.run(0.5)
        domain = world.source.toolstack.domain_of(vm)
        world.source.hypervisor.halt(world.source.hypervisor.guests[domain], DomainState.PAUSED)
        world.source.records.update("VM", vm, power_state="Paused")
        world.most_running = 0
    return vm


def vms(host: SimHost) -> list[str]:
    return host.records.refs("VM")


def settled(world: TwoHosts, task: SimTask, state: str) -> SimHost:
    """When all is well again: the host that has the VM, in its state; the other is empty, and no domain ever ran."""
    world.run(90, lambda: over(task) and not world.source.journals.all and not world.destination.journals.all, 0.02)
    world.run(30, step=0.05)
    assert world.source.journals.all == world.destination.journals.all == {}
    assert len(vms(world.source)) + len(vms(world.destination)) == 1
    here, there = (world.source, world.destination) if vms(world.source) else (world.destination, world.source)
    assert there.left_behind() == []
    [vm] = vms(here)
    record = here.records.get("VM", vm)
    assert (record["power_state"], record["current_operations"]) == (state, {})
    assert "HideFromXenCenter" not in record["other_config"]
    [sr] = here.srs.values()
    assert len(sr.storage.disks) == (3 if state == "Suspended" else 2)
    if state == "Paused":
        [guest] = here.hypervisor.guests.values()
        assert guest.state is DomainState.PAUSED
        assert [left for left in sr.left_behind if "domain" not in left] == []
        # only a domain that took a whole stream back has run, for a moment
        assert world.most_running <= 1
    else:
        assert here.hypervisor.guests == {} and sr.left_behind == [] and world.most_running == 0
    if state == "Suspended":
        vdi = here.records.get("VDI", record["suspend_VDI"])
        assert vdi["type"] == "suspend" and sr.content(vdi["uuid"]).startswith(IMAGE)
        assert here.records.get("SR", vdi["SR"])["uuid"] == sr.uuid
    return here


@every_state
def test_it_moves_as_it_is(state: str) -> None:
    world = TwoHosts(Clock())
    vm = new_vm(world, state)
    task = world.migrate(vm)
    assert settled(world, task, state) is world.destination
    assert (task.status, task.value) == ("success", vm)
    if state == "Paused":
        before = [n for console in world.source.hypervisor.consoles.values() for n in console]
        [domain] = world.destination.hypervisor.guests
        world.destination.hypervisor.run(world.destination.hypervisor.guests[domain])
        world.run(1)
        assert before and before + world.destination.printed() == list(
            range(1, len(before) + len(world.destination.printed()) + 1)
        )


@every_state
def test_it_stays_as_it_was_when_it_is_cancelled(state: str) -> None:
    for step in Step:
        if step.id < "1.5" or step.id > "4.5":
            continue
        world = TwoHosts(Clock())
        task = world.migrate(new_vm(world, state))

        def at(text: str, task: SimTask = task, step: Step = step) -> None:
            if text.startswith(step.id):
                task.at_step = lambda _: None
                task.cancel()

        task.at_step = at
        here = settled(world, task, state)
        reached = task.status == "cancelled"
        assert here is (world.source if reached else world.destination), (step, task)
        if state == "Paused" and reached:
            [guest] = here.hypervisor.guests.values()
            before = list(guest.printed)
            here.hypervisor.run(guest)
            world.run(1)
            assert len(guest.printed) > len(before)
            assert guest.printed == list(range(1, len(guest.printed) + 1))


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(
    ("state", "side", "mark"),
    [(state, *write) for state in STATES for write in WRITES if write[1] is not Mark.MEMORY or state == "Paused"],
    ids=lambda value: getattr(value, "value", value),
)
def test_a_crash_at_a_journal_write(state: str, side: str, mark: Mark, when: str) -> None:
    world = TwoHosts(Clock())
    crashed = crash_at(world, side, mark, when)
    task = world.migrate(new_vm(world, state))
    world.run(20, lambda: bool(crashed))
    assert crashed, "that write never came"
    if mark is Mark.BEGUN and side == "source" and when == "before":
        task.status = "failure"  # nothing was promised and the client's call ended with the daemon
    settled(world, task, state)


@pytest.mark.parametrize(("state", "message"), [(state, message) for state in STATES for message in messages(state)])
@pytest.mark.parametrize("side", ["source", "destination"])
def test_a_crash_after_a_message(state: str, side: str, message: str) -> None:
    world = TwoHosts(Clock())
    crashed: list[str] = []

    def hook(number: int, sent: str) -> Fate:
        if sent == message and not crashed:
            crashed.append(sent)
            world.clock.callLater(0.0015, crash, world, side)
        return Fate.DELIVERED

    world.wire.fate = hook
    task = world.migrate(new_vm(world, state))
    world.run(20, lambda: bool(crashed))
    assert crashed
    world.run(0.01, step=0.0005)
    settled(world, task, state)


@pytest.mark.parametrize(("state", "message"), [(state, message) for state in STATES for message in messages(state)])
@pytest.mark.parametrize("fate", [Fate.REQUEST_LOST, Fate.ANSWER_LOST], ids=lambda fate: fate.name)
def test_a_lost_message(state: str, message: str, fate: Fate) -> None:
    world = TwoHosts(Clock())
    struck: list[str] = []

    def hook(number: int, sent: str) -> Fate:
        if sent == message and message not in struck:
            struck.append(sent)
            return fate
        return Fate.DELIVERED

    world.wire.fate = hook
    task = world.migrate(new_vm(world, state))
    world.run(40, lambda: message in struck, 0.01)
    assert message in struck
    settled(world, task, state)


def test_a_paused_domain_that_dies_after_commit_is_halted_there() -> None:
    world = TwoHosts(Clock())
    died: list[str] = []

    def die(journal: MemoryJournal, written: Mark) -> None:
        if written is Mark.COMMITTED and not died:
            [domain] = world.destination.hypervisor.guests
            died.append(domain)
            crash(world, "destination")
            world.clock.callLater(DOWN / 2, world.destination.hypervisor.crash, domain)
            raise Crash

    world.destination.journals.after = die
    task = world.migrate(new_vm(world, "Paused"))
    world.run(60, lambda: over(task), 0.02)
    assert died and task.status == "success"
    world.run(5)
    [vm] = vms(world.destination)
    assert world.destination.records.get("VM", vm)["power_state"] == "Halted"
    assert world.destination.hypervisor.guests == {} and world.source.left_behind() == []


def test_a_suspended_vm_without_its_image_is_refused() -> None:
    world = TwoHosts(Clock())
    vm = new_vm(world, "Suspended")
    world.source.records.update("VM", vm, suspend_VDI="OpaqueRef:NULL")
    task = world.migrate(vm)
    assert task.status == "failure" and task.value.failure() == ["VM_HAS_NO_SUSPEND_VDI", vm]  # type: ignore[attr-defined]
    assert world.destination.left_behind() == []


@pytest.mark.parametrize("setting", ["host", "pool", "default", "none"])
def test_where_the_image_goes_when_nobody_says(setting: str) -> None:
    """The offer names no SR, as that of host.migrate_receive does not, and the map holds the disks."""
    world = TwoHosts(Clock())
    vm = new_vm(world, "Suspended")
    there = world.destination
    other = there.new_sr()
    if setting == "host":
        there.records.update("host", there.ref, suspend_image_sr=other)
    elif setting != "none":
        field = "suspend_image_SR" if setting == "pool" else "default_SR"
        there.records.create("pool", **{field: other})
    disks = [world.source.records.get("VBD", vbd)["VDI"] for vbd in world.source.toolstack.disks(vm)]
    task = world.migrate(vm, world.receive("OpaqueRef:NULL"), dict.fromkeys(disks, there.sr))
    world.run(30, lambda: over(task))
    if setting == "none":
        image = world.source.records.get("VDI", world.source.records.get("VM", vm)["suspend_VDI"])["uuid"]
        assert task.status == "failure" and task.value.failure() == ["VDI_NOT_IN_MAP", image]  # type: ignore[attr-defined]
        return
    assert task.status == "success"
    assert there.records.get("VDI", there.records.get("VM", vm)["suspend_VDI"])["SR"] == other


@pytest.mark.parametrize("moves", [True, False])
def test_a_drive_moves_empty_and_its_disc_stays(moves: bool) -> None:
    world = TwoHosts(Clock())
    vm, records = new_vm(world, "Halted"), world.source.records
    disc = records.create("VDI", uuid="0" * 8 + "-0000-0000-0000-" + "0" * 12, virtual_size=SIZE, type="user")
    drive = records.create("VBD", VM=vm, VDI=disc, userdevice="3", type="CD", mode="RO", empty=False)
    if not moves:
        world.destination.srs[world.destination.sr].fail("vdi_create")
    task = world.migrate(vm)
    world.run(60, lambda: over(task), 0.02)
    world.run(5)
    assert records.refs("VDI") == [disc] if moves else records.get("VBD", drive)["VDI"] == disc
    there = world.destination.records
    assert task.status == ("success" if moves else "failure")
    if not moves:
        assert world.destination.left_behind() == []
        return
    assert records.refs("VBD") == []
    vbds = [there.get("VBD", ref) for ref in there.get("VM", vm)["VBDs"]]
    drives = [(vbd["userdevice"], vbd["empty"], vbd["VDI"]) for vbd in vbds if vbd["type"] == "CD"]
    assert drives == [("3", True, "OpaqueRef:NULL")] and len(vbds) == 3
