"""Storage motion, struck at each thing that it does: the daemon is killed there, and then the host loses its power, or
the storage process dies, or nothing more happens. No write that the guest has flushed is lost."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import defer, reactor
from twisted.internet.task import deferLater

from tests.toolstack.moving import PATHS, SIZE, Motions, moving_world
from tests.toolstack.small_host import SmallHost, World, small_host
from tests.toolstack.test_suspend import until
from tests.toolstack.test_unsettled import gone, plug
from xapi_migrate.domains.interfaces import DomainState
from xapi_migrate.errors import CopyFailed, OperationNotAllowed, OtherOperationInProgress, VdiInUse
from xapi_migrate.sm.interfaces import MoveState
from xapi_migrate.toolstack.motion_work import MotionWork

pytestmark = pytest.mark.limit(40)
BLOWS = ["nothing", "power", "storage process"]


class Disk:
    """A VM with one disk, which is to move from one SR to another."""

    def __init__(self, here: SmallHost, vm: str, one: str, two: str, vdi: str) -> None:
        self.here, self.vm, self.srs, self.vdi = here, vm, (one, two), vdi

    @classmethod
    async def made(cls, here: SmallHost, runs: bool = True) -> Disk:
        one, two = await here.sr(), await here.sr()
        vm = await here.call("VM.create", {"name_label": "demo", "memory_static_max": "1048576", "VCPUs_max": "1"})
        vdi = await here.call("VDI.create", {"SR": one, "virtual_size": str(SIZE)})
        await here.call("VBD.create", {"VM": vm, "VDI": vdi, "userdevice": "0"})
        if runs:
            await here.call("VM.start", vm, False, False)
        return cls(here, vm, one, two, vdi)

    def at(self, here: SmallHost) -> Disk:
        return Disk(here, self.vm, *self.srs, self.vdi)

    @property
    def record(self) -> Any:
        return self.here.get("VM", self.vm)

    @property
    def now(self) -> str:
        """The VDI that is the disk now."""
        [vbd] = self.record["VBDs"]
        return str(self.here.get("VBD", vbd)["VDI"])

    @property
    def printed(self) -> int:
        return max((n for console in self.here.world.hypervisor.consoles.values() for n in console), default=0)

    @property
    def kept(self) -> int:
        """The number on its disk."""
        vdi = self.here.get("VDI", self.now)
        storage = self.here.world.disks[self.here.get("SR", vdi["SR"])["uuid"]]
        return int.from_bytes(storage.disks[vdi["uuid"]][:8], "little")

    @property
    def vdis(self) -> list[str]:
        return [vdi for sr in self.srs for vdi in self.here.get("SR", sr)["VDIs"]]

    async def more(self, numbers: int = 4) -> None:
        wanted = self.printed + numbers
        await until(lambda: self.printed >= wanted, "the next numbers")


def tasked(here: SmallHost) -> Any:
    return here.server.tasks.begin("VDI.pool_migrate")


class Stop:
    """Stops what it is awaited in for good when it has been called so often."""

    def __init__(self, number: int) -> None:
        self.left = number
        self.reached: defer.Deferred[str] = defer.Deferred()
        self.armed = True

    async def __call__(self, name: str) -> None:
        if not self.armed:
            return
        self.left -= 1
        if self.left == 0:
            reactor.callLater(0, self.reached.callback, name)  # type: ignore[attr-defined]
        if self.left <= 0:
            await defer.Deferred()


async def struck(folder: Path, number: int, blow: str) -> str:
    """One case: where it struck, "" if a motion does less than `number` things. What is not so afterwards fails."""
    world = moving_world()
    stop = Stop(number)
    motions = Motions(folder, stop)
    async with small_host(folder, world) as here:
        disk = await Disk.made(here)
        await motions.begin(here)
        await disk.more(2)
        task = tasked(here)
        moving = defer.ensureDeferred(motions.motion.move(disk.vdi, disk.srs[1], task))
        ended = defer.DeferredList([moving, stop.reached], fireOnOneCallback=True)
        value, which = await ended  # type: ignore[misc]
        if which == 0:
            stop.armed = False
            return ""
        guest = next(iter(world.hypervisor.guests.values()))
        runs = guest.state is DomainState.RUNNING
        if runs:  # nobody minds it: for as long as it takes
            await disk.more()
        stop.armed = False
    moving.addErrback(lambda _: None)
    if blow == "power":
        PATHS.lose_power(world)
    elif blow == "storage process":
        PATHS.lose(world)
        for domain in list(world.hypervisor.guests):
            world.hypervisor.crash(domain, "its disk is lost")
    again = Motions(folder)
    async with small_host(folder, world, begin=again.begin) as here:
        disk = disk.at(here)
        where = f"{value} ({number}), then {blow}"
        assert list((folder / "motions").glob("*")) == [] and here.toolstack.unsettled.all() == [], where
        assert disk.record["current_operations"] == {}, where
        if blow == "nothing":
            assert disk.record["power_state"] == "Running", where
            await disk.more()
            await here.call("VM.hard_shutdown", disk.vm)
        await until(lambda: disk.record["power_state"] == "Halted", f"{where}: it is off")
        assert disk.kept >= disk.printed, f"{where}: {disk.printed} was flushed, and {disk.kept} is on the disk"
        assert disk.vdis == [disk.now], where
    return str(value)


async def enumerate_all(folder: Path, blow: str) -> list[str]:
    points: list[str] = []
    while True:
        case = folder / f"{blow}-{len(points)}"
        case.mkdir()
        point = await struck(case, len(points) + 1, blow)
        if not point:
            return points
        points.append(point)


@pytest.mark.parametrize("blow", BLOWS)
@pytest_twisted.ensureDeferred
async def test_no_flushed_write_is_lost_wherever_it_is_struck(tmp_path: Path, blow: str) -> None:
    points = await enumerate_all(tmp_path, blow)
    assert {"move_settle", "after record", "pause", "after move_pivot", "after unpause", "destroy_vdi"} <= set(points)


@pytest.mark.parametrize("blow", ["power", "storage process"])
@pytest_twisted.ensureDeferred
async def test_if_the_guest_did_not_stand_still_one_would_be(
    tmp_path: Path, blow: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def nothing(self: Any, plan: Any) -> None:
        pass

    monkeypatch.setattr(MotionWork, "_hold", nothing)
    with pytest.raises(AssertionError, match="was flushed, and"):
        await enumerate_all(tmp_path, blow)


class Cancel:
    """Has the client cancel the motion when it is awaited for the so many-th time."""

    def __init__(self, number: int) -> None:
        self.left = number
        self.task: Any = None

    async def __call__(self, name: str) -> None:
        self.left -= 1
        if self.left == 0:
            reactor.callLater(0, self._cancel)  # type: ignore[attr-defined]
            await deferLater(reactor, 0.005)  # type: ignore[arg-type]

    def _cancel(self) -> None:
        with contextlib.suppress(OperationNotAllowed):
            self.task.cancel()


async def cancelled(folder: Path, number: int) -> str:
    """One case: whether the disk stays, or has moved; "" if a motion does less than `number` things."""
    cancel = Cancel(number)
    motions = Motions(folder, cancel)
    async with small_host(folder, moving_world()) as here:
        disk = await Disk.made(here)
        cancel.task = tasked(here)
        await motions.begin(here)
        try:
            to = await motions.motion.move(disk.vdi, disk.srs[1], cancel.task)
        except defer.CancelledError:
            to = disk.vdi
        if cancel.left > 0:
            return ""
        assert disk.vdis == [to] == [disk.now] and here.toolstack.unsettled.all() == [], number
        await disk.more()
        await here.call("VM.hard_shutdown", disk.vm)
        assert disk.kept >= disk.printed, number
    return "stays" if to == disk.vdi else "moved"


@pytest_twisted.ensureDeferred
async def test_cancelled_at_any_moment_the_guest_goes_on(tmp_path: Path) -> None:
    """Until it is decided that leaves the old disk, afterwards it has moved."""
    outcomes: list[str] = []
    while not outcomes or outcomes[-1]:
        (folder := tmp_path / str(len(outcomes))).mkdir()
        outcomes.append(await cancelled(folder, len(outcomes) + 1))
    assert set(outcomes) == {"stays", "moved", ""}  # it cannot be cancelled before it has begun, either


@pytest.mark.parametrize("state", ["Running", "Paused", "Halted"])
@pytest_twisted.ensureDeferred
async def test_it_moves_and_the_vm_is_as_it_was(tmp_path: Path, state: str) -> None:
    motions = Motions(tmp_path)
    async with small_host(tmp_path, moving_world(), begin=motions.begin) as here:
        disk = await Disk.made(here, state != "Halted")
        if state == "Paused":
            await here.call("VM.pause", disk.vm)
        to = await motions.motion.move(disk.vdi, disk.srs[1], tasked(here))
        assert disk.now == to and disk.vdis == [to] and disk.record["power_state"] == state
        states = [guest.state for guest in here.world.hypervisor.guests.values()]
        assert states == {"Running": [DomainState.RUNNING], "Paused": [DomainState.PAUSED], "Halted": []}[state]
        if state != "Halted":
            await here.call("VM.hard_shutdown", disk.vm)
        assert disk.kept >= disk.printed


@pytest_twisted.ensureDeferred
async def test_an_error_of_the_new_image_at_the_last_moment_lets_the_guest_go_on(tmp_path: Path) -> None:
    async def fail(name: str) -> None:
        path = PATHS.of(uuid)
        if name == "move_pivot" and path is not None:
            path.state, path.error = MoveState.FAILED, "no space"

    async with small_host(tmp_path, moving_world()) as here:
        disk = await Disk.made(here)
        uuid = here.get("VDI", disk.vdi)["uuid"]
        motions = Motions(tmp_path, fail)
        await motions.begin(here)
        with pytest.raises(CopyFailed, match="no space"):
            await motions.motion.move(disk.vdi, disk.srs[1], tasked(here))
        assert disk.vdis == [disk.vdi] == [disk.now]
        await disk.more()
        await here.call("VM.hard_shutdown", disk.vm)
        assert disk.kept >= disk.printed


async def left_decided(folder: Path, world: World, missing: int) -> Disk:
    """The daemon is killed when it is decided, the host loses its power, and an SR is not there when it is back."""
    reached: defer.Deferred[None] = defer.Deferred()

    async def stop(name: str) -> None:
        if name == "move_pivot" and not reached.called:
            reactor.callLater(0, reached.callback, None)  # type: ignore[attr-defined]
            await defer.Deferred()

    async with small_host(folder, world) as here:
        disk = await Disk.made(here)
        motions = Motions(folder, stop)
        await motions.begin(here)
        moving = defer.ensureDeferred(motions.motion.move(disk.vdi, disk.srs[1], tasked(here)))
        moving.addErrback(lambda _: None)
        await reached
        gone(here, disk.srs[missing])
    PATHS.lose_power(world)
    return disk


@pytest_twisted.ensureDeferred
async def test_without_the_new_ones_sr_the_new_one_is_the_disk_and_the_old_one_is_kept(tmp_path: Path) -> None:
    world = moving_world()
    disk = await left_decided(tmp_path, world, missing=1)
    async with small_host(tmp_path, world, begin=Motions(tmp_path).begin) as here:
        disk, world.broken = disk.at(here), set()
        assert disk.now != disk.vdi and set(disk.vdis) == {disk.now, disk.vdi}
        [left] = here.toolstack.unsettled.all()
        assert not left["busy"] and "plug its PBD" in left["why"]
        with pytest.raises(Exception, match="is not attached"):
            await here.call("VM.start", disk.vm, False, False)
        await plug(here, disk.srs[1])
        await until(lambda: here.toolstack.unsettled.all() == [], "it is settled")
        assert disk.vdis == [disk.now] and disk.kept >= disk.printed


@pytest_twisted.ensureDeferred
async def test_an_old_disk_that_its_owner_takes_back_is_not_destroyed(tmp_path: Path) -> None:
    """The new one's SR never comes back."""
    world = moving_world()
    disk = await left_decided(tmp_path, world, missing=1)
    async with small_host(tmp_path, world, begin=Motions(tmp_path).begin) as here:
        disk, world.broken = disk.at(here), set()
        here.server.records.update("VBD", disk.record["VBDs"][0], VDI=disk.vdi)
        await here.call("VM.start", disk.vm, False, False)
        await disk.more()
        domain = here.toolstack.domain_of(disk.vm)
    async with small_host(tmp_path, world, begin=Motions(tmp_path).begin) as here:
        disk = disk.at(here)
        if here.toolstack.unsettled.all():
            await plug(here, disk.srs[1])
            await until(lambda: here.toolstack.unsettled.all() == [], "it is settled")
        assert here.toolstack.domain_of(disk.vm) == domain and disk.now == disk.vdi
        await disk.more()
        await here.call("VM.hard_shutdown", disk.vm)
        assert disk.kept >= disk.printed


