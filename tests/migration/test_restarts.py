"""What must hold over restarts, refusals and second attempts: nothing that has ended is done again, nothing that has
not is forgotten, and a domain goes on only with its disks."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from twisted.internet.task import Clock

from xapi_migrate.migration.journal import Mark, marked
from xapi_migrate.sm.interfaces import Attachment, Purpose
from xapi_migrate.testing.direct_peer import Fate
from xapi_migrate.testing.memory_journals import Crash, MemoryJournal
from xapi_migrate.testing.two_hosts import SimHost, SimTask, TwoHosts
from xapi_migrate.together import started


@pytest.fixture
def world() -> TwoHosts:
    return TwoHosts(Clock())


def over(task: SimTask) -> bool:
    return task.status != "pending"


def restart(host: SimHost, down: float = 1.0) -> None:
    host.crash()
    host.clock.callLater(down, host.start)


def never_two(world: TwoHosts) -> None:
    assert world.most_running == 1, "two copies ran at once"


def lost(*messages: str) -> Callable[[int, str], Fate]:
    return lambda number, sent: Fate.REQUEST_LOST if sent in messages else Fate.DELIVERED


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
    assert vm in world.source.records.refs("VM")
    world.wire.fate = lost()
    world.run(10)
    assert vm in world.source.records.refs("VM")
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
    assert world.source.running() == [], "a VM in doubt was resumed"
    world.wire.fate = lost()
    assert world.run(60, lambda: over(second))
    world.run(20)
    never_two(world)
    assert len(world.source.running()) + len(world.destination.running()) == 1
    assert world.source.journals.all == world.destination.journals.all == {}
