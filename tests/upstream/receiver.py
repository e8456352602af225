"""A host that receives beside a toolstack of either kind, and one on its own that sends to it."""

from __future__ import annotations

import itertools
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
import XenAPI
from twisted.internet import defer, reactor, task, threads

from tests.upstream.beside import Beside, Kept
from tests.upstream.overlaid import USERS
from tests.upstream.simulated.database import Database
from tests.upstream.simulated.records import Failure
from tests.upstream.simulated.server import SimulatedXapi
from tests.upstream.toolstacks import SimulatedToolstack, Toolstack
from tests.xenapi.two_servers import Server, one_server, until
from xapi_migrate.migration.journal import Mark
from xapi_migrate.testing.fake_sm import FakeLuns
from xapi_migrate.testing.memory_journals import Crash, MemoryJournal

MAC_SEED = "8f1d3b1c-0000-4000-8000-000000000001"
MARKS = ("xapi_migrate_arrival", "HideFromXenCenter")


@attrs.define
class Upstream:
    """With one SR in memory: `memory`. `user` is who receives there."""

    toolstack: Toolstack
    sr: str
    user: str

    @property
    def memory(self) -> dict[str, bytearray]:
        [sr] = self.toolstack.disks.values()
        disks: dict[str, bytearray] = sr.storage.disks
        return disks


@attrs.define
class Xapi(Upstream):
    """The simulated one."""

    toolstack: SimulatedToolstack

    @property
    def running(self) -> SimulatedXapi:
        return self.toolstack.xapi

    @property
    def database(self) -> Database:
        return self.running.database

    def cut(self) -> None:
        """It dies with all its connections; from any thread."""
        self.running.die()

    async def comes_back(self) -> None:
        await threads.deferToThread(self.running.start)

    def records(self, cls: str) -> dict[str, dict[str, Any]]:
        return self.database.records[cls]

    def create(self, cls: str, **fields: Any) -> str:
        return self.database.create(cls, **fields)

    def end_sessions(self) -> None:
        self.records("session").clear()

    @property
    def started(self) -> bool:
        """Whether any VM ever was."""
        return self.database.starts != []

    def refusal(self, method: str, vm: str, *params: Any) -> str:
        """The code with which it refuses this of a VM."""
        with pytest.raises(Failure) as refused:
            self.database.call(method, [next(iter(self.records("session"))), vm, *params], False)
        return str(refused.value.description[0])


@attrs.define
class Own(Upstream):
    """Another daemon of this kind."""

    toolstack: Server

    def cut(self) -> None:
        """All its connections end, and it lets nobody in."""
        self.toolstack.door.shut()

    async def comes_back(self) -> None:
        self.toolstack.door.open()

    def records(self, cls: str) -> dict[str, dict[str, Any]]:
        return {ref: dict(self.toolstack.records.get(cls, ref)) for ref in self.toolstack.records.refs(cls)}

    def create(self, cls: str, **fields: Any) -> str:
        return self.toolstack.records.create(cls, **fields)

    def end_sessions(self) -> None:
        for ref in self.toolstack.records.refs("session"):
            self.toolstack.records.destroy("session", ref)

    @property
    def started(self) -> bool:
        return self.toolstack.hypervisor.guests != {}

    def refusal(self, method: str, vm: str, *params: Any) -> str:
        refused: list[Any] = []
        defer.ensureDeferred(self.toolstack.call(method, vm, *params)).addErrback(refused.append)
        return str(refused[0].value.failure()[0])