@pytest_twisted.ensureDeferred
async def test_without_the_old_ones_sr_the_vm_is_busy_until_that_is_plugged(tmp_path: Path) -> None:
    world = moving_world()
    disk = await left_decided(tmp_path, world, missing=0)
    async with small_host(tmp_path, world, begin=Motions(tmp_path).begin) as here:
        disk, world.broken = disk.at(here), set()
        [left] = here.toolstack.unsettled.all()
        assert left["busy"] and "plug its PBD" in left["why"]
        with pytest.raises(OtherOperationInProgress):
            await here.call("VM.hard_shutdown", disk.vm)
    async with small_host(tmp_path, world, begin=Motions(tmp_path).begin) as here:  # and once more
        disk = disk.at(here)
        await plug(here, disk.srs[0]) if here.toolstack.unsettled.all() else None
        await until(lambda: disk.record["current_operations"] == {}, "it is free")
        assert disk.vdis == [disk.now] != [disk.vdi] and disk.kept >= disk.printed


@pytest.mark.parametrize("other", ["Running", "busy", "Halted"])
@pytest_twisted.ensureDeferred
async def test_a_disk_that_another_vm_uses_does_not_move(tmp_path: Path, other: str) -> None:
    motions = Motions(tmp_path)
    async with small_host(tmp_path, moving_world(), begin=motions.begin) as here:
        disk = await Disk.made(here, runs=False)
        second = await here.call("VM.create", {"name_label": "second", "memory_static_max": "1048576"})
        await here.call("VBD.create", {"VM": second, "VDI": disk.vdi, "userdevice": "0"})
        if other == "Running":
            await here.call("VM.start", second, False, False)
        elif other == "busy":
            here.toolstack.begin_operation(second, "start", tasked(here).ref)
        if other == "Halted":
            to = await motions.motion.move(disk.vdi, disk.srs[1], tasked(here))
            assert len(here.get("VDI", to)["VBDs"]) == 2
            return
        with pytest.raises(VdiInUse, match="second"):
            await motions.motion.move(disk.vdi, disk.srs[1], tasked(here))
        assert disk.vdis == [disk.vdi]
        if other == "Running":
            await here.call("VM.hard_shutdown", second)
