"""A restarted daemon goes on with what had not come to its memory, and waits for storage that is away: a domain goes on
only with its disks."""

from __future__ import annotations

import pytest
from twisted.internet.task import Clock

from tests.migration.findings import Finding, never
from tests.migration.restarting import at_step, has_moved, lost, never_two, restart
from tests.migration.test_crashes import over, settle
from xapi_migrate.migration.journal import Mark
from xapi_migrate.testing.direct_peer import Fate
from xapi_migrate.testing.fake_sm import FakeSR
from xapi_migrate.testing.memory_journals import Crash, MemoryJournal
from xapi_migrate.testing.two_hosts import SIZE, SimHost, TwoHosts
from xapi_migrate.together import started

# -- what has not come to its memory goes on ------------------------------------------------------

BEFORE_MEMORY = ["1.5", "2.1", "2.2", "2.4", "3.1", "3.6", "3.7"]


@pytest.mark.parametrize("side", ["source", "destination"])
@pytest.mark.parametrize("step", BEFORE_MEMORY)
def test_a_daemon_restarted_before_phase_4_goes_on(world: TwoHosts, step: str, side: str) -> None:
    host = world.source if side == "source" else world.destination
    task = at_step(world, step, lambda: restart(host))
    if (step, side) in (("1.5", "destination"), ("2.1", "destination")):
        # Its offer is not taken up yet, or nobody knows what was made of the metadata.
        assert world.run(60, lambda: over(task) and not world.source.journals.all)
        assert task.status == "failure"
        assert len(world.source.running()) == 1
        return
    has_moved(world, task)


def test_both_daemons_restarted_in_the_bulk_copy_go_on(world: TwoHosts) -> None:
    task = at_step(world, "3.6", lambda: (restart(world.source), restart(world.destination, 2.5)))
    has_moved(world, task)


def test_a_copy_goes_on_where_it_was(world: TwoHosts) -> None:
    """It is found, not begun again."""
    sr = world.source.srs[world.source.sr]
    task = at_step(world, "3.6", lambda: restart(world.source))
    has_moved(world, task)
    begun = [call[2] for call in sr.calls if call[0] == "vdi_copy"]
    assert len(begun) == 4
    assert len(set(begun)) == 2, "the same two tasks"


def test_a_receiver_whose_target_died_with_its_daemon_aborts(world: TwoHosts) -> None:
    def strike() -> None:
        restart(world.destination)
        for lun in world.destination.luns.luns.values():
            lun.open = False

    task = at_step(world, "3.6", strike)
    assert world.run(60, lambda: over(task) and not world.source.journals.all)
    assert task.status == "failure"
    assert len(world.source.running()) == 1
    world.run(5)
    assert world.destination.left_behind() == []


def test_a_receiver_whose_target_dies_says_so(world: TwoHosts) -> None:
    def strike() -> None:
        world.source.srs[world.source.sr].stalled = True
        for lun in world.destination.luns.luns.values():
            lun.open = False

    task = at_step(world, "3.6", strike)
    assert world.run(60, lambda: over(task))
    assert "What serves disk" in str(task.value)
    assert len(world.source.running()) == 1


@pytest.mark.parametrize("side", ["source", "destination"])
def test_what_was_cancelled_does_not_go_on_after_a_restart(world: TwoHosts, side: str) -> None:
    host = world.source if side == "source" else world.destination
    crashed: list[Mark] = []

    def hook(journal: MemoryJournal, mark: Mark) -> None:
        if mark is Mark.UNDONE and not crashed:
            crashed.append(mark)
            restart(host)
            raise Crash

    host.journals.after = hook
    task = at_step(world, "3.6", lambda: host.tasks.all[0].cancel())
    settle(world, task)
    assert crashed
    never(not world.source.running(), Finding.MOVED)


# -- storage that is away for a while -------------------------------------------------------------


def restart_without_storage(host: SimHost, seconds: float) -> None:
    """The next daemon cannot attach the SR at first."""
    restart(host)
    srs = dict(host.srs)
    host.clock.callLater(0.5, host.srs.clear)
    host.clock.callLater(seconds, host.srs.update, srs)


