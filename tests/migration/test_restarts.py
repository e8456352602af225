"""What must hold over restarts, refusals and second attempts: nothing that has ended is done again, nothing that has
not is forgotten."""

from __future__ import annotations

import pytest

from tests.migration.findings import Finding, never
from tests.migration.restarting import lost, never_two, restart
from tests.migration.test_crashes import MESSAGES, over, settle
from xapi_migrate.domains.interfaces import DomainState
from xapi_migrate.errors import DomainError
from xapi_migrate.migration.journal import Mark, marked
from xapi_migrate.sm.interfaces import Attachment, Purpose
from xapi_migrate.testing.direct_peer import Fate
from xapi_migrate.testing.memory_journals import Crash, MemoryJournal
from xapi_migrate.testing.two_hosts import SimHost, TwoHosts
from xapi_migrate.together import started

# -- DONE in the journal binds, said or not -------------------------------------------------------


@pytest.mark.parametrize("broken", [False, True], ids=["cancelled", "unwritable"])
def test_done_that_was_written_but_not_said_binds(world: TwoHosts, broken: bool) -> None:
    """It is in the journal, so a restarted daemon would say it: the domain may not have been resumed before."""
    journals = world.source.journals
    struck: list[Mark] = []

    def hook(journal: MemoryJournal, mark: Mark) -> None:
        if mark is Mark.DONE and not struck:
            struck.append(mark)
            world.wire.fate = lost("DELETE", "GET control", "HEAD")
            if not broken:
                assert task.cancel()
            else:
                journals.broken_after.add(mark)
            world.clock.callLater(2, restart, world.source)
            world.clock.callLater(2.5, setattr, world.wire, "fate", lambda number, sent: Fate.DELIVERED)

    journals.after = hook
    task = world.migrate(world.source.new_vm())
    assert world.run(60, lambda: bool(struck) and over(task))
    assert struck
    world.run(20)
    never_two(world)
    assert len(world.source.running()) + len(world.destination.running()) == 1


def test_a_cancel_that_the_receiver_grants_is_told_as_a_cancel(world: TwoHosts) -> None:
    world.wire.fate = lost("PUT control", "GET control")
    task = world.migrate(world.source.new_vm())
    assert world.run(30, lambda: "GET control" in world.wire.messages)
    assert task.cancel()
    assert world.run(30, lambda: over(task))
    assert task.status == "cancelled"


# -- what has ended is not done again -------------------------------------------------------------


def unheard(world: TwoHosts) -> str:
    """A VM that has moved while the sender's farewell does not arrive: both journals stay."""
    world.wire.fate = lost("DELETE")
    vm = world.source.new_vm()
    task = world.migrate(vm)
    assert world.run(30, lambda: over(task))
    assert task.status == "success"
    world.run(2)
    assert len(world.source.journals.all) == len(world.destination.journals.all) == 1
    return vm


def start_again(host: SimHost, vm: str) -> str:
    """VM.hard_shutdown and VM.start, as the toolstack does them: another domain on the same disks."""
    started(host.domains.destroy(host.toolstack.domain_of(vm)))
    attachments = {}
    for vbd in host.toolstack.disks(vm):
        vdi = host.records.get("VDI", host.records.get("VBD", vbd)["VDI"])
        found: list[Attachment] = []
        started(host.srs[vdi["SR"]].vdi_attach(vdi["uuid"], Purpose.DOMAIN)).addCallback(found.append)
        attachments[vbd] = found[0]
    started(host.domains.start(host.toolstack.spec_of(vm, "again", attachments)))
    host.records.update("VM", vm, _domain="again")
    return "again"


def test_a_restarted_receiver_leaves_a_vm_alone_that_it_has_completed(world: TwoHosts) -> None:
    vm = unheard(world)
    here = world.destination
    domain = start_again(here, vm)
    attached = here.srs[here.sr].left_behind
    restart(here)
    world.run(5)
    assert here.toolstack.domain_of(vm) == domain
    assert here.running() == [domain]
    assert here.records.get("VM", vm)["power_state"] == "Running"
    assert here.srs[here.sr].left_behind == attached
    world.wire.fate = lost()
    world.run(10)
    assert world.source.journals.all == here.journals.all == {}
    assert world.source.left_behind() == []


def test_a_crash_before_the_receiver_has_noted_its_end_changes_nothing(world: TwoHosts) -> None:
    world.destination.journals.before = lambda journal, mark: _crash_at(world.destination, mark is Mark.ENDED)
    vm = unheard(world)
    world.destination.journals.before = lambda journal, mark: None
    domain = start_again(world.destination, vm)
    world.destination.start()
    world.run(5)
    assert world.destination.running() == [domain]
    assert world.destination.toolstack.domain_of(vm) == domain


def _crash_at(host: SimHost, now: bool) -> None:
    if now:
        host.crash()
        raise Crash


def test_a_restarted_sender_leaves_a_vm_alone_that_came_back(world: TwoHosts) -> None:
    vm = unheard(world)
    world.source.records.create("VM", ref=vm, name_label="back", is_a_template=False, is_control_domain=False)
    restart(world.source)
    world.run(5)
    world.wire.fate = lost()
    world.run(10)
    never(vm not in world.source.records.refs("VM"), Finding.NONE)
    assert world.source.journals.all == world.destination.journals.all == {}


