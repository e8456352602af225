"""A suspend or a resume that a daemon left, and that the next one cannot settle: what it waits for is not there, or the
VM has gone on without it. Nothing is played again later against a VM that lives on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import pytest_twisted

from tests.toolstack.small_host import SmallHost, World, small_host
from tests.toolstack.test_suspend import Guest, at, fail, hold, journals, outcome, until
from xapi_migrate.errors import DomainError, OtherOperationInProgress, SrNotAttached
from xapi_migrate.migration.giving_up import GIVEN_UP
from xapi_migrate.migration.journal import Mark
from xapi_migrate.refusals import NotSettled
from xapi_migrate.store.interfaces import NULL
from xapi_migrate.toolstack import unsettled


async def stopped_at(here: SmallHost, guest: Guest, call: str, point: str) -> str:
    """The call has come so far, and gets no further: its task."""
    reached = hold(here, point)
    more = (False, False) if call == "VM.resume" else ()
    task = await here.call(f"Async.{call}", guest.vm, *more)
    await reached
    return str(task)


async def images_elsewhere(here: SmallHost, guest: Guest) -> str:
    """The VM's memory goes to an SR of its own: that one."""
    sr = await here.sr()
    await here.call("VM.set_suspend_SR", guest.vm, sr)
    return str(sr)


def gone(here: SmallHost, sr: str) -> None:
    """The next daemon cannot attach it."""
    here.world.broken = {here.get("SR", sr)["uuid"]}


async def plug(here: SmallHost, sr: str) -> None:
    [pbd] = here.get("SR", sr)["PBDs"]
    await here.call("PBD.plug", pbd)


def told(here: SmallHost) -> list[str]:
    records = here.server.records
    messages = [records.get("message", ref) for ref in records.refs("message")]
    return [message["body"] for message in messages if message["name"] == "VM_NOT_SETTLED"]


@pytest_twisted.ensureDeferred
async def test_a_resume_that_is_undone_without_its_sr_is_not_undone_once_more(tmp_path: Path) -> None:
    """The host's NFS came up later than the host; the VM is resumed by hand, and runs for weeks."""
    world = World()
    async with small_host(tmp_path, world) as here:
        guest = await Guest.started(here)
        sr = await images_elsewhere(here, guest)
        await here.call("VM.suspend", guest.vm)
        task = await stopped_at(here, guest, "VM.resume", "stream")
        gone(here, sr)
    async with small_host(tmp_path, world) as here:
        guest, world.broken = guest.at(here), set()
        assert outcome(here, task) == "The daemon ended during VM.resume: the VM is Suspended, with its image."
        assert guest.record["power_state"] == "Suspended" and guest.record["current_operations"] == {}
        with pytest.raises(SrNotAttached):
            await here.call("VM.resume", guest.vm, False, False)
        await plug(here, sr)
        await here.call("VM.resume", guest.vm, False, False)
        await guest.runs()
        domain = here.toolstack.domain_of(guest.vm)
    async with small_host(tmp_path, world) as here:
        guest = guest.at(here)
        assert here.toolstack.domain_of(guest.vm) == domain
        await guest.runs()
        await here.call("VM.hard_shutdown", guest.vm)


@pytest_twisted.ensureDeferred
async def test_an_image_that_is_used_up_goes_when_its_sr_is_back(tmp_path: Path) -> None:
    world = World()
    async with small_host(tmp_path, world) as here:
        guest = await Guest.started(here)
        sr = await images_elsewhere(here, guest)
        await here.call("VM.suspend", guest.vm)
        task = await stopped_at(here, guest, "VM.resume", "decided")
        gone(here, sr)
    async with small_host(tmp_path, world) as here:
        guest, world.broken = guest.at(here), set()
        assert outcome(here, task) == "success"
        await guest.runs()
        [left] = here.toolstack.unsettled.all()
        assert left["vm"] == guest.record["uuid"] and not left["busy"]
        assert "is not attached to this host: plug its PBD" in left["why"] and told(here) == []
        assert len(here.get("SR", sr)["VDIs"]) == 1 and len(journals(tmp_path)) == 1
        await plug(here, sr)
        await until(lambda: not here.toolstack.unsettled.all(), "the journal's end")
        assert here.get("SR", sr)["VDIs"] == [] and journals(tmp_path) == []
        await guest.runs()
        await here.call("VM.hard_shutdown", guest.vm)


@pytest_twisted.ensureDeferred
async def test_a_suspend_that_is_undone_without_its_sr_leaves_the_next_one_alone(tmp_path: Path) -> None:
    world = World()
    async with small_host(tmp_path, world) as here:
        guest = await Guest.started(here)
        sr = await images_elsewhere(here, guest)
        await stopped_at(here, guest, "VM.suspend", "stream")
        gone(here, sr)
    async with small_host(tmp_path, world) as here:
        guest = guest.at(here)
        assert guest.record["power_state"] == "Running" and guest.record["current_operations"] == {}
        await here.call("VM.set_suspend_SR", guest.vm, guest.sr)
        await here.call("VM.suspend", guest.vm)
        image = guest.record["suspend_VDI"]
    async with small_host(tmp_path, world) as here:
        guest, world.broken = guest.at(here), set()
        assert (guest.record["power_state"], guest.record["suspend_VDI"]) == ("Suspended", image)
        await plug(here, sr)
        await until(lambda: not here.toolstack.unsettled.all(), "the journal's end")
        assert here.get("SR", sr)["VDIs"] == []
        await here.call("VM.resume", guest.vm, False, False)
        await guest.runs()
        await here.call("VM.hard_shutdown", guest.vm)