def test_a_vm_in_doubt_stays_so_while_its_storage_is_away(world: TwoHosts) -> None:
    world.wire.fate = lost("PUT control", "GET control")
    vm = world.source.new_vm()
    task = world.migrate(vm)
    assert world.run(30, lambda: "GET control" in world.wire.messages)
    restart_without_storage(world.source, 8)
    world.run(5)
    assert world.source.toolstack.busy == {vm: task.ref}, "a client could start it"
    assert world.source.running() == []
    world.wire.fate = lost()
    assert world.run(60, lambda: over(task))
    world.run(10)
    never_two(world)
    assert len(world.source.running()) + len(world.destination.running()) == 1


def test_a_domain_goes_on_only_with_its_disks(world: TwoHosts) -> None:
    vm = world.source.new_vm()
    sr = world.source.srs[world.source.sr]

    def hook(number: int, sent: str) -> Fate:
        if sent == "PUT control":
            sr.fail("vdi_activate", times=5)
            return Fate.REQUEST_LOST
        return Fate.REQUEST_LOST if sent in ("GET control",) else Fate.DELIVERED

    world.wire.fate = hook
    resumed_without: list[str] = []
    domains = world.source.domains
    resume = domains.resume

    async def watched(domain: str, paused: bool = False) -> None:
        resumed_without.extend(vdi for vdi in sr.storage.disks if not sr._active(vdi))
        await resume(domain, paused)

    task = world.migrate(vm)
    assert world.run(30, lambda: "GET control" in world.wire.messages)
    domains.resume = watched  # type: ignore[method-assign]
    assert task.cancel()
    assert world.run(30, lambda: over(task))
    assert resumed_without == []
    assert len(world.source.running()) == 1
    world.run(2)
    assert world.source.printed() == list(range(1, len(world.source.printed()) + 1))


def test_a_receiver_says_aborted_only_when_a_disk_that_both_see_is_shut() -> None:
    """The guest's own disk is open at the receiver; it cannot be shut for a while, and the sender waits for that."""
    world = TwoHosts(Clock())
    shared = world.source.srs[world.source.sr].storage
    ref = world.destination.records.create("SR", uuid=shared.uuid, name_label="shared")
    theirs = world.destination.srs[ref] = FakeSR(world.clock, world.destination.luns, shared)
    started(theirs.attach())
    vm = world.source.new_vm(disks=1)
    [uuid] = shared.disks
    world.destination.records.create("VDI", uuid=uuid, SR=ref, virtual_size=SIZE, type="user")

    def hook(number: int, sent: str) -> Fate:
        if sent == "PUT control":
            world.destination.journals.before = stop_it
        return Fate.DELIVERED

    def stop_it(journal: MemoryJournal, mark: Mark) -> None:
        if mark is Mark.COMMITTED:
            theirs.fail("vdi_deactivate", times=6)
            world.destination.journals.before = lambda journal, mark: None
            world.destination.crash()
            world.clock.callLater(1, world.destination.start)
            raise Crash

    world.wire.fate = hook
    task = world.migrate(vm)
    running_without: list[float] = []

    def look() -> bool:
        if world.source.running() and shared.writers.get(uuid) is theirs:
            running_without.append(world.clock.seconds())
        return over(task)

    assert world.run(60, look)
    assert task.status == "failure"
    never(running_without or world.open_twice, Finding.OPEN_TWICE)
    assert world.destination.up
    world.run(10)
    never(not world.source.running(), Finding.NONE)
    assert world.source.journals.all == world.destination.journals.all == {}


def test_a_hidden_vm_stays_the_migrations_over_a_restart(world: TwoHosts) -> None:
    """Neither outcome can be written down: whoever started the hidden VM now would run a second copy."""
    vm = world.source.new_vm()
    here = world.destination
    task = world.migrate(vm)
    assert world.run(30, lambda: "PUT memory" in world.wire.messages)
    [hidden] = here.records.refs("VM")
    here.journals.broken = True
    here.toolstack.busy.clear()
    restart(here)
    world.run(5)
    assert here.up
    assert list(here.toolstack.busy) == [hidden]
    here.journals.broken = False
    restart(here)
    assert world.run(30, lambda: over(task))
    world.run(10)
    never_two(world)
    assert here.left_behind() == []
    assert len(world.source.running()) == 1
