"""Undertakings on real journals: whatever fails, and whenever a daemon ends, each is finished or undone, and its task
says which."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import pytest
import pytest_twisted
from twisted.internet import defer, reactor

from xapi_migrate.errors import CopyFailed, InternalError
from xapi_migrate.migration.journal import FileJournals
from xapi_migrate.toolstack.undertaking import TurnedBack, Undertakings


@attrs.frozen
class Plan:
    task: str
    vm: str
    thing: str


class Building:
    """A Kind whose result is a set of things; `trouble` is raised by the next call of `finish`."""

    call = "Thing.build"
    undone = "there is no thing."

    def __init__(self) -> None:
        self.things: set[str] = set()
        self.done: list[str] = []
        self.trouble: BaseException | None = None

    async def work(self, plan: Plan) -> None:
        self.things.add(plan.thing)

    async def finish(self, plan: Plan) -> str:
        trouble, self.trouble = self.trouble, None
        if trouble is not None:
            raise trouble
        self.done.append(plan.thing)
        return plan.thing

    async def undo(self, plan: Plan) -> None:
        self.things.discard(plan.thing)


class Tasks:
    """Of a daemon: what became of each, by ref."""

    def __init__(self) -> None:
        self.ended: dict[str, Any] = {}
        self.freed: list[tuple[str, str]] = []

    def resume(self, ref: str, label: str) -> Any:
        return Handle(ref)

    def succeed(self, task: Any, value: Any) -> None:
        self.ended[task.ref] = value

    def fail(self, task: Any, error: Any) -> None:
        self.ended[task.ref] = error

    def end_operation(self, vm: str, task: str) -> None:
        self.freed.append((vm, task))


@attrs.define
class Handle:
    ref: str
    cancel: Any = None

    def on_cancel(self, callback: Any) -> None:
        self.cancel = callback


PLAN = Plan("task", "vm", "house")


def daemon(folder: Path, building: Building) -> tuple[Undertakings[Plan], Tasks]:
    tasks = Tasks()
    operations: Any = tasks
    return Undertakings(FileJournals(folder), operations, Plan, {"build": building}), tasks


async def recovered(folder: Path, building: Building) -> Any:
    """How the task ended that the next daemon took up; nothing is left for the one after it."""
    undertakings, tasks = daemon(folder, building)
    await undertakings.recover(tasks.resume, tasks)
    assert tasks.freed == [("vm", "task")]
    assert list(folder.glob("*")) == []
    return tasks.ended["task"]


@pytest_twisted.ensureDeferred
async def test_what_is_decided_and_cannot_be_finished_is_undone(tmp_path: Path) -> None:
    building = Building()
    building.trouble = TurnedBack(CopyFailed("vdi", "the new image ended"))
    undertakings, _ = daemon(tmp_path, building)
    with pytest.raises(CopyFailed, match="the new image ended"):
        await undertakings.do("build", PLAN, Handle("task"), lambda: building.work(PLAN))
    assert (building.things, building.done, list(tmp_path.glob("*"))) == (set(), [], [])


@pytest.mark.parametrize("at_restart", ["goes on", "turned back"])
@pytest_twisted.ensureDeferred
async def test_decided_it_is_finished_by_the_next_daemon(tmp_path: Path, at_restart: str) -> None:
    building = Building()
    building.trouble = RuntimeError("the daemon ended")
    undertakings, _ = daemon(tmp_path, building)
    with pytest.raises(RuntimeError):
        await undertakings.do("build", PLAN, Handle("task"), lambda: building.work(PLAN))
    assert building.things == {"house"}
    if at_restart == "goes on":
        assert await recovered(tmp_path, building) == "house"
        assert (building.things, building.done) == ({"house"}, ["house"])
    else:
        building.trouble = TurnedBack(CopyFailed("vdi", "the new image ended"))
        assert isinstance(await recovered(tmp_path, building), CopyFailed)
        assert (building.things, building.done) == (set(), [])


@pytest_twisted.ensureDeferred
async def test_turned_back_and_not_undone_it_is_never_finished(tmp_path: Path) -> None:
    building = Building()
    building.trouble = TurnedBack(CopyFailed("vdi", "the new image ended"))
    undertakings, _ = daemon(tmp_path, building)
    undo = building.undo

    async def fails(plan: Plan) -> None:
        raise RuntimeError("the daemon ended")

    building.undo = fails  # type: ignore[method-assign]
    with pytest.raises(RuntimeError):
        await undertakings.do("build", PLAN, Handle("task"), lambda: building.work(PLAN))
    building.undo = undo  # type: ignore[method-assign]
    failure = await recovered(tmp_path, building)
    assert isinstance(failure, InternalError)
    assert str(failure) == "The daemon ended during Thing.build: there is no thing."
    assert (building.things, building.done) == (set(), [])


@pytest.mark.parametrize("by", ["the client", "the daemon's end"])
@pytest_twisted.ensureDeferred
async def test_cancelled_by_the_client_it_is_undone_else_left_to_the_next_daemon(tmp_path: Path, by: str) -> None:
    building, task = Building(), Handle("task")
    undertakings, _ = daemon(tmp_path, building)
    began: defer.Deferred[None] = defer.Deferred()

    async def work() -> None:
        await building.work(PLAN)
        reactor.callLater(0, began.callback, None)  # type: ignore[attr-defined]
        await defer.Deferred()

    doing = defer.ensureDeferred(undertakings.do("build", PLAN, task, work))
    await began
    (task.cancel if by == "the client" else doing.cancel)()
    with pytest.raises(defer.CancelledError):
        await doing
    if by == "the client":
        assert (building.things, list(tmp_path.glob("*"))) == (set(), [])
    else:
        assert building.things == {"house"}
        assert isinstance(await recovered(tmp_path, building), InternalError)
        assert (building.things, building.done) == (set(), [])
