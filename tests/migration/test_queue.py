"""Migrations that wait for each other: first come first served, at the sender and at the receiver, and nothing else
suffers from it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet import defer
from twisted.internet.task import Clock

from xapi_migrate.errors import HeartbeatLost, NoUriAnswered, TaskCancelled
from xapi_migrate.migration.queue import Queue, Turn
from xapi_migrate.refusals import MigrationNotBegun
from xapi_migrate.testing.direct_peer import Fate
from xapi_migrate.testing.two_hosts import SimTask, TwoHosts


def over(task: SimTask) -> bool:
    return task.status != "pending"


def alone(**options: int) -> TwoHosts:
    """Two hosts that limit what they do at once so; a copy takes as long as the test wants."""
    return TwoHosts(Clock(), **{"sends_at_once": 0, "receives_at_once": 0, **options})


def stall(world: TwoHosts, stalled: bool = True) -> None:
    """No copy gets on, so no migration ends."""
    for sr in world.source.srs.values():
        sr.stalled = stalled


def all_moved(world: TwoHosts, count: int) -> None:
    world.run(5, lambda: not world.source.journals.all and not world.destination.journals.all)
    assert world.source.left_behind() == []
    assert len(world.destination.running()) == count
    assert world.source.toolstack.busy == {}
    assert world.source.journals.all == {} == world.destination.journals.all


def incoming(world: TwoHosts) -> int:
    """How many VMs are being received."""
    records = world.destination.records
    return sum(bool(records.get("VM", ref).get("_incoming_uuid")) for ref in records.refs("VM"))


def places(tasks: list[SimTask]) -> list[str]:
    return [task.other.get("behind", "") for task in tasks]


@pytest.mark.parametrize("side", ["sends_at_once", "receives_at_once"])
def test_five_vms_go_one_after_the_other_in_the_order_of_the_calls(side: str) -> None:
    world = alone(**{side: 1})
    stall(world)
    tasks = [world.migrate(world.source.new_vm(disks=1)) for _ in range(5)]
    assert world.run(20, lambda: places(tasks) == ["", "1", "2", "3", "4"]), places(tasks)
    what = {"sends_at_once": "to be sent", "receives_at_once": "to be received by destination"}[side]
    assert {task.other["waiting"] for task in tasks[1:]} == {what}
    stall(world, False)
    ended: list[int] = []
    most = 0

    def look() -> bool:
        nonlocal most
        ended.extend(n for n, task in enumerate(tasks) if over(task) and n not in ended)
        most = max(most, incoming(world))
        return len(ended) == 5

    assert world.run(120, look)
    assert ended == [0, 1, 2, 3, 4]
    assert most == 1, "two VMs were under way at once"
    assert [task.status for task in tasks] == ["success"] * 5
    assert not any("waiting" in task.other or "behind" in task.other for task in tasks)
    all_moved(world, 5)


def test_three_at_once() -> None:
    world = alone(sends_at_once=3, receives_at_once=3)
    tasks = [world.migrate(world.source.new_vm(disks=1)) for _ in range(10)]
    most = 0

    def look() -> bool:
        nonlocal most
        most = max(most, incoming(world))
        return all(map(over, tasks))

    assert world.run(200, look)
    assert most == 3
    assert [task.status for task in tasks] == ["success"] * 10
    all_moved(world, 10)


def test_a_waiting_vm_is_left_alone_and_its_offer_is_kept() -> None:
    """Nothing of it is in a journal or at the receiver; HEAD keeps the offer longer than an offer lives."""
    world = alone(sends_at_once=1)
    stall(world)
    first, second = (world.migrate(world.source.new_vm(disks=1)) for _ in range(2))
    assert not world.run(100, lambda: over(first) or over(second), 0.05)  # an offer lives for 60 s here
    assert second.other["behind"] == "1"
    assert len(world.source.journals.all) == 1
    assert len(world.destination.records.refs("VM")) == 1
    assert world.wire.messages.count("PUT metadata") == 1
    stall(world, False)
    assert world.run(60, lambda: over(first) and over(second))
    assert (first.status, second.status) == ("success", "success"), second.value
    all_moved(world, 2)


@pytest.mark.parametrize("side", ["sends_at_once", "receives_at_once"])
def test_a_waiting_one_is_cancelled_and_the_others_move_up(side: str) -> None:
    world = alone(**{side: 1})
    stall(world)
    tasks = [world.migrate(world.source.new_vm(disks=1)) for _ in range(4)]
    assert world.run(20, lambda: places(tasks) == ["", "1", "2", "3"])
    assert tasks[1].cancel()
    assert world.run(10, lambda: over(tasks[1]))
    assert tasks[1].status == "cancelled"
    assert world.run(20, lambda: places(tasks) == ["", "", "1", "2"])
    stall(world, False)
    assert world.run(60, lambda: all(map(over, tasks)))
    assert [task.status for task in tasks] == ["success", "cancelled", "success", "success"]
    world.run(10)
    assert len(world.source.running()) == 1
    assert len(world.destination.running()) == 3
    assert world.source.toolstack.busy == {}
    assert world.source.journals.all == {} == world.destination.journals.all


def test_the_receivers_task_of_a_waiting_one_is_cancelled() -> None:
    world = alone(receives_at_once=1)
    stall(world)
    first, second = (world.migrate(world.source.new_vm(disks=1)) for _ in range(2))
    assert world.run(20, lambda: second.other.get("behind") == "1")
    receiving = world.destination.tasks.all[-1]
    assert receiving.other["waiting"] == "to be received"
    assert receiving.cancel()
    assert world.run(20, lambda: over(second))
    stall(world, False)
    assert world.run(20, lambda: over(first) and over(second))
    assert (first.status, second.status, receiving.status) == ("success", "failure", "cancelled")
    assert "cancelled" in str(second.value)
    assert len(world.source.running()) == 1


def test_a_vm_that_shuts_down_while_it_waits_moves_halted() -> None:
    world = alone(sends_at_once=1)
    vm = world.source.new_vm(disks=1)
    first, second = world.migrate(world.source.new_vm(disks=1)), world.migrate(vm)
    assert second.other["behind"] == "1"
    world.source.hypervisor.guests.pop(world.source.toolstack.domain_of(vm))
    world.source.records.update("VM", vm, power_state="Halted", _domain="")
    assert world.run(60, lambda: over(first) and over(second))
    assert (first.status, second.status) == ("success", "success"), second.value
    assert world.destination.records.get("VM", vm)["power_state"] == "Halted"


def test_a_receiver_that_is_not_there_is_told_at_once_and_one_that_goes_after_the_heartbeat() -> None:
    world = alone(sends_at_once=1)
    stall(world)
    first = world.migrate(world.source.new_vm(disks=1))
    world.run(1)
    nowhere = world.migrate(world.source.new_vm(disks=1), ["direct:nothing"])
    assert world.run(2, lambda: over(nowhere))
    assert isinstance(nowhere.value, NoUriAnswered)
    second = world.migrate(world.source.new_vm(disks=1))
    world.run(1)
    world.wire.cut = True
    began = world.clock.seconds()
    assert world.run(60, lambda: over(second))
    assert isinstance(second.value, HeartbeatLost)
    assert 5 < world.clock.seconds() - began < 25
    world.wire.cut = False
    assert world.run(60, lambda: over(first))
    world.run(30)
    assert len(world.source.running()) == 3
    assert world.source.toolstack.busy == {}


def test_a_refused_one_lets_the_next_begin() -> None:
    world = alone(sends_at_once=1, receives_at_once=1)
    doomed = world.source.new_vm(disks=1)
    tasks = [world.migrate(doomed, vdi_to_sr={world.source.records.get("VBD", vbd)["VDI"]: "OpaqueRef:none"})
             for vbd in world.source.toolstack.disks(doomed)]  # fmt: skip
    tasks.append(world.migrate(world.source.new_vm(disks=1)))
    assert world.run(60, lambda: all(map(over, tasks)))
    assert [task.status for task in tasks] == ["failure", "success"]


def test_a_daemon_that_stops_ends_what_waits() -> None:
    world = alone(sends_at_once=1)
    stall(world)
    vm = world.source.new_vm(disks=1)
    first, second = world.migrate(world.source.new_vm(disks=1)), world.migrate(vm)
    world.run(0.2)
    world.source.crash()
    world.run(0.1)
    assert isinstance(second.value, MigrationNotBegun)
    assert vm not in world.source.toolstack.busy
    world.source.start()
    stall(world, False)
    world.run(30)
    assert len(world.source.running()) + len(world.destination.running()) == 2
    assert second.status == "failure"
    assert over(first)


@pytest.mark.parametrize("fate", [fate for fate in Fate if fate is not Fate.DELIVERED], ids=lambda fate: fate.name)
@pytest.mark.parametrize("number", [1, 2, 3])
def test_whatever_becomes_of_a_repeated_metadata(number: int, fate: Fate) -> None:
    world = alone(receives_at_once=1)
    seen = 0

    def strike(_: int, sent: str) -> Fate:
        nonlocal seen
        seen += sent == "PUT metadata"
        return fate if sent == "PUT metadata" and seen == 1 + number else Fate.DELIVERED

    world.wire.fate = strike
    stall(world)
    tasks = [world.migrate(world.source.new_vm(disks=1)) for _ in range(2)]
    world.run(20, lambda: seen > number)
    world.run(1)
    stall(world, False)
    assert world.run(60, lambda: all(map(over, tasks)))
    world.run(30, step=0.05)
    assert tasks[0].status == "success"
    here = len(world.source.running())
    assert here + len(world.destination.running()) == 2
    assert world.most_running == 2
    assert here == (tasks[1].status != "success")
    assert world.source.journals.all == {} == world.destination.journals.all


@pytest.mark.parametrize("side", ["source", "destination"])
def test_a_daemon_crashes_while_a_migration_waits_at_the_receiver(side: str) -> None:
    world = alone(receives_at_once=1)
    stall(world)
    tasks = [world.migrate(world.source.new_vm(disks=1)) for _ in range(2)]
    assert world.run(20, lambda: tasks[1].other.get("behind") == "1")
    crashed = getattr(world, side)
    crashed.crash()
    world.run(2)
    stall(world, False)
    crashed.start()
    assert world.run(60, lambda: all(map(over, tasks)))
    world.run(30, step=0.05)
    # The one whose turn it was goes on. A receiver keeps nothing of the one that waits.
    moved = 2 if side == "source" else 1
    assert [task.status for task in tasks] == ["success"] * moved + ["failure"] * (2 - moved)
    assert world.most_running == 2
    assert (len(world.source.running()), len(world.destination.running())) == (2 - moved, moved)
    assert world.source.toolstack.busy == {}
    assert world.source.journals.all == {} == world.destination.journals.all


@given(at_once=st.integers(0, 3), script=st.lists(st.tuples(st.booleans(), st.integers(0, 9)), max_size=40))
def test_a_queue_by_random_work(at_once: int, script: list[tuple[bool, int]]) -> None:
    """The longest waiting ones have their turn, never more than may, and each knows how many come before it."""
    queue = Queue(at_once)
    line: list[Turn] = []
    told: dict[int, int] = {}

    def teller(number: int) -> Callable[[int], None]:
        return lambda behind: told.__setitem__(number, behind)

    for number, (joins, which) in enumerate(script):
        if joins or not line:
            line.append(queue.join(teller(number)))
        else:
            turn = line.pop(which % len(line))
            turn.end()
            turn.end()
        for place, turn in enumerate(line):
            assert turn.has_come is (not at_once or place < at_once)
            assert turn.behind == (0 if turn.has_come else place)


def test_a_turn_that_is_cancelled_while_it_waits_is_nobodys() -> None:
    queue = Queue(1)
    first, second, third = queue.join(), queue.join(), queue.join()
    waiting = second.wait()
    waiting.addErrback(lambda _: None)
    waiting.cancel()
    second.end()
    first.end()
    assert third.has_come
    assert not second.has_come


def test_cancelled_is_what_a_client_reads() -> None:
    world = alone(sends_at_once=1)
    world.migrate(world.source.new_vm(disks=1))
    second = world.migrate(world.source.new_vm(disks=1))
    second.cancel()
    assert world.run(5, lambda: over(second))
    assert isinstance(second.value, TaskCancelled)


def within(world: TwoHosts, task: SimTask, until: defer.Deferred[None]) -> defer.Deferred[None]:
    """Disks move within the host until it is said that they have."""

    async def move() -> None:
        async with world.source.engine.turn_within(task):
            await until

    return defer.ensureDeferred(move())


def test_disks_that_move_within_the_host_have_their_turn_among_the_vms() -> None:
    world = alone(sends_at_once=1)
    stall(world)
    first = world.migrate(world.source.new_vm(disks=1))
    moved: defer.Deferred[None] = defer.Deferred()
    motion, given_up = (world.source.tasks.begin("a motion", "") for _ in range(2))
    moving = within(world, motion, moved)
    never = within(world, given_up, defer.Deferred())
    last = world.migrate(world.source.new_vm(disks=1))
    assert world.run(20, lambda: places([first, motion, given_up, last]) == ["", "1", "2", "3"])
    assert (motion.other["waiting"], last.other["waiting"]) == ("to be moved", "to be sent")
    assert given_up.cancel()
    never.addErrback(lambda failure: failure.trap(TaskCancelled) and None)
    assert world.run(20, lambda: places([motion, last]) == ["1", "2"])
    assert never.called
    stall(world, False)
    assert world.run(60, lambda: places([motion, last]) == ["", "1"] and "waiting" not in motion.other)
    assert not moving.called and not world.run(20, lambda: over(last))
    moved.callback(None)
    assert world.run(60, lambda: over(last))
    assert (first.status, last.status) == ("success", "success")
    all_moved(world, 2)


def test_disks_that_wait_are_told_when_the_daemon_ends() -> None:
    world = alone(sends_at_once=1)
    stall(world)
    world.migrate(world.source.new_vm(disks=1))
    waits = within(world, world.source.tasks.begin("a motion", ""), defer.Deferred())
    told: list[type[Exception] | None] = []
    waits.addErrback(lambda failure: told.append(failure.type))
    defer.ensureDeferred(world.source.engine.stop())
    world.run(1)
    assert told == [MigrationNotBegun]