def test_a_restarted_sender_does_not_roll_back_what_it_has_rolled_back(world: TwoHosts) -> None:
    """The first receiver died; the VM is in doubt on its way to another one when the daemon ends."""
    vm = world.source.new_vm()
    task = world.migrate(vm)
    world.run(30, lambda: "PUT memory" in world.wire.messages)
    world.wire.fate = lost("DELETE")
    assert task.cancel()
    assert world.run(30, lambda: over(task))
    [first] = world.source.journals.all.values()
    assert marked(first, Mark.ENDED)

    world.run(15)  # the receiver gives it up by itself
    world.wire.fate = lost("DELETE", "PUT control", "GET control")
    second = world.migrate(vm)
    assert world.run(60, lambda: "GET control" in world.wire.messages)
    restart(world.source)
    world.run(4)
    never(world.source.running(), Finding.TWO, "the one in doubt was resumed")
    world.wire.fate = lost()
    assert world.run(60, lambda: over(second))
    world.run(20)
    never_two(world)
    assert len(world.source.running()) + len(world.destination.running()) == 1
    assert world.source.journals.all == world.destination.journals.all == {}


# -- after COMMIT ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("refusals", "power_state"), [(2, "Running"), (1000, "Paused")])
def test_a_guest_is_not_killed_because_it_could_not_be_let_run_at_once(
    world: TwoHosts, refusals: int, power_state: str
) -> None:
    here = world.destination
    unpause = here.domains.unpause
    refused: list[str] = []

    async def reluctant(domain: str) -> None:
        if len(refused) < refusals:
            refused.append(domain)
            raise DomainError(domain, here.name, "run", "its monitor did not answer in time")
        await unpause(domain)

    here.domains.unpause = reluctant  # type: ignore[method-assign]
    vm = world.source.new_vm()
    task = world.migrate(vm)
    assert world.run(60, lambda: over(task) and not here.journals.all)
    assert task.status == "success"
    assert here.records.get("VM", vm)["power_state"] == power_state
    assert len(here.hypervisor.guests) == 1
    assert len(here.running()) == (power_state == "Running")
    here.domains.unpause = unpause  # type: ignore[method-assign]
    started(here.domains.unpause(here.toolstack.domain_of(vm)))
    world.run(1)
    never_two(world)
    printed = here.printed()
    assert printed == list(range(printed[0], printed[-1] + 1))
    assert world.source.left_behind() == []


def test_a_daemon_that_stops_does_not_go_on_completing(world: TwoHosts) -> None:
    here = world.destination

    async def broken(domain: str) -> None:
        raise RuntimeError("the hypervisor's driver is broken")

    unpause, here.domains.unpause = here.domains.unpause, broken  # type: ignore[method-assign]
    task = world.migrate(world.source.new_vm())
    assert world.run(30, lambda: any(step.startswith("5.3") for step in [task.other.get("step", "")]) or over(task))
    here.crash()
    world.run(0.1)
    here.domains.unpause = unpause  # type: ignore[method-assign]
    world.run(5)
    assert here.running() == []
    here.start()
    world.run(10)
    assert len(here.running()) == 1
    never_two(world)


# -- two who want the same ------------------------------------------------------------------------


def test_a_second_sender_with_the_same_offer_does_not_end_the_first(world: TwoHosts) -> None:
    uris = world.receive()
    first, other = world.source.new_vm(), world.source.new_vm()
    moving = world.migrate(first, uris)
    assert world.run(30, lambda: "PUT memory" in world.wire.messages)
    refused = world.migrate(other, uris)
    assert world.run(30, lambda: over(refused) and over(moving))
    assert (refused.status, moving.status) == ("failure", "success")
    world.run(10)
    assert len(world.source.running()) == len(world.destination.running()) == 1
    assert world.source.journals.all == world.destination.journals.all == {}


def test_two_senders_that_take_up_one_offer_at_once(world: TwoHosts) -> None:
    uris = world.receive()
    tasks = [world.migrate(world.source.new_vm(), uris) for _ in range(2)]
    assert world.run(60, lambda: all(over(task) for task in tasks))
    assert sorted(task.status for task in tasks) == ["failure", "success"]
    world.run(10)
    assert len(world.source.running()) == len(world.destination.running()) == 1


def test_a_second_migration_of_one_vm_is_refused_and_disturbs_nothing(world: TwoHosts) -> None:
    vm = world.source.new_vm()
    first = world.migrate(vm)
    assert world.run(30, lambda: "PUT memory" in world.wire.messages)
    second = world.migrate(vm)
    assert second.status == "failure"
    assert second.value.failure()[0] == "OTHER_OPERATION_IN_PROGRESS"  # type: ignore[attr-defined]
    assert world.run(30, lambda: over(first))
    assert first.status == "success"
    world.run(5)
    never_two(world)


