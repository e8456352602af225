"""Halted VMs of a toolstack are sent to another host by the host beside it: locked meanwhile, gone after."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
import XenAPI
from twisted.internet import defer, threads

from tests.upstream.beside import Two, begin, beside, halted_vm, offer, session_of, world
from tests.upstream.test_doctor import ask
from xapi_migrate.migration.journal import Entry, Mark
from xapi_migrate.testing.memory_journals import MemoryJournal
from xapi_migrate.upstream.lease import BLOCKED


@pytest_twisted.ensureDeferred
async def test_a_halted_vm_moves(kind: str, tmp_path: Path) -> None:
    async with world(tmp_path, kind) as (two, kept), beside(two.source, kept) as here:
        vm, uuid, _ = await halted_vm(two.source)
        uris = await offer(two.destination)
        macs = [two.source.records.get("VIF", vif)["MAC"] for vif in two.source.records.get("VM", vm)["VIFs"]]

        def work() -> tuple[str, list[str]]:
            session = session_of(here)
            ref = session.xenapi.VM.migrate(vm, uris, {}, {})
            return ref, [task["status"] for task in session.xenapi.task.get_all_records().values()]

        ref, statuses = await threads.deferToThread(work)
        arrived = two.destination.records.get("VM", ref)
        assert (ref, arrived["uuid"], arrived["power_state"]) == (vm, uuid, "Halted")
        assert arrived["blocked_operations"] == {}
        assert [two.destination.records.get("VIF", vif)["MAC"] for vif in arrived["VIFs"]] == macs
        [storage] = [sr.storage for sr in two.destination.disks.values()]
        assert sorted(bytes(disk[:5]) for disk in storage.disks.values()) == [b"disk0", b"disk1"]
        # nothing of it is left at the toolstack, nor beside it
        for cls in ("VM", "VBD", "VDI", "VIF"):
            assert two.source.records.refs(cls) == []
            assert here.records.refs(cls) == []
        assert here.leases.known == {} and list((kept.folder / "upstream").iterdir()) == []
        assert statuses == ["success"]


@pytest_twisted.ensureDeferred
async def test_it_is_locked_while_it_moves_and_free_when_that_comes_to_nothing(kind: str, tmp_path: Path) -> None:
    async with world(tmp_path, kind, stalled=True) as (two, kept), beside(two.source, kept) as here:
        begun = await begin(two, here)
        vm, vdis, uris, session, task = begun.vm, begun.vdis, begun.uris, begun.session, begun.task
        assert set(two.source.records.get("VM", vm)["blocked_operations"]) == set(BLOCKED)

        def meanwhile() -> None:
            for call in (lambda x: x.VM.start(vm, False, False), lambda x: x.VM.destroy(vm)):
                with pytest.raises(XenAPI.Failure, match="OPERATION_BLOCKED"):
                    call(session.xenapi)
            with pytest.raises(XenAPI.Failure, match="OTHER_OPERATION_IN_PROGRESS"):
                session.xenapi.VM.migrate(vm, uris, {}, {})
            # the receiver's hidden one is elsewhere, ours is not shown
            assert [ref for ref in session.xenapi.VM.get_all() if ref in two.source.records.refs("VM")] == [vm]
            assert len(session.xenapi.VM.get_all()) - (kind == "xapi") == 1
            session.xenapi.task.cancel(task)

        await threads.deferToThread(meanwhile)
        await two.until(lambda: here.records.get("task", task)["status"] == "cancelled")
        await two.until(lambda: not here.leases.known)
        assert two.source.records.get("VM", vm)["blocked_operations"] == {}
        assert set(two.source.records.refs("VDI")) == set(vdis)
        assert here.records.refs("VM") == []
        await threads.deferToThread(session.xenapi.VM.start, vm, False, False)


@pytest_twisted.ensureDeferred
async def test_what_is_refused_leaves_no_trace(kind: str, tmp_path: Path) -> None:
    async with world(tmp_path, kind) as (two, kept), beside(two.source, kept) as here:
        vm, _, vdis = await halted_vm(two.source)
        sr = two.source.records.get("VDI", vdis[0])["SR"]
        running = await two.source.new_vm(sr)
        uris = await offer(two.destination)
        session = await threads.deferToThread(session_of, here)

        def refused(code: str, *params: Any, options: dict[str, str] | None = None) -> str:
            with pytest.raises(XenAPI.Failure, match=code) as failed:
                session.xenapi.VM.migrate(*params, {}, options or {})
            return str(failed.value)

        def work() -> None:
            assert "VM.migrate_send" in refused("OPERATION_NOT_ALLOWED", running, uris)
            refused("HANDLE_INVALID", "OpaqueRef:nobody", uris)
            refused("INVALID_VALUE", vm, ["http://x"])
            refused("OPERATION_NOT_ALLOWED", vm, uris, options={"copy": "true"})
            refused("OPERATION_NOT_ALLOWED", vm, uris, options={"no": "such"})
            refused("VM_MIGRATE_CONTACT_REMOTE_SERVICE_FAILED", vm, [uris[0][:-4] + "AAAA"])

        await threads.deferToThread(work)
        for field in ("is_a_snapshot", "is_a_template"):
            two.source.records.update("VM", vm, **{field: True})
            await threads.deferToThread(refused, "VM_IS_", vm, uris)
            two.source.records.update("VM", vm, **{field: False})
        two.source.records.update("VDI", vdis[0], sm_config={"vhd-parent": "x"})
        await threads.deferToThread(refused, "OPERATION_NOT_ALLOWED", vm, uris)
        two.source.records.update("VDI", vdis[0], sm_config={}, other_config={"xapi_migrate_arrival": "x"})
        await threads.deferToThread(refused, "OPERATION_NOT_ALLOWED", vm, uris)
        two.source.records.update("VDI", vdis[0], other_config={})
        two.source.records.update("VM", vm, blocked_operations={"clone": "mine"})
        await threads.deferToThread(refused, "MAP_DUPLICATE_KEY", vm, uris)
        assert two.source.records.get("VM", vm)["blocked_operations"] == {"clone": "mine"}
        assert here.records.refs("VM") == [] and here.leases.known == {}


@pytest.mark.parametrize("moves", [True, False])
@pytest_twisted.ensureDeferred
async def test_the_toolstack_is_away_when_it_is_over(kind: str, tmp_path: Path, moves: bool) -> None:
    """The VM stays locked until the toolstack can be told."""
    async with world(tmp_path, kind, stalled=True) as (two, kept), beside(two.source, kept) as here:
        begun = await begin(two, here)
        vm, uris, task = begun.vm, begun.uris, begun.task
        # its session has ended, so that nothing can be done at the toolstack by it
        for ref in two.source.records.refs("session"):
            two.source.records.destroy("session", ref)
        if moves:
            here.disks.popitem()[1].stalled = False
        else:
            here.overlaid.server.tasks.get(task).cancel()
        await two.until(lambda: here.records.get("task", task)["status"] in ("success", "cancelled"))
        assert here.records.get("task", task)["status"] == ("success" if moves else "cancelled")
        assert set(two.source.records.get("VM", vm)["blocked_operations"]) == set(BLOCKED)
        assert len(here.leases.known) == 1
        # whoever moves a VM next settles it by the way
        session = await threads.deferToThread(session_of, here)
        with pytest.raises(XenAPI.Failure, match="HANDLE_INVALID"):
            await threads.deferToThread(session.xenapi.VM.migrate, "OpaqueRef:nobody", uris, {}, {})
        assert here.leases.known == {}
        assert two.source.records.refs("VM") == ([] if moves else [vm])
        if not moves:
            assert two.source.records.get("VM", vm)["blocked_operations"] == {}


@pytest_twisted.ensureDeferred
async def test_the_daemon_is_started_anew_in_the_middle(kind: str, tmp_path: Path) -> None:
    """The engine goes on, and when it is over the toolstack hears of it."""
    async with world(tmp_path, kind, stalled=True) as (two, kept):
        async with beside(two.source, kept) as here:
            vm = (begun := await begin(two, here)).vm
        assert set(two.source.records.get("VM", vm)["blocked_operations"]) == set(BLOCKED)
        kept.stalled = False
        async with beside(two.source, kept) as here:
            await two.until(lambda: not here.leases.known)
            assert two.destination.records.get("VM", vm)["uuid"] == begun.uuid
            for cls in ("VM", "VDI"):
                assert two.source.records.refs(cls) == []
                assert here.records.refs(cls) == []


@pytest_twisted.ensureDeferred
async def test_where_it_is_not_known_it_stays_locked(kind: str, tmp_path: Path) -> None:
    """The journal has gone, so nothing says how it ended: neither is the VM freed nor destroyed."""
    async with world(tmp_path, kind, stalled=True) as (two, kept):
        async with beside(two.source, kept) as here:
            begun = await begin(two, here)
            vm, vdis, uris = begun.vm, begun.vdis, begun.uris
        kept.journals = type(kept.journals)()
        async with beside(two.source, kept) as here:
            session = await threads.deferToThread(session_of, here)
            with pytest.raises(XenAPI.Failure, match="OTHER_OPERATION_IN_PROGRESS"):
                await threads.deferToThread(session.xenapi.VM.migrate, vm, uris, {}, {})
            assert set(two.source.records.get("VM", vm)["blocked_operations"]) == set(BLOCKED)
            assert set(two.source.records.refs("VDI")) == set(vdis)


@pytest_twisted.ensureDeferred
async def test_the_calls_of_todays_clients_move_it_to_a_host_of_ours(kind: str, tmp_path: Path) -> None:
    """host.migrate_receive there, then VM.assert_can_migrate and VM.migrate_send here; six arguments, as clients do."""
    async with world(tmp_path, kind) as (two, kept), beside(two.source, kept) as here:
        vm, uuid, vdis = await halted_vm(two.source)
        there = two.destination
        sr = await there.new_sr()
        dest = await there.client(lambda x: x.host.migrate_receive(there.host, there.network, {}))
        vdi_map, vif_map = two.source.maps(vm, sr, there.network)
        running = await two.source.new_vm(two.source.records.get("VDI", vdis[0])["SR"])

        def work() -> str:
            x = session_of(here).xenapi
            # one that runs is the toolstack's to move; this one can
            x.VM.assert_can_migrate(running, dest, True, {}, {}, {"force": "false"})
            with pytest.raises(XenAPI.Failure, match="OPERATION_NOT_ALLOWED"):
                x.VM.migrate_send(vm, dest, True, vdi_map, vif_map, {"copy": "true"})
            x.VM.assert_can_migrate(vm, dest, True, vdi_map, vif_map, {"force": "false"})
            # a map that no host of ours made is the toolstack's business
            with pytest.raises(XenAPI.Failure, match="VM_MIGRATE_CONTACT_REMOTE_SERVICE_FAILED"):
                x.VM.migrate_send(vm, {"host": "x"}, True, vdi_map, vif_map, {})
            return str(x.VM.migrate_send(vm, dest, True, vdi_map, vif_map, {"force": "false"}))

        ref = await threads.deferToThread(work)
        assert there.records.get("VM", ref)["uuid"] == uuid
        assert two.source.records.refs("VM") == [running]
        assert here.leases.known == {}


def plugs(two: Two, vdi: str) -> list[dict[str, Any]]:
    """VBDs by which the control domain has it."""
    vbds = [two.source.records.get("VBD", vbd) for vbd in two.source.records.get("VDI", vdi)["VBDs"]]
    mine = two.source.records.refs("VM")
    return [vbd for vbd in vbds if vbd["VM"] not in mine]


@pytest.mark.parametrize("kind", ["xapi"], indirect=True)
@pytest.mark.parametrize("moves", [True, False])
@pytest_twisted.ensureDeferred
async def test_its_disks_are_in_use_meanwhile(kind: str, tmp_path: Path, moves: bool) -> None:
    """By the control domain, to read: nobody writes to them, or destroys them."""
    async with world(tmp_path, kind, stalled=True) as (two, kept), beside(two.source, kept) as here:
        begun = await begin(two, here)
        for vdi in begun.vdis:
            [plug] = plugs(two, vdi)
            assert (plug["mode"], plug["currently_attached"], plug["other_config"]) == (
                "RO", True, {"xapi_migrate": next(iter(here.leases.known))}
            )  # fmt: skip

        def another_takes(vdi: str) -> str:
            x = begun.session.xenapi
            vm = x.VM.create({"name_label": "another", "memory_static_max": "67108864", "VCPUs_max": "1"})
            x.VM.set_is_a_template(vm, False)
            x.VBD.create({"VM": vm, "VDI": vdi, "userdevice": "0", "mode": "RW", "type": "Disk", "empty": False})
            with pytest.raises(XenAPI.Failure, match="SR_BACKEND_FAILURE_46"):
                x.VM.start(vm, False, False)
            with pytest.raises(XenAPI.Failure, match="VDI_IN_USE"):
                x.VDI.destroy(vdi)
            return str(vm)

        another = await threads.deferToThread(another_takes, begun.vdis[0])
        await threads.deferToThread(begun.session.xenapi.VM.destroy, another)
        if moves:
            here.disks.popitem()[1].stalled = False
        else:
            here.overlaid.server.tasks.get(begun.task).cancel()
        await two.until(lambda: not here.leases.known)
        assert two.source.records.refs("VDI") == ([] if moves else begun.vdis)
        assert len(two.source.records.refs("VBD")) == (0 if moves else 2)
        if not moves:
            await threads.deferToThread(begun.session.xenapi.VM.start, begun.vm, False, False)


@pytest.mark.parametrize("kind", ["xapi"], indirect=True)
@pytest.mark.parametrize("lost", ["VBD.create", "VBD.plug", "VBD.unplug", "VBD.destroy"])
@pytest_twisted.ensureDeferred
async def test_what_is_plugged_is_found_again_though_an_answer_is_lost(kind: str, tmp_path: Path, lost: str) -> None:
    async with world(tmp_path, kind, stalled=True) as (two, kept), beside(two.source, kept) as here:
        vm, _, vdis = await halted_vm(two.source)
        uris = await offer(two.destination)
        session = await threads.deferToThread(session_of, here)
        xapi: Any = two.source
        answering = xapi.xapi.database.call

        def losing(method: str, params: list[Any], local: bool) -> Any:
            said = answering(method, params, local)
            if method == lost:
                xapi.xapi.database.call = answering
                raise OSError("the answer is lost")
            return said

        xapi.xapi.database.call = losing
        task = await threads.deferToThread(session.xenapi.Async.VM.migrate, vm, uris, {}, {})
        if lost in ("VBD.create", "VBD.plug"):
            await two.until(lambda: here.records.get("task", task)["status"] == "failure")
        else:
            await two.until(lambda: here.engine._outgoing)
            here.overlaid.server.tasks.get(task).cancel()
            await two.until(lambda: here.records.get("task", task)["status"] == "cancelled")
            with pytest.raises(XenAPI.Failure, match="HANDLE_INVALID"):  # settles it by the way
                await threads.deferToThread(session.xenapi.VM.migrate, "OpaqueRef:nobody", uris, {}, {})
        assert here.leases.known == {}
        assert [plugs(two, vdi) for vdi in vdis] == [[], []]
        assert two.source.records.get("VM", vm)["blocked_operations"] == {}
        await threads.deferToThread(session.xenapi.VM.start, vm, False, False)


@pytest.mark.parametrize("kind", ["xapi"], indirect=True)
@pytest_twisted.ensureDeferred
async def test_a_disk_that_another_vm_got_meanwhile_is_not_sent(kind: str, tmp_path: Path) -> None:
    async with world(tmp_path, kind) as (two, kept), beside(two.source, kept) as here:
        vm, _, vdis = await halted_vm(two.source)
        uris = await offer(two.destination)
        session = await threads.deferToThread(session_of, here)
        database: Any = two.source.xapi.database  # type: ignore[attr-defined]
        answering = database.call

        def taking(method: str, params: list[Any], local: bool) -> Any:
            if method == "VBD.plug":
                database.call = answering
                database.create("VBD", VM=database.create("VM", name_label="another"), VDI=vdis[1], mode="RO")
            return answering(method, params, local)

        database.call = taking
        with pytest.raises(XenAPI.Failure, match="OPERATION_NOT_ALLOWED"):
            await threads.deferToThread(session.xenapi.VM.migrate, vm, uris, {}, {})
        assert here.leases.known == {}
        assert two.source.records.get("VM", vm)["blocked_operations"] == {}


@pytest.mark.parametrize("known", [True, False])
@pytest_twisted.ensureDeferred
async def test_an_earlier_attempt_says_nothing_of_a_later_one(kind: str, tmp_path: Path, known: bool) -> None:
    """The daemon is killed when the VM has moved and before it has written that down; the journal of an earlier
    migration of the same VM, which came to nothing, is still there."""
    async with world(tmp_path, kind, stalled=True) as (two, kept):
        async with beside(two.source, kept) as here:
            begun = await begin(two, here)
            journal = kept.journals.all["sender", next(iter(here.engine._outgoing))]
            save = here.leases.save
            here.leases.save = lambda lease: defer.Deferred() if lease.state == "moved" else save(lease)
            here.disks.popitem()[1].stalled = False
            await two.until(lambda: not kept.journals.all)
        earlier = MemoryJournal(kept.journals, "sender", "an earlier one")
        first = journal.entries[0]
        earlier.entries = [
            Entry(Mark.BEGUN, {**first.data, "task": "OpaqueRef:an-earlier-one"}), Entry(Mark.ABORTED, {}),
            Entry(Mark.ENDED, {}),
        ]  # fmt: skip
        kept.journals.all = {("sender", one.migration): one for one in ([journal] * known + [earlier])}
        async with beside(two.source, kept) as here:
            if known:
                await two.until(lambda: not here.leases.known)
                assert two.source.records.refs("VM") == []
            else:
                assert await threads.deferToThread(lambda: ask(session_of(here), "in_doubt")) == [begun.uuid]
                assert set(two.source.records.get("VM", begun.vm)["blocked_operations"]) == set(BLOCKED)


@pytest.mark.parametrize("what", ["snapshot", "VBD"])
@pytest_twisted.ensureDeferred
async def test_a_disk_that_somebody_else_uses_by_now_stays(kind: str, tmp_path: Path, what: str) -> None:
    """The VM moves; the toolstack keeps that disk."""
    async with world(tmp_path, kind, stalled=True) as (two, kept), beside(two.source, kept) as here:
        begun = await begin(two, here)
        if what == "snapshot":
            two.source.records.update("VDI", begun.vdis[0], sm_config={"vhd-parent": "x"})
        else:
            records: Any = two.source.records
            create = records.create if kind == "daemon" else records.database.create
            another = create("VM", name_label="another")
            create("VBD", VM=another, VDI=begun.vdis[0], mode="RO", type="Disk")
        here.disks.popitem()[1].stalled = False
        await two.until(lambda: not here.leases.known)
        assert here.records.get("task", begun.task)["status"] == "success"
        assert begun.vm not in two.source.records.refs("VM")
        assert two.source.records.refs("VDI") == begun.vdis[:1]


@pytest_twisted.ensureDeferred
async def test_one_that_waits_its_turn_when_the_daemon_is_killed_is_free_again(kind: str, tmp_path: Path) -> None:
    """Nothing had begun, and nothing of it is left here."""
    async with world(tmp_path, kind) as (two, kept):
        async with beside(two.source, kept) as here:
            for _ in range(4):
                here.engine._sends.join()
            vm, _, vdis = await halted_vm(two.source)
            uris = await offer(two.destination)
            session = await threads.deferToThread(session_of, here)
            task = await threads.deferToThread(session.xenapi.Async.VM.migrate, vm, uris, {}, {})
            await two.until(lambda: "waiting" in here.records.get("task", task)["other_config"])
            assert set(two.source.records.get("VM", vm)["blocked_operations"]) == set(BLOCKED)
            [note] = (kept.folder / "upstream").iterdir()
            noted = note.read_text()
        note.write_text(noted)  # as if it had been killed
        async with beside(two.source, kept) as here:
            await two.until(lambda: not here.leases.known)
            assert two.source.records.get("VM", vm)["blocked_operations"] == {}
            assert two.source.records.refs("VDI") == vdis
            for cls in ("VM", "VBD", "VDI", "VIF"):
                assert here.records.refs(cls) == []
