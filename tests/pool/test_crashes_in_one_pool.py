"""The rule within a pool, by the same enumeration as between pools: sender and receiver have the same records, the
disks are shared, or copied to the receiver's SR."""

from __future__ import annotations

import random

import pytest
from twisted.internet.task import Clock

from tests.migration.test_crashes import (
    FATES,
    MESSAGES,
    STRIKES,
    WRITES,
    crash,
    crash_at,
    over,
    strike,
    told_as_it_is,
)  # fmt: skip
from xapi_migrate.migration.journal import Mark
from xapi_migrate.testing.direct_peer import Fate
from xapi_migrate.testing.two_hosts import SimTask, TwoHosts
from xapi_migrate.toolstack.placement_calls import PlacementCalls

pytestmark = pytest.mark.parametrize("shared", [True, False], ids=["shared", "local"])


def settle(world: TwoHosts, vm: str, shared: bool, task: SimTask) -> None:
    """Let everything heal, then look: one copy, one record of it that says where it runs, each disk once."""
    world.run(90, lambda: over(task) and not world.source.journals.all and not world.destination.journals.all, 0.02)
    world.run(30, step=0.05)
    assert world.most_running == 1, "two copies ran at once"
    running = len(world.source.running()) + len(world.destination.running())
    assert running == 1, f"{running} copies run in the end"
    assert not world.open_twice, "a disk was open for a domain at both hosts"
    assert world.source.lost == world.destination.lost == [], "writes are lost"
    here, there = (world.source, world.destination) if world.source.running() else (world.destination, world.source)
    records = world.source.records
    assert world.source.journals.all == world.destination.journals.all == {}
    assert not there.hypervisor.guests
    [guest] = here.hypervisor.guests.values()
    assert records.refs("VM") == [vm], "a hidden record is left, or the VM's own is gone"
    record = records.get("VM", vm)
    assert record["resident_on"] == here.ref and record["power_state"] == "Running"
    assert record["_domain"] == next(iter(here.hypervisor.guests))
    assert vm not in here.toolstack.busy and vm not in there.toolstack.busy
    assert len(record["VBDs"]) == len(records.refs("VBD")) == len(records.refs("VDI")) == 2
    where = world.source.sr if shared or here is world.source else here.sr
    for vbd in record["VBDs"]:
        vdi = records.get("VDI", records.get("VBD", vbd)["VDI"])
        assert vdi["SR"] == where
        content = here.srs[where].storage.disks[vdi["uuid"]]
        for number in range(max(1, guest.counter - 50), guest.counter):
            at = number % 64 * 16
            assert content[at : at + 16] == number.to_bytes(16, "big"), f"write {number} is lost"
    images = [disk for host in (world.source, world.destination) for disk in host.srs[host.sr].storage.disks]
    assert len(images) == 2, "an image is left, or gone"
    assert all(not sr.storage.nonces for sr in here.srs.values()), "a nonce is left"
    assert [item for sr in there.srs.values() for item in sr.left_behind] == []
    told_as_it_is(world, task)


def begin(world: TwoHosts) -> tuple[str, SimTask]:
    vm = world.source.new_vm()
    return vm, world.migrate(vm)


def test_the_vm_moves_and_clients_see_one_record(shared: bool) -> None:
    world = TwoHosts(Clock(), one_pool=True, shared=shared)
    seen: list[tuple[str, bool]] = []
    vm = world.source.new_vm()

    def note(change: object) -> None:
        if change.cls == "VM":  # type: ignore[attr-defined]
            hidden = change.record is not None and "HideFromXenCenter" in change.record["other_config"]  # type: ignore[attr-defined]
            seen.append((f"{change.operation} {'own' if change.ref == vm else 'other'}", hidden))  # type: ignore[attr-defined]

    world.source.records.subscribe(note)
    task = world.migrate(vm)
    assert world.run(30, lambda: over(task), 0.01), "it does not end"
    assert (task.status, task.value) == ("success", vm)
    settle(world, vm, shared, task)
    assert world.destination.running()
    assert {what for what, _ in seen if what.endswith("own")} == {"mod own"}
    assert all(hidden for what, hidden in seen if what in ("add other", "mod other"))
    copied = [call for sr in world.destination.srs.values() for call in sr.calls if call[0] == "vdi_create"]
    assert len(copied) == (0 if shared else 2)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(("side", "mark"), WRITES, ids=lambda value: getattr(value, "value", value))
