"""What incoming VMs will need is taken for them: two that fit one at a time but not together do not both begin; and the
other checks that the receiver makes before the first byte."""

from __future__ import annotations

import pytest

from xapi_migrate.errors import MigrateError
from xapi_migrate.migration.claims import Claims, DiskClaim
from xapi_migrate.store.interfaces import NULL
from xapi_migrate.testing.fake_sm import FakeSR
from xapi_migrate.testing.two_hosts import SIZE, SimTask, TwoHosts
from xapi_migrate.together import started


def over(task: SimTask) -> bool:
    return task.status != "pending"


def storage(world: TwoHosts) -> FakeSR:
    return world.destination.srs[world.destination.sr]


def stall(world: TwoHosts, stalled: bool) -> None:
    world.source.srs[world.source.sr].stalled = stalled


def refused(task: SimTask) -> list[str]:
    assert isinstance(task.value, MigrateError), task
    return task.value.failure()


@pytest.mark.parametrize("thin", [True, False])
def test_two_disks_fit_one_at_a_time_but_not_together(world: TwoHosts, thin: bool) -> None:
    storage(world).storage.thin = thin
    storage(world).storage.size = SIZE + SIZE // 2
    stall(world, True)
    first = world.migrate(world.source.new_vm(disks=1))
    assert world.run(5, lambda: bool(storage(world).storage.disks))
    second = world.migrate(world.source.new_vm(disks=1))
    assert world.run(5, lambda: over(second))
    assert refused(second) == ["SR_FULL", str(SIZE), str(SIZE // 2)]
    assert storage(world).uuid in str(second.value)
    assert len(storage(world).storage.disks) == 1, "the refused one made a VDI"
    stall(world, False)
    assert world.run(30, lambda: over(first))
    assert first.status == "success"


def test_two_that_come_at_the_same_moment(world: TwoHosts) -> None:
    """Neither has a VDI yet when the other is looked at."""
    storage(world).storage.size = SIZE + SIZE // 2
    tasks = [world.migrate(world.source.new_vm(disks=1)) for _ in range(2)]
    assert world.run(30, lambda: all(map(over, tasks)))
    assert sorted(task.status for task in tasks) == ["failure", "success"]
    [loser] = [task for task in tasks if task.status == "failure"]
    assert refused(loser)[0] == "SR_FULL"


@pytest.mark.parametrize(("thin", "left"), [(True, 2 * SIZE - SIZE // 2), (False, SIZE)])
def test_what_is_written_already_is_not_counted_twice(world: TwoHosts, thin: bool, left: int) -> None:
    """A VDI of which half is written, one that is whole, one that is not made yet; of a stranger and of an SR that is
    another nothing is claimed."""
    sr, ref = storage(world), world.destination.sr
    sr.storage.thin, sr.storage.size = thin, 4 * SIZE + SIZE // 2
    half, whole, stranger = bytearray(SIZE), bytearray(b"x" * SIZE), bytearray(SIZE // 2)
    half[: SIZE // 2] = b"x" * (SIZE // 2)
    sr.storage.disks.update(half=half, whole=whole, stranger=stranger)
    claims = Claims(lambda: 0, lambda: 0)
    claims.take("a", 0, [DiskClaim(ref, "half", SIZE), DiskClaim("another", "x", SIZE)])
    claims.take("b", 0, [DiskClaim(ref, "whole", SIZE), DiskClaim(ref, "new", SIZE)])
    told: list[int] = []
    started(claims.space(ref, sr)).addCallback(told.append)
    assert told == [left]
    claims.release("b")
    claims.take("c", 0, [DiskClaim(ref, "mine", SIZE)])
    started(claims.space(ref, sr, before="c")).addCallback(told.append)
    assert told[1] == left + SIZE, "one's own claim is counted against oneself"


@pytest.mark.parametrize("end", ["cancelled", "receiver restarts", "sender restarts"])
def test_a_claim_ends_with_its_migration(world: TwoHosts, end: str) -> None:
    storage(world).storage.thin = True
    storage(world).storage.size = SIZE + SIZE // 2
    world.destination.free_memory = SIZE + SIZE // 2
    stall(world, True)
    first = world.migrate(world.source.new_vm(disks=1))
    assert world.run(5, lambda: bool(storage(world).storage.disks))
    if end == "cancelled":
        assert first.cancel()
    else:
        host = world.destination if end == "receiver restarts" else world.source
        host.crash()
        world.run(1)
        host.start()
        world.run(2)
        early = world.migrate(world.source.new_vm(disks=1))
        assert world.run(20, lambda: over(early))
        assert early.status == "failure", "the first goes on, and its claim is forgotten"
        assert first.cancel()
    assert world.run(60, lambda: over(first))
    world.run(5)
    stall(world, False)
    second = world.migrate(world.source.new_vm(disks=1))
    assert world.run(30, lambda: over(second))
    assert second.status == "success", second.value


def test_memory_is_claimed_until_the_domain_has_it(world: TwoHosts) -> None:
    world.destination.free_memory = SIZE + SIZE // 2
    stall(world, True)
    first = world.migrate(world.source.new_vm(disks=1))
    assert world.run(5, lambda: bool(storage(world).storage.disks))
    second = world.migrate(world.source.new_vm(disks=1))
    assert world.run(5, lambda: over(second))
    assert refused(second) == ["HOST_NOT_ENOUGH_FREE_MEMORY", str(SIZE), str(SIZE // 2)]
    halted = world.migrate(world.source.new_vm(disks=1, running=False))
    stall(world, False)
    assert world.run(30, lambda: over(first) and over(halted))
    assert (first.status, halted.status) == ("success", "success"), "a Halted VM needs no memory"
    third = world.migrate(world.source.new_vm(disks=1))
    assert world.run(30, lambda: over(third))
    assert third.status == "success"


def test_memory_that_domains_have_not_touched_is_not_free() -> None:
    claims = Claims(lambda: 100, lambda: 30)
    assert claims.memory() == 70
    claims.take("m", 50, [])
    assert (claims.memory(), claims.memory(before="m")) == (20, 70)
    claims.take("n", 50, [])
    assert (claims.memory(), claims.memory(before="n")) == (0, 20)
    claims.has_domain("m")
    assert claims.memory() == 20
    for _ in range(2):
        claims.release("n")
    assert claims.memory() == 70


# -- the other checks -----------------------------------------------------------------------------


def with_nic(world: TwoHosts, vm: str, mac: str) -> None:
    world.source.records.create("VIF", VM=vm, device="0", MAC=mac, MTU=1500, network=NULL)


def test_a_mac_address_that_a_running_vm_has_there(world: TwoHosts) -> None:
    records = world.destination.records
    network = records.create("network", name_label="lan")
    other = records.create("VM", name_label="twin", power_state="Running", is_a_template=False)
    vif = records.create("VIF", VM=other, device="0", MAC="02:00:00:00:00:01", MTU=1500, network=network)
    vm = world.source.new_vm(disks=1)
    with_nic(world, vm, "02:00:00:00:00:01")
    task = world.migrate(vm)
    assert world.run(10, lambda: over(task))
    assert refused(task)[0] == "IMPORT_ERROR"
    for culprit in ("02:00:00:00:00:01", "twin", records.get("VM", other)["uuid"]):
        assert culprit in refused(task)[1]
    assert storage(world).storage.disks == {}
    records.update("VM", other, power_state="Halted")  # on paper only
    again = world.migrate(vm)
    assert world.run(30, lambda: over(again))
    assert again.status == "success", again.value
    records.destroy("VIF", vif)


def test_a_machine_type_that_is_not_there(world: TwoHosts) -> None:
    vm = world.source.new_vm(disks=1)
    world.source.records.update("VM", vm, platform={"machine": "pc-i440fx-99.0"})
    task = world.migrate(vm)
    assert world.run(10, lambda: over(task))
    code, uuid, host, reason = refused(task)
    assert (code, uuid, host) == (
        "VM_INCOMPATIBLE_WITH_THIS_HOST", world.source.records.get("VM", vm)["uuid"], "destination"
    )  # fmt: skip
    assert "pc-i440fx-99.0" in reason
    world.destination.hypervisor.machines = ("pc-i440fx-99.0",)
    again = world.migrate(vm)
    assert world.run(30, lambda: over(again))
    assert again.status == "success", again.value


def test_another_version_of_the_protocol(world: TwoHosts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xapi_migrate.migration.metadata_export.PROTOCOL_VERSION", 2)
    vm = world.source.new_vm(disks=1)
    task = world.migrate(vm)
    assert world.run(10, lambda: over(task))
    assert refused(task)[0] == "VM_HOST_INCOMPATIBLE_VERSION_MIGRATE"


def test_two_vms_may_have_one_name(world: TwoHosts) -> None:
    """Names are for people; VMs are told apart by their uuids."""
    world.destination.records.create("VM", name_label="demo", power_state="Running", is_a_template=False)
    task = world.migrate(world.source.new_vm(disks=1))
    assert world.run(30, lambda: over(task))
    assert task.status == "success", task.value
