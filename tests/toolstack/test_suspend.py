"""VM.suspend and VM.resume: what a client sees, what goes wrong, and a daemon that ends in the middle."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import defer, reactor
from twisted.internet.task import deferLater

from tests.toolstack.small_host import SmallHost, World, small_host
from xapi_migrate.errors import DomainError, MigrateError, SrFull, VdiInUse, VmBadPowerState
from xapi_migrate.migration.journal import JournalFailed, Mark
from xapi_migrate.refusals import SuspendImageNotAccessible, VmHasNoSuspendVdi, VmNoSuspendSr
from xapi_migrate.store.interfaces import NULL
from xapi_migrate.toolstack import suspend_image

MEMORY = 1 << 20


async def until(check: object, what: str = "it") -> None:
    for _ in range(1000):
        if check():  # type: ignore[operator]
            return
        await deferLater(reactor, 0.01)
    raise AssertionError(f"{what} never came true")


class Guest:
    """One VM with one disk, and what it has printed in all of its domains."""

    def __init__(self, here: SmallHost, sr: str, vm: str) -> None:
        self.here, self.sr, self.vm = here, sr, vm

    @classmethod
    async def started(cls, here: SmallHost) -> Guest:
        sr = await here.sr()
        vm = await here.vm(sr)
        limits = ("0", str(MEMORY), "0", str(MEMORY))
        await here.call("VM.set_memory_limits", vm, *limits)
        await here.call("VM.start", vm, False, False)
        guest = cls(here, sr, vm)
        await until(lambda: len(guest.printed) > 3, "the first number")
        return guest

    def at(self, here: SmallHost) -> Guest:
        return Guest(here, self.sr, self.vm)

    @property
    def record(self) -> Any:
        return self.here.get("VM", self.vm)

    @property
    def printed(self) -> list[int]:
        return [number for console in self.here.world.hypervisor.consoles.values() for number in console]

    @property
    def images(self) -> list[str]:
        return [ref for ref in self.here.get("SR", self.sr)["VDIs"] if self.here.get("VDI", ref)["type"] == "suspend"]

    @property
    def disks(self) -> int:
        return len(self.here.world.disks[self.here.get("SR", self.sr)["uuid"]].disks)

    async def runs(self) -> None:
        """It does, having left no number out, and nothing of an image is left."""
        assert (self.record["power_state"], self.record["suspend_VDI"]) == ("Running", NULL)
        assert self.record["resident_on"] == self.here.host and "suspend" in self.record["allowed_operations"]
        before = len(self.printed)
        await until(lambda: len(self.printed) > before + 3, "the next number")
        assert self.printed == list(range(1, len(self.printed) + 1))
        assert list(self.here.world.hypervisor.guests) == [self.here.toolstack.domain_of(self.vm)]
        assert self.images == [] and self.disks == 1
        assert [left.split()[2] for left in self.here.users(self.sr)] == ["domain"]

    async def is_suspended(self) -> None:
        """It is, its image is there, and nothing else is held."""
        record = self.record
        assert record["power_state"] == "Suspended" and [record["suspend_VDI"]] == self.images
        assert record["resident_on"] == NULL and record["current_operations"] == {}
        assert record["allowed_operations"] == ["resume", "resume_on", "hard_shutdown", "migrate_send"]
        assert self.here.world.hypervisor.guests == {} and self.here.toolstack.domain_of(self.vm) == ""
        assert self.here.users(self.sr) == [] and self.disks == 2


def journals(folder: Path) -> list[str]:
    return [path.name for path in (folder / "suspends").glob("*")]


@pytest_twisted.ensureDeferred
async def test_suspended_it_is_a_vdi_and_resumed_it_goes_on_where_it_was(tmp_path: Path) -> None:
    async with small_host(tmp_path) as here:
        guest = await Guest.started(here)
        task = await here.call("Async.VM.suspend", guest.vm)
        await until(lambda: here.get("task", task)["status"] == "success", "the task's end")
        await guest.is_suspended()
        before = guest.printed
        image = here.get("VDI", guest.record["suspend_VDI"])
        assert image["virtual_size"] == suspend_image.size_for(MEMORY) and image["name_label"] == "Suspend image"
        with pytest.raises(VdiInUse, match="Suspended"):
            await here.call("VDI.destroy", guest.record["suspend_VDI"])
        with pytest.raises(VmBadPowerState):
            await here.call("VM.suspend", guest.vm)
        await here.call("VM.resume", guest.vm, True, False)
        assert guest.record["power_state"] == "Paused" and guest.printed == before and guest.images == []
        await here.call("VM.unpause", guest.vm)
        await guest.runs()
        await here.call("VM.suspend", guest.vm)
        await here.call("VM.resume_on", guest.vm, here.host, False, False)
        await guest.runs()
        with pytest.raises(VmBadPowerState, match="needs it to be suspended"):
            await here.call("VM.resume", guest.vm, False, False)
        assert journals(tmp_path) == []
        await here.call("VM.hard_reboot", guest.vm)
        await until(lambda: guest.printed.count(1) == 2, "its boot")
        assert guest.record["power_state"] == "Running"
        await here.call("VM.clean_reboot", guest.vm)
        assert guest.record["power_state"] == "Running"
        await here.call("VM.hard_shutdown", guest.vm)


@pytest_twisted.ensureDeferred
async def test_a_suspended_vm_is_switched_off(tmp_path: Path) -> None:
    async with small_host(tmp_path) as here:
        guest = await Guest.started(here)
        await here.call("VM.suspend", guest.vm)
        await here.call("VM.hard_shutdown", guest.vm)
        assert (guest.record["power_state"], guest.record["suspend_VDI"]) == ("Halted", NULL)
        assert guest.images == [] and guest.disks == 1 and here.users(guest.sr) == []


@pytest_twisted.ensureDeferred
async def test_where_the_image_goes(tmp_path: Path) -> None:
    async with small_host(tmp_path) as here:
        guest = await Guest.started(here)
        (pool,) = here.server.records.refs("pool")
        places = [("pool.set_suspend_image_SR", pool), ("host.set_suspend_image_sr", here.host)]
        places.append(("VM.set_suspend_SR", guest.vm))
        for setter, owner in places:
            wanted = await here.sr()
            await here.call(setter, owner, wanted)
            await here.call("VM.suspend", guest.vm)
            assert here.get("VDI", guest.record["suspend_VDI"])["SR"] == wanted
            await here.call("VM.resume", guest.vm, False, False)
        await guest.runs()
        await here.call("VM.hard_shutdown", guest.vm)
        for setter, owner in places:
            await here.call(setter, owner, NULL)
        bare = await here.vm(guest.sr, disks=0)
        await here.call("VM.start", bare, False, False)
        with pytest.raises(VmNoSuspendSr):
            await here.call("VM.suspend", bare)
        assert here.get("VM", bare)["power_state"] == "Running"
        await here.call("VM.hard_shutdown", bare)


@pytest.mark.parametrize("fault", ["suspend", "final", "full", "open", "journal", "journal at last", "cancel"])
@pytest_twisted.ensureDeferred
async def test_a_suspend_that_fails_leaves_the_vm_running(tmp_path: Path, fault: str) -> None:
    async with small_host(tmp_path) as here:
        guest = await Guest.started(here)
        faults, error = here.world.hypervisor.faults, MigrateError
        if fault in ("suspend", "final"):
            setattr(faults, fault, "no luck")
            error = DomainError
        elif fault == "full":
            here.world.disks[here.get("SR", guest.sr)["uuid"]].size = 1 << 20
            error = SrFull
        elif fault == "open":
            here.toolstack.sr(guest.sr).fail("view_open")  # type: ignore[attr-defined]
        elif fault != "cancel":
            at(here, Mark.COMMITTED if fault == "journal at last" else Mark.BEGUN, fail)
            error = JournalFailed
        if fault == "cancel":
            reached = hold(here, "stream")
            task = await here.call("Async.VM.suspend", guest.vm)
            await reached
            await here.call("task.cancel", task)
            await until(lambda: here.get("task", task)["status"] == "cancelled", "the task's end")
        else:
            with pytest.raises(error):
                await here.call("VM.suspend", guest.vm)
        faults.suspend = faults.final = ""
        await guest.runs()
        assert journals(tmp_path) == []
        await here.call("VM.hard_shutdown", guest.vm)


@pytest.mark.parametrize(
    "fault", ["restore", "not whole", "another VM's", "nonsense", "disk", "journal at last", "none"]
)
@pytest_twisted.ensureDeferred
async def test_a_resume_that_fails_keeps_the_image(tmp_path: Path, fault: str) -> None:
    async with small_host(tmp_path) as here:
        guest = await Guest.started(here)
        await here.call("VM.suspend", guest.vm)
        vdi = guest.record["suspend_VDI"]
        disk = here.world.disks[here.get("SR", guest.sr)["uuid"]].disks[here.get("VDI", vdi)["uuid"]]
        whole = bytes(disk[: suspend_image.HEAD])
        error, words = MigrateError, "."
        if fault == "restore":
            here.world.hypervisor.faults.restore = "no luck"
            error = DomainError
        elif fault == "disk":
            here.toolstack.sr(guest.sr).fail("vdi_attach")  # type: ignore[attr-defined]
        elif fault == "journal at last":
            at(here, Mark.COMMITTED, fail)
            error = JournalFailed
        elif fault == "none":
            here.server.records.update("VM", guest.vm, suspend_VDI=NULL)
            error = VmHasNoSuspendVdi
        else:
            error = SuspendImageNotAccessible
            words = {"not whole": "not whole", "nonsense": "not one of", "another VM's": "of a VM with the uuid"}[fault]
            head = {"not whole": b"", "nonsense": b"[" * 9, "another VM's": whole.replace(b'"vm": "', b'"vm": "x')}
            disk[: suspend_image.HEAD] = head[fault].ljust(suspend_image.HEAD, b"\0")[: suspend_image.HEAD]
        with pytest.raises(error, match=words):
            await here.call("VM.resume", guest.vm, False, False)
        here.world.hypervisor.faults.restore = ""
        disk[: suspend_image.HEAD] = whole
        here.server.records.update("VM", guest.vm, suspend_VDI=vdi)
        await guest.is_suspended()
        assert journals(tmp_path) == []
        await here.call("VM.resume", guest.vm, False, False)
        await guest.runs()
        await here.call("VM.hard_shutdown", guest.vm)


def fail() -> None:
    raise JournalFailed("m", "/state", "no space")


def at(here: SmallHost, mark: Mark, what: Any) -> None:
    """Before the next such mark is written."""
    kept = here.toolstack.suspending._undertakings._journals
    begin = kept.begin

    def begun(role: str, migration: str) -> Any:
        journal = begin(role, migration)
        record = journal.record

        async def recorded(given: Mark, **data: Any) -> None:
            if given is mark and kept.begin is begun:  # type: ignore[comparison-overlap]
                del kept.begin
                held = what()
                if held is not None:
                    await held
            await record(given, **data)

        journal.record = recorded  # type: ignore[method-assign]
        return journal

    kept.begin = begun  # type: ignore[method-assign]


def hold(here: SmallHost, point: str) -> defer.Deferred[None]:
    """Stop the next suspend or resume at a point for ever; fires when it is there."""
    reached: defer.Deferred[None] = defer.Deferred()

    def stop() -> defer.Deferred[None]:
        reactor.callLater(0, reached.callback, None)  # type: ignore[attr-defined]
        return defer.Deferred()

    toolstack = here.toolstack
    if point == "BEGUN":
        at(here, Mark.BEGUN, stop)
    elif point == "COMMITTED":
        at(here, Mark.COMMITTED, stop)
    elif point == "stream":
        for name in ("suspend", "restore"):
            stream(here, name, stop)
    else:
        where, name = {
            "image": (toolstack.storage, "create_vdi"), "decided": (toolstack.suspending._undertakings, "_settle"),
            "ended": (toolstack.machines, "end_domain"), "unpause": (toolstack.machines._domains, "unpause"),
            "drop": (toolstack.storage, "destroy_vdi"),
        }[point]  # fmt: skip

        async def held(*_: Any, **__: Any) -> None:
            await stop()

        setattr(where, name, held)
    return reached


def stream(here: SmallHost, name: str, stop: Any) -> None:
    """The stream has just begun."""
    domains: Any = here.toolstack.machines._domains
    begin = getattr(domains, name)

    async def begun(*given: Any, **more: Any) -> Any:
        under_way = await begin(*given, **more)
        under_way.finished = stop
        return under_way

    setattr(domains, name, begun)


def outcome(here: SmallHost, task: str) -> str:
    """The word success, or the sentence of its failure."""
    record = here.get("task", task)
    return "success" if record["status"] == "success" else record["error_info"][-1]


@pytest.mark.parametrize("point", ["image", "stream", "COMMITTED", "decided", "ended"])
@pytest_twisted.ensureDeferred
async def test_the_daemon_ends_while_a_vm_is_suspended(tmp_path: Path, point: str) -> None:
    world = World()
    async with small_host(tmp_path, world) as here:
        guest = await Guest.started(here)
        reached = hold(here, point)
        task = await here.call("Async.VM.suspend", guest.vm)
        await reached
    async with small_host(tmp_path, world) as again:
        guest = guest.at(again)
        assert journals(tmp_path) == []
        decided = point in ("decided", "ended")
        assert outcome(again, task) == ("success" if decided else "The daemon ended during VM.suspend: the VM runs on.")
        if decided:
            await guest.is_suspended()
            await again.call("VM.resume", guest.vm, False, False)
        await guest.runs()
        await again.call("VM.hard_shutdown", guest.vm)


@pytest.mark.parametrize("point", ["BEGUN", "stream", "COMMITTED", "decided", "unpause", "drop"])
@pytest_twisted.ensureDeferred
async def test_the_daemon_ends_while_a_vm_is_resumed(tmp_path: Path, point: str) -> None:
    world = World()
    async with small_host(tmp_path, world) as here:
        guest = await Guest.started(here)
        await here.call("VM.suspend", guest.vm)
        reached = hold(here, point)
        task = await here.call("Async.VM.resume", guest.vm, False, False)
        await reached
    async with small_host(tmp_path, world) as again:
        guest = guest.at(again)
        assert journals(tmp_path) == []
        decided = point in ("decided", "unpause", "drop")
        assert (outcome(again, task) == "success") is decided
        if not decided:
            await guest.is_suspended()
            await again.call("VM.resume", guest.vm, False, False)
        await guest.runs()
        await again.call("VM.hard_shutdown", guest.vm)


@pytest_twisted.ensureDeferred
async def test_a_guest_that_ends_before_it_is_suspended_is_halted(tmp_path: Path) -> None:
    async with small_host(tmp_path) as here:
        guest = await Guest.started(here)
        domains: Any = here.toolstack.machines._domains
        begin = domains.suspend

        async def suspend(domain: str, *given: Any, **more: Any) -> Any:
            here.world.hypervisor.power_off(domain)
            return await begin(domain, *given, **more)

        domains.suspend = suspend
        with pytest.raises(DomainError):
            await here.call("VM.suspend", guest.vm)
        await until(lambda: guest.record["power_state"] == "Halted", "Halted")
        assert here.world.hypervisor.guests == {} and guest.images == [] and here.users(guest.sr) == []
        assert guest.record["suspend_VDI"] == NULL


def test_a_stream_that_does_not_fit_is_no_image(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.touch()
    descriptor = suspend_image.open_to_write(path)
    os.write(descriptor, b"x" * 10)
    with pytest.raises(ValueError, match="took 4106 bytes"):
        suspend_image.seal(descriptor, 4105, "fake", "vm")
    os.close(descriptor)
    with pytest.raises(ValueError, match="not whole"):
        suspend_image.open_to_read(path, 8192)