def test_a_crash_at_a_journal_write(shared: bool, side: str, mark: Mark, when: str) -> None:
    world = TwoHosts(Clock(), one_pool=True, shared=shared)
    crashed = crash_at(world, side, mark, when)
    vm, task = begin(world)
    world.run(20, lambda: bool(crashed))
    assert crashed, "that write never came"
    if mark is Mark.BEGUN and side == "source" and when == "before":
        task.status = "failure"  # nothing was promised and the client's call ended with the daemon
    if side == "source" and mark in (Mark.BEGUN, Mark.ENDED):
        world.source.toolstack.busy.clear()  # as Machines.resync does for tasks that are over
    settle(world, vm, shared, task)


@pytest.mark.parametrize("delay", [0.0, 0.0015])
@pytest.mark.parametrize("message", MESSAGES)
@pytest.mark.parametrize("side", ["source", "destination"])
def test_a_crash_around_a_message(shared: bool, side: str, message: str, delay: float) -> None:
    world = TwoHosts(Clock(), one_pool=True, shared=shared)
    crashed: list[str] = []

    def hook(number: int, sent: str) -> Fate:
        if sent == message and not crashed:
            crashed.append(sent)
            world.clock.callLater(delay, crash, world, side)
        return Fate.DELIVERED

    world.wire.fate = hook
    vm, task = begin(world)
    world.run(20, lambda: bool(crashed))
    assert crashed
    world.run(0.01, step=0.0005)
    settle(world, vm, shared, task)


@pytest.mark.parametrize("fate", FATES, ids=lambda fate: fate.name)
@pytest.mark.parametrize("message", MESSAGES)
def test_the_fate_of_a_message(shared: bool, message: str, fate: Fate) -> None:
    world = TwoHosts(Clock(), one_pool=True, shared=shared)
    struck: list[str] = []

    def hook(number: int, sent: str) -> Fate:
        if sent == message and not struck:
            struck.append(sent)
            return fate
        return Fate.DELIVERED

    world.wire.fate = hook
    vm, task = begin(world)
    world.run(40, lambda: bool(struck), 0.01)
    assert struck
    settle(world, vm, shared, task)


@pytest.mark.parametrize("seed", range(8))
def test_two_blows_at_any_moment_on_a_bad_wire(shared: bool, seed: int) -> None:
    chance = random.Random(seed)
    world = TwoHosts(Clock(), one_pool=True, shared=shared)
    fates = [Fate.DELIVERED] * 10 + list(Fate)
    world.wire.fate = lambda number, sent: chance.choice(fates) if world.clock.seconds() < 30 else Fate.DELIVERED
    vm, task = begin(world)
    first = chance.uniform(0, 0.9)
    for what, moment in zip(chance.sample(STRIKES, 2), (first, first + chance.uniform(0, 0.5)), strict=True):
        world.clock.callLater(moment, strike, world, what, task)
    world.run(1.5, step=0.0005)
    settle(world, vm, shared, task)


DONE_THERE = [("source", Mark.COMMITTED), ("source", Mark.ENDED), ("destination", Mark.ENDED)]
"""The receiver has done all."""
UNDECIDED = [write for write in WRITES if write not in (*DONE_THERE, ("destination", Mark.OFFERED))]
"""The last one's crash is told to the sender, which then rolls back."""


@pytest.mark.parametrize(("side", "mark"), UNDECIDED, ids=lambda value: getattr(value, "value", value))
def test_hosts_that_come_back_leave_a_vm_alone_that_was_given_up(shared: bool, side: str, mark: Mark) -> None:
    """Both were down, and an administrator has said VM.power_state_reset: a third host may run it since."""
    world = TwoHosts(Clock(), one_pool=True, shared=shared)
    records, down = world.source.records, []
    crash_at(world, side, mark, "after")
    vm, _ = begin(world)

    def both_die() -> None:
        for host in (world.source, world.destination):
            if host.up:
                host.crash()
            down.append(host)

    assert world.run(30, lambda: not (world.source.up and world.destination.up), 0.01), "it was not struck"
    both_die()
    world.run(0.5)
    calls = PlacementCalls(records, "", *[None] * 5)  # type: ignore[arg-type]
    calls._concerned = lambda vm, record: set()  # type: ignore[method-assign]
    calls.VM_power_state_reset(None, vm)  # type: ignore[arg-type]
    record = records.get("VM", vm)
    for host in down:
        if not host.up:
            host.start()
    world.run(90, lambda: not world.source.journals.all and not world.destination.journals.all, 0.02)
    world.run(5)
    assert world.source.journals.all == world.destination.journals.all == {}
    assert not world.source.hypervisor.guests and not world.destination.hypervisor.guests
    assert records.refs("VM") == [vm]
    now = records.get("VM", vm)
    assert now == record
    for vbd in now["VBDs"]:
        vdi = records.get("VDI", records.get("VBD", vbd)["VDI"])
        assert any(vdi["uuid"] in host.srs[host.sr].storage.disks for host in down), "a disk of it is gone"
    assert [item for host in down for sr in host.srs.values() for item in sr.left_behind] == []