@attrs.define
class World:
    """`upstream` is Xapi or Own; `vm` of the sender's: Halted, with two disks and a VIF."""

    upstream: Any
    sender: Server
    kept: Kept
    vm: str
    uuid: str

    until = staticmethod(until)

    def offer(self, here: Beside, user: str = "") -> defer.Deferred[list[str]]:
        """VM.receive into the upstream's SR; the session goes on."""
        who, sr = user or self.upstream.user, self.upstream.sr
        return threads.deferToThread(lambda: list(session_of(here, who).xenapi.VM.receive(sr, {})))

    async def migrate(self, uris: list[str]) -> str:
        """VM.migrate at the sender; its task."""
        vm = self.vm
        return str(await self.sender.client(lambda x: x.Async.VM.migrate(vm, uris, {}, {})))

    def task(self, ref: str) -> dict[str, Any]:
        return dict(self.sender.records.get("task", ref))

    async def over(self, ref: str) -> str:
        await self.until(lambda: self.task(ref)["status"] != "pending", "the migration does not end")
        return str(self.task(ref)["status"])

    def arrived(self) -> dict[str, Any]:
        """The VM at the upstream: it is there once, whole, and its owner's."""
        [vm] = self.upstream.records("VM").values()
        assert (vm["uuid"], vm["power_state"], vm["is_a_template"]) == (self.uuid, "Halted", False)
        assert vm["current_operations"] == {}
        vdis = [self.upstream.records("VBD")[vbd]["VDI"] for vbd in vm["VBDs"]]
        records = [self.upstream.records("VDI")[vdi] for vdi in vdis]
        assert set(self.upstream.records("VDI")) == set(vdis)
        assert [bytes(self.upstream.memory[one["uuid"]][:5]) for one in records] == [b"disk0", b"disk1"]
        assert not any(key in one["other_config"] for one in [vm, *records] for key in MARKS)
        return vm

    def locked_if_there(self, over: bool = False) -> None:
        """The upstream does not start it, unless it is `over`."""
        for vm in [] if over else self.upstream.records("VM").values():
            assert vm["is_a_template"] or "start" in vm["blocked_operations"]
        assert not self.upstream.started

    def at_one(self) -> None:
        """One side has it, and nothing of it is at the other."""
        if self.vm in self.sender.records.refs("VM"):
            self.stayed()
            self.nothing_there()
        else:
            self.arrived()

    def at(self, here: Beside, method: str, number: int, act: Callable[[], None], after: bool = False) -> None:
        """Before the call of this method with this number, by the host beside the upstream; or `after` it, before
        anybody has its answer. PUT is the import."""
        client = here.client
        call, put, seen = client.call, client.put, []

        async def watched(name: str, work: Callable[[], Awaitable[Any]]) -> Any:
            seen.extend([name] if name == method else [])
            struck = name == method and len(seen) == number
            if struck and not after:
                act()
            answer = await work()
            if struck and after:
                act()
            return answer

        def watched_call(name: str, *params: Any, **options: Any) -> Any:
            return watched(name, lambda: call(name, *params, **options))

        client.call = watched_call  # type: ignore[method-assign]
        client.put = lambda *params: watched("PUT", lambda: put(*params))  # type: ignore[method-assign, assign]

    def at_the_import(self, act: Callable[[], object]) -> threading.Event:
        """While the upstream has the metadata and not yet the VM; a rehearsal comes before. The event: it has come to
        that."""
        imports, reached = itertools.count(1), threading.Event()

        def come() -> None:
            if next(imports) == 2:
                reached.set()
                act()

        self.upstream.running.server.before_import = come
        return reached

    def nothing_there(self) -> None:
        """At the upstream."""
        assert self.upstream.records("VM") == {} and self.upstream.records("VBD") == {}
        assert self.upstream.records("VDI") == {} and self.upstream.memory == {}

    def stayed(self) -> None:
        """The sender has it, and can start it."""
        record = self.sender.records.get("VM", self.vm)
        assert (record["uuid"], record["power_state"]) == (self.uuid, "Halted")
        assert record["current_operations"] == {}

    async def settled(self, here: Beside) -> None:
        """The upstream is told what it missed, when no import can be under way any more."""
        while here.arrivals.known:
            for arrival in here.arrivals.known.values():
                arrival.begun = 0.0
            await here.arrivals.settle_all()
            await task.deferLater(reactor, 0.02)  # type: ignore[arg-type]

    async def nothing_here(self, here: Beside) -> None:
        """Beside the upstream, soon."""
        await self.until(lambda: not here.arrivals.known, "what was made at the upstream is still remembered")
        await self.until(lambda: not self.kept.journals.all, "there is still a journal")
        assert list((self.kept.folder / "arrivals").iterdir()) == []
        for cls in ("VM", "VBD", "VDI", "VIF"):
            assert here.records.refs(cls) == [], cls


def session_of(here: Beside, user: str = "admin") -> Any:
    session = XenAPI.Session(here.overlaid.url)
    session.xenapi.login_with_password(user, USERS[user][0], "2.20", "tests")
    return session


def crash_at(kept: Kept, here: Callable[[], Beside], mark: Mark, when: str) -> list[Mark]:
    """Let the daemon beside the upstream die once, `before` or `after` it writes `mark`; what is returned is not empty
    from then on."""
    crashed: list[Mark] = []

    def hook(journal: MemoryJournal, written: Mark) -> None:
        if written is mark and not crashed:
            crashed.append(written)
            here().die()
            raise Crash

    setattr(kept.journals, when, hook)
    return crashed


@asynccontextmanager
async def _upstream(tmp_path: Path, kind: str, luns: FakeLuns) -> AsyncIterator[Upstream]:
    if kind == "xapi":
        with SimulatedXapi(USERS) as running:
            simulated = SimulatedToolstack(running)
            yield Xapi(toolstack=simulated, sr=await simulated.new_sr(), user="admin")
    else:
        async with one_server(tmp_path / "toolstack", "toolstack", luns) as server:
            yield Own(toolstack=server, sr=await server.new_sr(), user="root")


@asynccontextmanager
async def world(tmp_path: Path, kind: str = "xapi") -> AsyncIterator[World]:
    """`kind` of the toolstack, one of the KINDS."""
    luns = FakeLuns()
    async with (
        _upstream(tmp_path, kind, luns) as upstream,
        one_server(tmp_path / "sender", "sender", luns) as sender,
    ):
        vm = await sender.new_vm(await sender.new_sr(), running=False, disks=2)
        record = sender.records.get("VM", vm)
        sender.records.update("VM", vm, other_config={"mac_seed": MAC_SEED}, blocked_operations={"clone": "mine"})
        [storage] = [one.storage for one in sender.disks.values()]
        for number, vbd in enumerate(record["VBDs"]):
            uuid = sender.records.get("VDI", sender.records.get("VBD", vbd)["VDI"])["uuid"]
            storage.disks[uuid][:5] = b"disk%d" % number
        yield World(upstream, sender, Kept(tmp_path / "beside", luns), vm, record["uuid"])