def test_to_oneself(world: TwoHosts) -> None:
    vm = world.source.new_vm()
    uris: list[list[str]] = []
    started(world.source.engine.receive(world.source.sr, {})).addCallback(uris.append)
    world.destination, there = world.source, world.destination
    task = world.migrate(vm, uris[0])
    assert world.run(30, lambda: over(task))
    assert task.status == "failure"
    assert world.source.records.get("VM", vm)["uuid"] in str(task.value)
    world.run(10)
    assert len(world.source.running()) == 1
    assert world.source.records.refs("VM") == [vm]
    assert len(world.source.srs[world.source.sr].storage.disks) == 2
    assert world.source.journals.all == {}
    assert there.left_behind() == []


# -- the guest's own end --------------------------------------------------------------------------


@pytest.mark.parametrize("step", ["1.5", "2.1", "2.2", "3.1", "3.6", "3.7", "4.1"])
def test_a_guest_that_powers_off_ends_its_migration(world: TwoHosts, step: str) -> None:
    vm = world.source.new_vm()
    struck: list[str] = []

    def look(told: str) -> None:
        if told.startswith(step) and not struck:
            struck.append(told)
            world.clock.callLater(0, world.source.hypervisor.power_off, domain)

    domain = world.source.toolstack.domain_of(vm)
    world.source.tasks.begun = lambda task: setattr(task, "at_step", look)
    task = world.migrate(vm)
    assert world.run(30, lambda: over(task))
    assert struck
    assert task.status == "failure"
    world.run(15)
    assert world.source.running() == world.destination.running() == []
    assert world.source.hypervisor.guests[domain].state is DomainState.SHUTDOWN
    assert world.destination.left_behind() == []
    assert world.source.toolstack.busy == {}
    assert world.source.journals.all == world.destination.journals.all == {}


@pytest.mark.parametrize("side", ["source", "destination"])
def test_the_host_is_gone_while_the_vm_is_in_doubt(world: TwoHosts, side: str) -> None:
    """A reboot takes the domains and attachments, and the journal stays."""
    world.wire.fate = lost("PUT control", "GET control")
    vm = world.source.new_vm()
    task = world.migrate(vm)
    assert world.run(30, lambda: "GET control" in world.wire.messages)
    host = world.source if side == "source" else world.destination
    host.crash()
    for domain in list(host.hypervisor.guests):
        host.hypervisor.halt(host.hypervisor.guests.pop(domain), DomainState.ABSENT)
    for sr in host.srs.values():
        sr._users.clear()
        sr.storage.writers.clear()
    host.clock.callLater(1, host.start)
    world.run(3)
    assert world.source.running() == world.destination.running() == []
    world.wire.fate = lost()
    assert world.run(60, lambda: over(task))
    world.run(15)
    never_two(world)
    assert world.source.journals.all == world.destination.journals.all == {}
    assert world.source.toolstack.busy == {}
    assert task.status == "failure"  # the receiver heard nothing for too long
    assert world.destination.left_behind() == []
    assert len(world.source.srs[world.source.sr].storage.disks) == 2
    assert len(world.source.running()) == (side == "destination")


def test_the_receiving_host_is_gone_after_commit(world: TwoHosts) -> None:
    """The VM is Halted there, with its disks, and never back at the sender."""
    here = world.destination

    def hook(journal: MemoryJournal, mark: Mark) -> None:
        if mark is Mark.COMMITTED:
            here.journals.after = lambda journal, mark: None
            here.crash()
            for domain in list(here.hypervisor.guests):
                here.hypervisor.halt(here.hypervisor.guests.pop(domain), DomainState.ABSENT)
            here.srs[here.sr]._users.clear()
            world.clock.callLater(2, here.start)
            raise Crash

    here.journals.after = hook
    vm = world.source.new_vm()
    task = world.migrate(vm)
    assert world.run(60, lambda: over(task))
    assert task.status == "success"
    world.run(10)
    assert here.records.get("VM", vm)["power_state"] == "Halted"
    assert here.toolstack.domain_of(vm) == ""
    assert len(here.srs[here.sr].storage.disks) == 2
    assert world.source.left_behind() == []
    assert world.source.journals.all == here.journals.all == {}


# -- a daemon that ends in order ------------------------------------------------------------------


@pytest.mark.parametrize("message", MESSAGES)
def test_a_message_that_comes_when_the_daemon_has_let_go(world: TwoHosts, message: str) -> None:
    """Storage and hypervisors are closed by then: whatever it asks for is left to the next daemon."""
    host, written, struck = world.destination, list[Mark](), list[str]()

    def hook(number: int, sent: str) -> Fate:
        if sent == message and not struck:
            struck.append(sent)
            started(host.engine.stop())
            host.journals.before = lambda journal, mark: written.append(mark)
            world.clock.callLater(0.5, began_anew)
        return Fate.DELIVERED

    def began_anew() -> None:
        host.journals.before = lambda journal, mark: None
        restart(host)

    world.wire.fate = hook
    task = world.migrate(world.source.new_vm())
    assert world.run(60, lambda: over(task) and bool(struck))
    assert written == []
    never_two(world)
    settle(world, task)
    assert len(world.source.running()) + len(world.destination.running()) == 1
