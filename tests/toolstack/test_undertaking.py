"""Undertakings on real journals: whatever fails, and whenever a daemon ends, each is finished or undone, and its task
says which."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import pytest
import pytest_twisted
from twisted.internet import defer, reactor
from twisted.internet.task import Clock, deferLater

from xapi_migrate.errors import CopyFailed, InternalError, SrNotAttached
from xapi_migrate.migration.journal import FileJournals
from xapi_migrate.refusals import NotSettled
from xapi_migrate.toolstack.undertaking import TurnedBack, Undertakings
from xapi_migrate.toolstack.unsettled import FIRST, LONGEST, NOTE, Unsettled


@attrs.frozen
class Plan:
    task: str
    vm: str
    thing: str
    domain: str = ""
    given_up: str = ""


class Building:
    """A Kind whose result is a set of things; `trouble` is raised by the next call of `finish`, `nuisance` by each
    `undo` and `clear` while it is set."""

    call, operation = "Thing.build", "build"
    undone = "there is no thing."

    def __init__(self) -> None:
        self.things: set[str] = set()
        self.done: list[str] = []
        self.trouble: BaseException | None = None
        self.nuisance: dict[str, BaseException] = {}
        self.calls: list[str] = []

    async def work(self, plan: Plan) -> None:
        self.things.add(plan.thing)

    def _called(self, name: str) -> None:
        self.calls.append(name)
        if name in self.nuisance:
            raise self.nuisance[name]

    async def finish(self, plan: Plan) -> str:
        self._called("finish")
        trouble, self.trouble = self.trouble, None
        if trouble is not None:
            raise trouble
        self.done.append(plan.thing)
        return plan.thing

    async def undo(self, plan: Plan) -> None:
        self._called("undo")
        self.things.discard(plan.thing)

    async def clear(self, plan: Plan, decided: bool) -> None:
        self._called("clear")

    async def withdraw(self, plan: Plan, decided: bool) -> None:
        self._called("withdraw")


class Tasks:
    """Of a daemon: what became of each, by ref; and with what the VM is busy."""

    def __init__(self) -> None:
        self.ended: dict[str, Any] = {}
        self.freed: list[tuple[str, str]] = []
        self.busy: dict[str, str] = {}
        self.told: list[str] = []
        self.applies = True

    def begin(self, label: str, description: str = "") -> Any:
        return Handle("another")

    def resume(self, ref: str, label: str) -> Any:
        return Handle(ref)

    def is_as_left(self, vm: str, given_up: str, domain: str) -> bool:
        return self.applies

    def retake_operation(self, vm: str, operation: str, task: str) -> None:
        self.busy = {task: operation}

    def tell(self, name: str, priority: int, cls: str, uuid: str, body: str) -> None:
        self.told.append(body)

    def has(self, cls: str, ref: str) -> bool:
        return False

    def succeed(self, task: Any, value: Any) -> None:
        self.ended[task.ref] = value

    def fail(self, task: Any, error: Any) -> None:
        self.ended[task.ref] = error

    def end_operation(self, vm: str, task: str) -> None:
        if self.busy.pop(task, ""):
            self.freed.append((vm, task))


@attrs.define
class Handle:
    ref: str
    cancel: Any = None
    other: dict[str, str] = attrs.Factory(dict)

    def set_other(self, key: str, value: str) -> None:
        self.other[key] = value

    def on_cancel(self, callback: Any) -> None:
        self.cancel = callback


PLAN = Plan("task", "vm", "house")


def daemon(folder: Path, building: Building, clock: Clock | None = None) -> tuple[Undertakings[Plan], Tasks]:
    tasks = Tasks()
    fake: Any = tasks
    unsettled = Unsettled(fake, fake, tasks, clock or Clock(), tasks.tell)
    tasks.unsettled = unsettled  # type: ignore[attr-defined]
    return Undertakings(FileJournals(folder), fake, Plan, {"build": building}, tasks, unsettled), tasks


async def recovered(folder: Path, building: Building) -> Any:
    """How the task ended that the next daemon took up; nothing is left for the one after it."""
    undertakings, tasks = daemon(folder, building)
    await undertakings.recover()
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
    with pytest.raises(NotSettled, match="the daemon ended"):
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
    with pytest.raises(NotSettled, match="the daemon ended"):
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


AWAY = SrNotAttached("OpaqueRef:sr")


async def until(check: Any) -> None:
    """Threads write the journal: they take a moment."""
    for _ in range(1000):
        if check():
            return
        await deferLater(reactor, 0.005)  # type: ignore[arg-type]
    raise AssertionError("it never came true")


@pytest.mark.parametrize("wakes", ["pause", "plug"])
@pytest_twisted.ensureDeferred
async def test_what_cannot_be_settled_is_tried_again_and_the_vm_is_busy(tmp_path: Path, wakes: str) -> None:
    building, clock = Building(), Clock()
    undertakings, _ = daemon(tmp_path, building)
    building.nuisance["finish"] = AWAY
    with pytest.raises(NotSettled, match="OpaqueRef:sr is not attached .* the VM is busy"):
        await undertakings.do("build", PLAN, Handle("task"), lambda: building.work(PLAN))
    undertakings, tasks = daemon(tmp_path, building, clock)
    await undertakings.recover()
    unsettled: Unsettled = tasks.unsettled  # type: ignore[attr-defined]
    [said] = unsettled.all()
    assert said == {"vm": "vm", "why": tasks.told[0], "busy": True}
    assert "force-settle" in said["why"] and len(tasks.told) == 1
    assert (tasks.busy, tasks.ended, tasks.freed) == ({"task": "build"}, {}, [])
    pauses = []
    for _ in range(8):
        [call] = clock.getDelayedCalls()
        pauses.append(call.getTime() - clock.seconds())
        tried = len(building.calls)
        clock.advance(pauses[-1])
        await until(lambda tried=tried: len(building.calls) > tried and clock.getDelayedCalls())
    assert pauses[0] == FIRST and pauses[-1] == LONGEST and pauses == sorted(pauses)
    assert len(tasks.told) == 1
    building.nuisance.clear()
    clock.advance(LONGEST) if wakes == "pause" else unsettled.wake()
    await until(lambda: tasks.ended)
    assert (tasks.ended, tasks.freed) == ({"task": "house"}, [("vm", "task")])
    assert unsettled.all() == [] and list(tmp_path.glob("*")) == [] and clock.getDelayedCalls() == []


@pytest_twisted.ensureDeferred
async def test_what_fails_and_cannot_be_undone_keeps_the_vm_busy_with_a_task_of_its_own(tmp_path: Path) -> None:
    building, clock = Building(), Clock()
    undertakings, tasks = daemon(tmp_path, building, clock)
    building.nuisance["undo"] = RuntimeError("no answer")

    async def work() -> None:
        raise CopyFailed("vdi", "it ended")

    with pytest.raises(NotSettled, match="no answer"):
        await undertakings.do("build", PLAN, Handle("task"), work)
    assert tasks.busy == {"another": "build"}
    building.nuisance.clear()
    tasks.unsettled.wake()  # type: ignore[attr-defined]
    await until(lambda: tasks.freed)
    assert (tasks.freed, tasks.ended) == ([("vm", "another")], {"another": None})
    assert list(tmp_path.glob("*")) == []


@pytest_twisted.ensureDeferred
async def test_what_is_only_left_over_does_not_keep_the_vm(tmp_path: Path) -> None:
    building, clock = Building(), Clock()
    undertakings, tasks = daemon(tmp_path, building, clock)
    building.nuisance["clear"] = AWAY
    assert await undertakings.do("build", PLAN, Handle("task"), lambda: building.work(PLAN)) == "house"
    [said] = tasks.unsettled.all()  # type: ignore[attr-defined]
    assert not said["busy"] and tasks.busy == {} and tasks.told == []
    tasks.unsettled.stop()  # type: ignore[attr-defined]
    undertakings, tasks = daemon(tmp_path, building, clock)
    await undertakings.recover()
    assert tasks.busy == {} and building.calls.count("finish") == 1
    building.nuisance.clear()
    tasks.unsettled.wake()  # type: ignore[attr-defined]
    await until(lambda: not list(tmp_path.glob("*")))
    assert building.calls.count("finish") == 1 and tasks.ended == {}


@pytest.mark.parametrize("decided", [True, False])
@pytest_twisted.ensureDeferred
async def test_a_vm_that_has_gone_on_without_it_is_not_touched(tmp_path: Path, decided: bool) -> None:
    building = Building()
    undertakings, _ = daemon(tmp_path, building)
    building.nuisance = {"finish": AWAY, "undo": AWAY}

    async def work() -> None:
        if not decided:
            raise CopyFailed("vdi", "it ended")

    with pytest.raises(NotSettled):
        await undertakings.do("build", PLAN, Handle("task"), work)
    building.nuisance, building.calls = {}, []
    undertakings, tasks = daemon(tmp_path, building)
    tasks.applies, building.nuisance = False, {"withdraw": AWAY}
    await undertakings.recover()
    [said] = tasks.unsettled.all()  # type: ignore[attr-defined]
    assert not said["busy"] and tasks.busy == {} and tasks.told == []
    building.nuisance, building.calls = {}, []
    tasks.unsettled.wake()  # type: ignore[attr-defined]
    await until(lambda: tasks.unsettled.all() == [])  # type: ignore[attr-defined]
    assert building.calls == (["withdraw"] if decided else ["withdraw", "clear"])
    assert tasks.busy == {} and list(tmp_path.glob("*")) == []


@pytest_twisted.ensureDeferred
async def test_an_administrator_gives_it_up(tmp_path: Path) -> None:
    building, clock = Building(), Clock()
    undertakings, tasks = daemon(tmp_path, building, clock)
    building.nuisance["finish"] = AWAY
    with pytest.raises(NotSettled):
        await undertakings.do("build", PLAN, Handle("task"), lambda: building.work(PLAN))
    unsettled: Unsettled = tasks.unsettled  # type: ignore[attr-defined]
    assert await unsettled.give_up("another VM") == []
    [said] = await unsettled.give_up("vm")
    assert "given up by an administrator" in said
    assert tasks.freed == [("vm", "another")] and str(tasks.ended["another"]) == said
    assert unsettled.all() == [] and clock.getDelayedCalls() == [] and list(tmp_path.glob("*")) == []
    assert building.things == {"house"}


@pytest_twisted.ensureDeferred
async def test_the_task_says_what_is_waited_for(tmp_path: Path) -> None:
    building = Building()
    building.nuisance["finish"] = AWAY
    undertakings, tasks = daemon(tmp_path, building)
    made: list[Handle] = []
    tasks.begin = lambda *_: made.append(Handle("another")) or made[0]  # type: ignore[method-assign,func-returns-value]
    with pytest.raises(NotSettled):
        await undertakings.do("build", PLAN, Handle("task"), lambda: building.work(PLAN))
    assert "is not attached" in made[0].other[NOTE]