def deaf(here: SmallHost, name: str) -> list[str]:
    """The hypervisor does not do this while the list is not empty."""
    domains: Any = here.toolstack.machines._domains
    kept, why = getattr(domains, name), ["QEMU does not answer"]

    async def refuse(domain: str, *more: Any) -> Any:
        if why:
            raise DomainError(domain=domain, host="fake", action=name, reason=why[0])
        return await kept(domain, *more)

    setattr(domains, name, refuse)
    return why


@pytest_twisted.ensureDeferred
async def test_a_vm_is_busy_until_its_suspend_is_settled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unsettled, "FIRST", 0.01)
    async with small_host(tmp_path) as here:
        guest = await Guest.started(here)
        why = deaf(here, "resume")
        here.world.hypervisor.faults.suspend = "no luck"
        with pytest.raises(NotSettled, match="QEMU does not answer"):
            await here.call("VM.suspend", guest.vm)
        here.world.hypervisor.faults.suspend = ""
        with pytest.raises(OtherOperationInProgress) as caught:
            await here.call("VM.hard_shutdown", guest.vm)
        task = caught.value.task
        assert "QEMU does not answer" in here.get("task", task)["other_config"][unsettled.NOTE]
        assert guest.record["current_operations"] == {task: "suspend"} and guest.record["allowed_operations"] == []
        [body] = told(here)
        assert "demo" in body and "force-settle" in body
        why.clear()
        await until(lambda: here.get("task", task)["status"] == "success", "the task's end")
        await guest.runs()
        assert journals(tmp_path) == [] and len(told(here)) == 1
        await here.call("VM.hard_shutdown", guest.vm)


@pytest_twisted.ensureDeferred
async def test_a_suspend_that_an_administrator_gives_up(tmp_path: Path) -> None:
    async with small_host(tmp_path) as here:
        guest = await Guest.started(here)
        deaf(here, "resume")
        here.world.hypervisor.faults.suspend = "no luck"
        with pytest.raises(NotSettled):
            await here.call("VM.suspend", guest.vm)
        [image] = guest.images
        assert len(await here.toolstack.unsettled.give_up(guest.record["uuid"])) == 1
        await until(lambda: guest.record["power_state"] == "Paused", "it is as its domain is")
        assert guest.record["current_operations"] == {} and journals(tmp_path) == [] and guest.images == [image]
        await here.call("VM.hard_shutdown", guest.vm)


@pytest.mark.parametrize("call", ["VM.suspend", "VM.resume"])
@pytest.mark.parametrize("decided", [True, False])
@pytest_twisted.ensureDeferred
async def test_a_vm_that_was_given_up_with_its_host_and_started_is_left_alone(
    tmp_path: Path, call: str, decided: bool
) -> None:
    """Another member said VM.power_state_reset and VM.start while this host was away."""
    world = World()
    async with small_host(tmp_path, world) as here:
        guest = await Guest.started(here)
        if call == "VM.resume":
            await here.call("VM.suspend", guest.vm)
        await stopped_at(here, guest, call, "decided" if decided else "stream")
        other = here.server.records.create("host", name_label="other")
        there = {"power_state": "Running", "resident_on": other, "_domain": "there"}
        here.server.records.update(
            "VM", guest.vm, **there, **{GIVEN_UP: "since"}, _domain_host=other, current_operations={}
        )
        kept = here.get("VM", guest.vm)["suspend_VDI"]
    async with small_host(tmp_path, world) as here:
        guest = guest.at(here)
        assert {name: guest.record[name] for name in there} == there
        assert guest.record["suspend_VDI"] == kept and guest.images == [kept]
        assert world.hypervisor.guests == {}, "a second copy runs here"
        assert journals(tmp_path) == [] and here.toolstack.unsettled.all() == []


@pytest_twisted.ensureDeferred
async def test_a_suspend_whose_journal_fails_and_that_cannot_be_undone(tmp_path: Path) -> None:
    async with small_host(tmp_path) as here:
        guest = await Guest.started(here)
        why = deaf(here, "resume")
        at(here, Mark.COMMITTED, fail)
        with pytest.raises(NotSettled):
            await here.call("VM.suspend", guest.vm)
        why.clear()
        here.toolstack.unsettled.wake()
        await until(lambda: guest.record["current_operations"] == {}, "it is free")
        await guest.runs()
        assert guest.record["suspend_VDI"] == NULL and journals(tmp_path) == []
        await here.call("VM.hard_shutdown", guest.vm)
