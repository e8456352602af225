"""A VM is received into an SR of a toolstack by the host beside it, and becomes the toolstack's."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
import XenAPI
from twisted.internet import reactor, task, threads

from tests.upstream.beside import Beside, beside
from tests.upstream.receiver import MAC_SEED, World, crash_at, session_of, world
from tests.upstream.simulated.records import Failure
from tests.upstream.toolstacks import toolstack
from tests.xenapi.two_servers import PASSWORD, USER
from xapi_migrate.errors import OperationNotAllowed
from xapi_migrate.migration.journal import Mark
from xapi_migrate.testing.memory_journals import Crash
from xapi_migrate.together import started
from xapi_migrate.upstream.lease import BLOCKED
from xapi_migrate.upstream.reading import record_of


@pytest_twisted.ensureDeferred
async def test_a_halted_vm_becomes_the_toolstacks(kind: str, tmp_path: Path) -> None:
    async with world(tmp_path, kind) as w, beside(w.upstream.toolstack, w.kept) as here:
        [mac] = [w.sender.records.get("VIF", vif)["MAC"] for vif in w.sender.records.get("VM", w.vm)["VIFs"]]
        seen: list[Any] = []

        def look() -> None:
            """While its metadata is imported."""
            seen.append([(vm["is_a_template"], vm["current_operations"]) for vm in w.upstream.records("VM").values()])

        if kind == "xapi":
            w.upstream.running.server.before_import = look
        task = await w.migrate(await w.offer(here))
        assert await w.over(task) == "success", w.task(task)["error_info"]
        vm = w.arrived()
        assert seen == ([[], []] if kind == "xapi" else [])  # a rehearsal leaves nothing
        assert vm["blocked_operations"] == {"clone": "mine"} and vm["other_config"]["mac_seed"] == MAC_SEED
        [vif] = [w.upstream.records("VIF")[ref] for ref in vm["VIFs"]]
        assert (vif["MAC"], vif["network"]) == (mac, w.upstream.toolstack.network)
        assert {one["type"] for one in w.upstream.records("VDI").values()} == {"user"}
        assert w.upstream.records("task") == {}
        await w.nothing_here(here)
        assert w.sender.records.refs("VM") == []


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("mark", [Mark.BEGUN, Mark.PREPARED, Mark.OFFERED, Mark.COMMITTED, Mark.ENDED])
@pytest_twisted.ensureDeferred
async def test_the_daemon_dies_at_a_journal_write(kind: str, tmp_path: Path, mark: Mark, when: str) -> None:
    """One host has the VM in the end, and at the other nothing of it is left; the upstream never starts it before."""
    async with world(tmp_path, kind) as w:
        daemons: list[Beside] = []
        crashed = crash_at(w.kept, lambda: daemons[-1], mark, when)
        async with beside(w.upstream.toolstack, w.kept) as here:
            daemons.append(here)
            task = await w.migrate(await w.offer(here))
            await w.until(lambda: crashed, "that write never came")
            await w.until(lambda: here.engine._stopped)
            w.locked_if_there(mark is Mark.ENDED)
            port = here.overlaid.port
        async with beside(w.upstream.toolstack, w.kept, port) as here:
            await w.over(task)
            await w.nothing_here(here)
            w.at_one()


CALLS = [
    ("network.get_all_records", 1), ("VDI.create", 1), ("VDI.create", 2), ("PUT", 1), ("task.create", 2), ("PUT", 2),
    ("task.destroy", 2), ("VM.set_blocked_operations", 1), ("VBD.get_VM", 2), ("VM.set_is_a_template", 1),
    ("VM.set_blocked_operations", 2), ("VM.remove_from_other_config", 2),
]  # fmt: skip
"""What is asked of the upstream, and the how manieth time; COMMIT comes after the ninth."""
COMMITTED = CALLS[9:]


@pytest.mark.parametrize("call", CALLS, ids=lambda call: f"{call[0]} {call[1]}")
@pytest_twisted.ensureDeferred
async def test_the_daemon_dies_when_the_upstream_has_answered(kind: str, tmp_path: Path, call: tuple[str, int]) -> None:
    """The upstream has done it, and nothing here says so."""
    async with world(tmp_path, kind) as w:
        async with beside(w.upstream.toolstack, w.kept) as here:
            uris = await w.offer(here)

            def die() -> None:
                here.die()
                raise Crash

            w.at(here, *call, die, after=True)
            task = await w.migrate(uris)
            await w.until(lambda: here.engine._stopped, "that call never came")
            port = here.overlaid.port
        async with beside(w.upstream.toolstack, w.kept, port) as here:
            w.locked_if_there(call in COMMITTED)
            assert await w.over(task) == ("success" if call in COMMITTED else "failure")
            await w.offer(here)
            await w.nothing_here(here)
            w.at_one()
            if call[0] != "task.create":  # its answer is lost, so nobody knows of the task
                assert w.upstream.records("task") == {}


AROUND = [("xapi", call) for call in CALLS] + [("daemon", call) for call in (CALLS[1], CALLS[5], CALLS[7], CALLS[9])]


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize(
    ("kind", "call"), AROUND, ids=lambda one: one if isinstance(one, str) else f"{one[0]} {one[1]}"
)
@pytest_twisted.ensureDeferred
async def test_the_upstream_dies_around_a_call(kind: str, tmp_path: Path, call: tuple[str, int], after: bool) -> None:
    """It comes back later, with all that it had done."""
    async with world(tmp_path, kind) as w, beside(w.upstream.toolstack, w.kept) as here:
        uris = await w.offer(here)
        cut: list[bool] = []

        def cut_off() -> None:
            cut.append(True)
            w.upstream.cut()

        w.at(here, *call, cut_off, after)
        task = await w.migrate(uris)
        committed = call in COMMITTED or (call == CALLS[8] and after)
        assert await w.over(task) == ("success" if committed else "failure")
        assert cut
        w.locked_if_there(committed)
        await w.upstream.comes_back()
        await w.settled(here)
        await w.nothing_here(here)
        w.at_one()


@pytest_twisted.ensureDeferred
async def test_a_new_vdi_whose_name_is_no_uuid_is_not_taken(tmp_path: Path) -> None:
    """It would be the name of a folder here."""
    async with world(tmp_path) as w, beside(w.upstream.toolstack, w.kept) as here:
        uris = await w.offer(here)

        def rename() -> None:
            for vdi in w.upstream.records("VDI"):
                w.upstream.toolstack.records.update("VDI", vdi, uuid="../../elsewhere")

        w.at(here, "VDI.create", 1, rename, after=True)
        task = await w.migrate(uris)
        assert await w.over(task) == "failure"
        assert "record of the VDI" in str(w.task(task)["error_info"])
        w.stayed()
        await w.settled(here)
        await w.nothing_here(here)


@pytest.mark.parametrize("cls", ["VM", "VDI"])
@pytest.mark.parametrize("uuid", ["../../elsewhere", "", None, 5])
@pytest_twisted.ensureDeferred
async def test_a_vm_whose_name_is_no_uuid_is_not_read(cls: str, uuid: Any) -> None:
    class Upstream:
        async def call(self, method: str, *params: Any) -> Any:
            return {"uuid": uuid}

    with pytest.raises(OperationNotAllowed, match=f"record of the {cls} OpaqueRef:1 cannot be used"):
        await record_of(Upstream(), "session", cls, "OpaqueRef:1")  # type: ignore[arg-type]


@pytest_twisted.ensureDeferred
async def test_the_answer_to_the_import_is_lost(tmp_path: Path) -> None:
    """The upstream has the VM and the receiver does not know: it aborts, and the VM goes there."""
    async with world(tmp_path) as w, beside(w.upstream.toolstack, w.kept) as here:
        uris = await w.offer(here)
        w.at_the_import(w.upstream.cut)
        task = await w.migrate(uris)
        assert await w.over(task) == "failure"
        w.stayed()
        await w.upstream.comes_back()
        await w.settled(here)
        await w.nothing_here(here)
        w.nothing_there()


@pytest_twisted.ensureDeferred
async def test_it_is_given_up_while_the_upstream_imports_it(tmp_path: Path) -> None:
    """The upstream makes the VM when nobody wants it any more: it is not forgotten before."""
    async with world(tmp_path) as w, beside(w.upstream.toolstack, w.kept) as here:
        uris = await w.offer(here)
        goes_on = threading.Event()
        imported = w.at_the_import(lambda: goes_on.wait(60))
        migration = await w.migrate(uris)
        await w.until(imported.is_set, "it is not imported")
        await w.sender.client(lambda x: x.task.cancel(migration))
        assert await w.over(migration) == "cancelled"
        w.stayed()
        await w.until(lambda: [one.state for one in here.arrivals.known.values()] == ["given up"], "it is not undone")
        await here.arrivals.settle_all()
        assert len(here.arrivals.known) == 1 and len(w.upstream.records("VDI")) == 2
        goes_on.set()
        await w.until(
            lambda: "VM" in [cls for _, cls, _, _ in w.upstream.database.log], "the upstream has not imported it"
        )
        while here.arrivals.known:
            w.locked_if_there()
            await here.arrivals.settle_all()
            await task.deferLater(reactor, 0.01)  # where it is just being done there is nothing to wait for
        await w.nothing_here(here)
        w.nothing_there()


@pytest_twisted.ensureDeferred
async def test_the_upstream_dies_after_commit(kind: str, tmp_path: Path) -> None:
    """The VM has moved; it stays locked until the upstream is back."""
    async with world(tmp_path, kind) as w, beside(w.upstream.toolstack, w.kept) as here:
        uris = await w.offer(here)
        w.kept.journals.after = lambda journal, mark: w.upstream.cut() if mark is Mark.COMMITTED else None
        task = await w.migrate(uris)
        assert await w.over(task) == "success"
        assert w.sender.records.refs("VM") == []
        w.locked_if_there()
        assert [one.state for one in here.arrivals.known.values()] == ["arrived"]
        await w.upstream.comes_back()
        await w.settled(here)
        w.arrived()
        await w.nothing_here(here)


@pytest.mark.parametrize(
    ("moment", "by_two"), [("VM.receive", False), ("2.1", False), ("2.1", True), ("COMMIT", False)]
)
@pytest_twisted.ensureDeferred
async def test_the_session_ends(kind: str, tmp_path: Path, moment: str, by_two: bool) -> None:
    """Before COMMIT that ends the migration, with a reason; after it the VM waits, locked. Whoever comes next with a
    session of his own settles it, also if he comes while it is tried with the session that has ended."""
    async with world(tmp_path, kind) as w, beside(w.upstream.toolstack, w.kept) as here:
        uris = await w.offer(here)

        def end() -> None:
            w.upstream.end_sessions()

        if moment == "VM.receive":
            end()
        elif moment == "2.1":
            w.kept.journals.after = lambda journal, mark: end() if mark is Mark.PREPARED else None
        else:
            w.kept.journals.after = lambda journal, mark: end() if mark is Mark.COMMITTED else None
        task = await w.migrate(uris)
        assert await w.over(task) == ("success" if moment == "COMMIT" else "failure")
        if moment != "COMMIT":
            w.stayed()
            said = " ".join(w.task(task)["error_info"])
            assert "session" in said and "call VM.receive again" in said
            assert not any(one.session in said for one in here.arrivals.known.values())
        w.locked_if_there()
        assert len(here.arrivals.known) == (0 if moment == "VM.receive" else 1)
        await w.until(lambda: here.arrivals.waiting.keys() == here.arrivals.known.keys(), "it is not tried at all")
        if by_two:
            [arrival] = here.arrivals.known.values()
            session = await threads.deferToThread(session_of, here, w.upstream.user)
            first = started(here.arrivals.settle(arrival))
            assert not await here.arrivals.settle(arrival, session.handle)
            assert await first
        else:
            await w.offer(here)
        await w.nothing_here(here)
        if moment == "COMMIT":
            w.arrived()
        else:
            w.nothing_there()


@pytest_twisted.ensureDeferred
async def test_it_is_cancelled(kind: str, tmp_path: Path) -> None:
    async with world(tmp_path, kind) as w, beside(w.upstream.toolstack, w.kept) as here:
        w.sender.slow()
        task = await w.migrate(await w.offer(here))
        await w.until(lambda: here.records.refs("VDI"))
        await w.sender.client(lambda x: x.task.cancel(task))
        assert await w.over(task) == "cancelled"
        w.stayed()
        await w.nothing_here(here)
        w.nothing_there()


def _other_uuid(w: World) -> None:
    w.upstream.create("VM", uuid=w.uuid, name_label="it is there already")


def _same_seed(w: World) -> None:
    w.upstream.create("VM", name_label="its twin", other_config={"mac_seed": MAC_SEED})


def _full(w: World) -> None:
    w.upstream.running.database.storages[w.upstream.sr] = Full()


class Full:
    def create(self, uuid: str, size: int) -> int:
        raise Failure("SR_FULL", str(size), "0")

    def destroy(self, uuid: str) -> None:
        raise KeyError(uuid)


@pytest.mark.parametrize(
    ("kind", "prepare", "word"),
    [
        ("xapi", _other_uuid, "at the toolstack of this host already"),
        ("daemon", _other_uuid, "at the toolstack of this host already"),
        ("xapi", _same_seed, "DUPLICATE_MAC_SEED"),
        ("daemon", _same_seed, "DUPLICATE_MAC_SEED"),
        ("xapi", _full, "SR_FULL"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_what_the_upstream_refuses_is_told_at_once(
    kind: str, tmp_path: Path, prepare: Callable[[World], None], word: str
) -> None:
    async with world(tmp_path, kind) as w, beside(w.upstream.toolstack, w.kept) as here:
        prepare(w)
        before = set(w.upstream.records("VM"))
        task = await w.migrate(await w.offer(here))
        assert await w.over(task) == "failure"
        assert word in " ".join(w.task(task)["error_info"])
        assert not [call for call in here.disks.popitem()[1].calls if call[0] == "vdi_get_url"]
        w.stayed()
        await w.nothing_here(here)
        assert set(w.upstream.records("VM")) == before and w.upstream.memory == {}


@pytest_twisted.ensureDeferred
async def test_another_of_its_uuid_that_comes_meanwhile_is_left_alone(kind: str, tmp_path: Path) -> None:
    """An import would take its place."""
    async with world(tmp_path, kind) as w, beside(w.upstream.toolstack, w.kept) as here:
        uris = await w.offer(here)
        w.kept.journals.after = lambda journal, mark: _other_uuid(w) if mark is Mark.PREPARED else None
        task = await w.migrate(uris)
        assert await w.over(task) == "failure"
        assert "has come to the toolstack" in " ".join(w.task(task)["error_info"])
        w.stayed()
        await w.nothing_here(here)
        assert [vm["name_label"] for vm in w.upstream.records("VM").values()] == ["it is there already"]
        assert w.upstream.memory == {}


def _disk_destroyed(w: World) -> None:
    w.upstream.database.VDI_destroy(next(iter(w.upstream.records("VDI"))))


def _disk_taken(w: World) -> None:
    another = w.upstream.database.create("VM", name_label="another", is_a_template=False)
    w.upstream.database.create("VBD", VM=another, VDI=next(iter(w.upstream.records("VDI"))), mode="RW", type="Disk")


@pytest.mark.parametrize("call", [("PUT", 1), ("PUT", 2), ("VM.set_blocked_operations", 1)])
@pytest.mark.parametrize("act", [_disk_destroyed, _disk_taken])
@pytest_twisted.ensureDeferred
async def test_it_does_not_arrive_without_a_disk_that_is_its_own(
    tmp_path: Path, act: Callable[[World], None], call: tuple[str, int]
) -> None:
    """Somebody destroys a VDI that is being received, or gives it to another VM."""
    async with world(tmp_path) as w, beside(w.upstream.toolstack, w.kept) as here:
        uris = await w.offer(here)
        w.at(here, *call, lambda: act(w), after=True)
        task = await w.migrate(uris)
        assert await w.over(task) == "failure"
        w.stayed()
        await w.nothing_here(here)
        assert w.uuid not in [vm["uuid"] for vm in w.upstream.records("VM").values()]
        assert w.upstream.records("VDI") == {} and w.upstream.memory == {}


@pytest.mark.parametrize("marked", [True, False])
@pytest_twisted.ensureDeferred
async def test_no_block_of_ours_is_left_where_somebody_has_changed_what_waits(tmp_path: Path, marked: bool) -> None:
    """One block is taken away, and perhaps the mark. The VM waits, locked, because the session has ended. What others
    have blocked meanwhile stays blocked."""
    async with world(tmp_path) as w, beside(w.upstream.toolstack, w.kept) as here:
        uris = await w.offer(here)
        w.kept.journals.after = lambda _, mark: (
            w.upstream.records("session").clear() if mark is Mark.COMMITTED else None
        )
        assert await w.over(await w.migrate(uris)) == "success"
        [(ref, vm)] = w.upstream.records("VM").items()
        kept = {operation: why for operation, why in vm["blocked_operations"].items() if operation != "start"}
        w.upstream.database.update("VM", ref, blocked_operations={**kept, "pool_migrate": "theirs"})
        if not marked:
            w.upstream.database.update("VM", ref, other_config={})
        await w.offer(here)
        await w.nothing_here(here)
        assert w.arrived()["blocked_operations"] == {"clone": "mine", "pool_migrate": "theirs"}


@pytest_twisted.ensureDeferred
async def test_an_upstream_without_an_import_receives_nothing(tmp_path: Path) -> None:
    async with world(tmp_path) as w, toolstack("daemon", tmp_path / "another", w.kept.luns) as upstream:
        sr = await upstream.new_sr()
        upstream.door._site.imports = None  # type: ignore[attr-defined]
        async with beside(upstream, w.kept) as here:

            def receive() -> list[str]:
                session = XenAPI.Session(here.overlaid.url)
                session.xenapi.login_with_password(USER, PASSWORD, "2.20", "tests")
                return list(session.xenapi.VM.receive(sr, {}))

            task = await w.migrate(await threads.deferToThread(receive))
            assert await w.over(task) == "failure"
            assert "does not know PUT /import_metadata" in " ".join(w.task(task)["error_info"])
            w.stayed()
            await w.nothing_here(here)
            for cls in ("VM", "VDI"):
                assert upstream.records.refs(cls) == []
            assert upstream.disks.popitem()[1].storage.disks == {}


@pytest_twisted.ensureDeferred
async def test_one_that_runs_is_refused_before_anything_is_made(kind: str, tmp_path: Path) -> None:
    async with world(tmp_path, kind) as w, beside(w.upstream.toolstack, w.kept) as here:
        await w.sender.client(lambda x: x.VM.start(w.vm, False, False))
        task = await w.migrate(await w.offer(here))
        assert await w.over(task) == "failure"
        assert "only while they have none" in " ".join(w.task(task)["error_info"])
        assert w.sender.records.get("VM", w.vm)["power_state"] == "Running"
        w.nothing_there()
        if kind == "xapi":
            assert not {"VDI.create", "task.create"} & set(w.upstream.database.calls)
        await w.nothing_here(here)


@pytest_twisted.ensureDeferred
async def test_who_may_not_gets_no_offer(tmp_path: Path) -> None:
    async with world(tmp_path) as w, beside(w.upstream.toolstack, w.kept) as here:
        with pytest.raises(XenAPI.Failure, match="RBAC_PERMISSION_DENIED"):
            await w.offer(here, "guest")
        w.upstream.database.update("PBD", next(iter(w.upstream.records("PBD"))), currently_attached=False)
        with pytest.raises(XenAPI.Failure, match="SR_NOT_ATTACHED"):
            await w.offer(here)
        with pytest.raises(XenAPI.Failure, match="HANDLE_INVALID"):
            await threads.deferToThread(lambda: session_of(here).xenapi.VM.receive("OpaqueRef:none", {}))
        assert here.engine._incoming == {}


@pytest_twisted.ensureDeferred
async def test_nobody_starts_it_before_it_is_decided(kind: str, tmp_path: Path) -> None:
    """It is at the upstream and COMMIT is not written yet."""
    async with world(tmp_path, kind) as w, beside(w.upstream.toolstack, w.kept) as here:
        tried: list[str] = []

        def try_it(journal: Any, mark: Mark) -> None:
            if mark is Mark.COMMITTED:
                [(ref, vm)] = w.upstream.records("VM").items()
                assert vm["is_a_template"] and set(vm["blocked_operations"]) == set(BLOCKED)
                assert vm["other_config"]["HideFromXenCenter"] == "true"
                tried.extend([w.upstream.refusal("VM.start", ref, False, False), w.upstream.refusal("VM.destroy", ref)])
                w.upstream.toolstack.records.update("VM", ref, blocked_operations={})
                tried.append(w.upstream.refusal("VM.start", ref, False, False))
                w.upstream.toolstack.records.update("VM", ref, blocked_operations=vm["blocked_operations"])

        w.kept.journals.before = try_it
        task = await w.migrate(await w.offer(here))
        assert await w.over(task) == "success"
        first = "OPERATION_BLOCKED" if kind == "xapi" else "VM_IS_TEMPLATE"
        assert tried == [first, "OPERATION_BLOCKED", "VM_IS_TEMPLATE"]
        w.arrived()


@pytest_twisted.ensureDeferred
async def test_where_it_is_not_known_it_stays_locked(kind: str, tmp_path: Path) -> None:
    """The journal has gone: neither is the VM given to its owner nor destroyed."""
    async with world(tmp_path, kind) as w:
        daemons: list[Beside] = []
        crash_at(w.kept, lambda: daemons[-1], Mark.COMMITTED, "before")
        async with beside(w.upstream.toolstack, w.kept) as here:
            daemons.append(here)
            await w.migrate(await w.offer(here))
            await w.until(lambda: here.engine._stopped)
        w.kept.journals = type(w.kept.journals)()
        async with beside(w.upstream.toolstack, w.kept) as here:
            await w.offer(here)
            assert [one.state for one in here.arrivals.known.values()] == ["importing"]
            w.locked_if_there()
            assert len(w.upstream.records("VM")) == 1 and len(w.upstream.records("VDI")) == 2
