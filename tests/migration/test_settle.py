"""A sender in doubt whose receiver will never answer: an administrator decides in its place."""

from __future__ import annotations

import pytest
from twisted.python.failure import Failure

from tests.migration.findings import Finding, never
from xapi_migrate.errors import OperationNotAllowed
from xapi_migrate.migration.interfaces import Outcome
from xapi_migrate.migration.journal import Mark
from xapi_migrate.testing.direct_peer import Fate
from xapi_migrate.testing.memory_journals import Crash, MemoryJournal
from xapi_migrate.testing.two_hosts import SimTask, TwoHosts
from xapi_migrate.together import started


def in_doubt(world: TwoHosts) -> tuple[str, str, SimTask]:
    """A VM whose receiver is gone for ever since `done` was sent: its ref, its uuid, its task."""

    def gone(number: int, sent: str) -> Fate:
        if sent == "PUT control":
            world.wire.cut = True
            return Fate.REQUEST_LOST
        return Fate.DELIVERED

    world.wire.fate = gone
    vm = world.source.new_vm()
    uuid = world.source.records.get("VM", vm)["uuid"]
    task = world.migrate(vm)
    assert world.run(200, lambda: world.source.engine.in_doubt() == [uuid])
    world.destination.crash()
    return vm, uuid, task


def settle(world: TwoHosts, uuid: str, outcome: Outcome) -> None:
    ended: list[object] = []
    started(world.source.engine.settle(uuid, outcome)).addBoth(ended.append)
    world.run(30, lambda: bool(ended))
    assert ended == [None]


def test_it_stays(world: TwoHosts) -> None:
    _, uuid, task = in_doubt(world)
    assert world.source.running() == []
    settle(world, uuid, Outcome.ABORTED)
    assert task.status == "failure"
    assert len(world.source.running()) == 1
    assert world.source.engine.in_doubt() == []


def test_it_has_moved(world: TwoHosts) -> None:
    """What is here is kept: the administrator may be wrong."""
    vm, uuid, task = in_doubt(world)
    settle(world, uuid, Outcome.COMMITTED)
    assert task.status == "success"
    assert world.source.hypervisor.guests == {}
    assert world.source.records.get("VM", vm)["power_state"] == "Halted"
    assert len(world.source.srs[world.source.sr].storage.disks) == 2


@pytest.mark.parametrize("outcome", [Outcome.ABORTED, Outcome.COMMITTED])
def test_a_restart_after_the_word_goes_on_with_it(world: TwoHosts, outcome: Outcome) -> None:
    vm, uuid, _ = in_doubt(world)
    here = world.source

    def crash(journal: MemoryJournal, mark: Mark) -> None:
        if mark in (Mark.COMMITTED, Mark.ABORTED):
            here.journals.after = lambda journal, mark: None
            here.crash()
            world.clock.callLater(1, here.start)
            raise Crash

    here.journals.after = crash
    started(here.engine.settle(uuid, outcome)).addErrback(lambda _: None)
    never(not world.run(30, lambda: here.toolstack.busy == {}), Finding.ENDLESS)
    never(outcome is Outcome.ABORTED and not here.running(), Finding.NONE)
    never(outcome is Outcome.COMMITTED and here.running(), Finding.TWO, "one runs here that is said to run elsewhere")
    assert here.records.get("VM", vm)["uuid"] == uuid
    assert len(here.srs[here.sr].storage.disks) == 2


def test_the_receiver_comes_back_and_is_told(world: TwoHosts) -> None:
    """It had decided nothing; now it hears that it is over."""
    _, uuid, _ = in_doubt(world)
    settle(world, uuid, Outcome.ABORTED)
    world.destination.start()
    world.wire.cut = False
    world.wire.fate = lambda number, sent: Fate.DELIVERED
    world.run(60, lambda: not world.destination.journals.all and not world.source.journals.all)
    assert world.destination.left_behind() == []
    assert world.source.journals.all == world.destination.journals.all == {}
    assert world.most_running == 1


def test_who_is_not_in_doubt_is_not_settled(world: TwoHosts) -> None:
    vm = world.source.new_vm()
    uuid = world.source.records.get("VM", vm)["uuid"]
    for migrating in (False, True):
        if migrating:
            world.migrate(vm)
            world.run(0.05)
        refused: list[Failure] = []
        started(world.source.engine.settle(uuid, Outcome.COMMITTED)).addErrback(refused.append)
        assert refused[0].check(OperationNotAllowed)
    assert len(world.source.running()) == 1
