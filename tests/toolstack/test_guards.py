"""What a client may not do while a VM is being moved, and what must be written down before something is done."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path

import pytest
import pytest_twisted

from tests.toolstack.small_host import World, small_host
from xapi_migrate.domains.interfaces import DomainSpec
from xapi_migrate.errors import OtherOperationInProgress, VdiInUse
from xapi_migrate.store.commits import Row


@pytest.mark.parametrize("operation", ["migrate_send", "import"])
@pytest_twisted.ensureDeferred
async def test_the_storage_of_a_vm_that_is_being_moved_stays(tmp_path: Path, operation: str) -> None:
    """A halted VM's disks are attached nowhere between the end of its copies and the receiver's word."""
    async with small_host(tmp_path) as here:
        sr = await here.sr()
        vm = await here.vm(sr)
        (vdi,) = here.get("SR", sr)["VDIs"]
        (pbd,) = here.get("SR", sr)["PBDs"]
        here.toolstack.begin_operation(vm, operation, "OpaqueRef:task")
        disks = here.world.disks[here.get("SR", sr)["uuid"]].disks
        for method, target in (
            ("VDI.destroy", vdi), ("SR.destroy", sr), ("SR.forget", sr), ("PBD.unplug", pbd)
        ):  # fmt: skip
            with pytest.raises(VdiInUse):
                await here.call(method, target)
        for method, *arguments in (
            ("VM.start", False, False), ("VM.destroy",)
        ):  # fmt: skip
            with pytest.raises(OtherOperationInProgress):
                await here.call(method, vm, *arguments)
        assert len(disks) == 1 and here.get("VDI", vdi)["VBDs"] and here.get("PBD", pbd)["currently_attached"]
        here.toolstack.end_operation(vm, "OpaqueRef:task")
        await here.call("SR.destroy", sr)
        assert not disks


@pytest_twisted.ensureDeferred
async def test_a_domain_is_in_the_database_before_it_runs(tmp_path: Path) -> None:
    """Else a daemon that was killed would find a Halted VM, and start it a second time."""
    world = World()
    async with small_host(tmp_path, world) as here:
        vm = await here.vm(await here.sr())
        domains = here.toolstack.machines._domains
        start = domains.start
        known: list[bool] = []

        async def watched(spec: DomainSpec) -> None:
            with sqlite3.connect(f"file:{tmp_path}/records.db?mode=ro", uri=True) as database:
                rows = database.execute("select internal from records where cls = 'VM'").fetchall()
            known.append(any(spec.domain_id in internal for (internal,) in rows))
            await start(spec)

        domains.start = watched  # type: ignore[method-assign]
        commits = here.server.records._database._commits
        assert commits is not None
        store = commits.store

        def slow(batch: list[Row], generation: int) -> tuple[int, int]:
            time.sleep(0.2)
            return store(batch, generation)

        commits.store = slow  # type: ignore[method-assign]
        await here.call("VM.start", vm, False, False)
        assert known == [True]


@pytest_twisted.ensureDeferred
async def test_an_operation_is_retaken_whatever_the_record_says(tmp_path: Path) -> None:
    world = World()
    async with small_host(tmp_path, world) as here:
        vm = await here.vm(await here.sr())
        here.toolstack.begin_operation(vm, "migrate_send", "OpaqueRef:lost")
        task = here.server.tasks.resume("OpaqueRef:lost", "VM.migrate")
        here.toolstack.retake_operation(vm, "migrate_send", task.ref)
        await here.toolstack.machines.resync()
        assert here.get("VM", vm)["current_operations"] == {task.ref: "migrate_send"}
        assert "start" not in here.get("VM", vm)["allowed_operations"]


@pytest_twisted.ensureDeferred
async def test_a_halted_vm_that_is_sent_is_held_until_that_ends(tmp_path: Path) -> None:
    """The record's current_operations come to other members a moment later; the claim is taken in the database."""
    async with small_host(tmp_path) as here:
        vm = await here.vm(await here.sr())
        for end in (True, False):
            here.toolstack.begin_operation(vm, "migrate_send", "OpaqueRef:task")
            await here.toolstack.hold(vm)
            assert here.get("VM", vm)["_domain_host"] == here.host
            here.toolstack.end_operation(vm, "OpaqueRef:another")
            assert here.get("VM", vm)["_domain_host"] == here.host
            if end:
                here.toolstack.end_operation(vm, "OpaqueRef:task")
            else:
                await here.toolstack.machines.resync()  # as a daemon does that was killed before it wrote anything down
            assert here.get("VM", vm)["_domain_host"] == ""
        await here.call("VM.start", vm, False, False)
        here.toolstack.begin_operation(vm, "migrate_send", "OpaqueRef:task")
        await here.toolstack.hold(vm)
        here.toolstack.end_operation(vm, "OpaqueRef:task")
        assert here.get("VM", vm)["_domain_host"] == here.host, "its domain is here"
        here.toolstack.end_operation(vm, "OpaqueRef:task")
