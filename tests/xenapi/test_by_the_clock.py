"""What sessions, tasks and log-ins do as time goes by."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.task import Clock

from xapi_migrate.errors import HandleInvalid, OperationNotAllowed, SessionInvalid, TaskCancelled
from xapi_migrate.store.records import Records
from xapi_migrate.xenapi.brake import LONGEST_SECONDS, LoginBrake
from xapi_migrate.xenapi.own_calls import data_model
from xapi_migrate.xenapi.sessions import Sessions
from xapi_migrate.xenapi.tasks import MOST, Tasks


class Idle(Clock):
    """Time stands still for the database, which is never opened."""

    def callLater(self, when: float, what: Any, *args: Any, **kwargs: Any) -> Any:
        return None


@pytest.fixture
def records() -> Records:
    return Records(data_model(), Idle())


def test_a_session_ends_when_nobody_uses_it(records: Records) -> None:
    clock = Clock()
    sessions = Sessions(records, [], clock)
    used, idle = sessions.open("a", "x"), sessions.open("b", "x")
    for _ in range(3):
        clock.advance(12 * 3600)
        assert sessions.check(used) == "a"
    with pytest.raises(SessionInvalid):
        sessions.check(idle)
    clock.advance(25 * 3600)
    sessions.sweep()
    assert records.refs("session") == []


def test_finished_tasks_go_after_a_while_and_when_they_are_many(records: Records) -> None:
    clock = Clock()
    tasks = Tasks(records, clock)
    running, done = tasks.begin("running"), tasks.begin("done")
    done.succeed()
    clock.advance(66 * 60)
    tasks.collect()
    assert records.refs("task") == [running.ref]
    for number in range(MOST + 5):
        tasks.begin(str(number)).succeed()
        clock.advance(1)
    tasks.collect()
    assert len(records.refs("task")) == MOST + 1
    assert records.get("task", records.refs("task")[1])["name_label"] == "5"


def test_progress_never_goes_back_and_the_end_is_final(records: Records) -> None:
    task = Tasks(records, Clock()).begin("t")
    for progress in (0.5, 0.2, 0.6):
        task.set_progress(progress)
    assert records.get("task", task.ref)["progress"] == 0.6
    task.succeed("OpaqueRef:x")
    task.fail(TaskCancelled(task.ref))
    task.set_progress(0.1)
    record = records.get("task", task.ref)
    assert (record["status"], record["progress"], record["result"]) == ("success", 1.0, "<value>OpaqueRef:x</value>")


def test_a_task_is_cancelled_exactly_while_it_can_be(records: Records) -> None:
    asked: list[str] = []
    task = Tasks(records, Clock()).begin("t")
    with pytest.raises(OperationNotAllowed):
        task.cancel()
    task.on_cancel(lambda: asked.append("cancel"))
    assert records.get("task", task.ref)["allowed_operations"] == ["cancel"]
    task.on_cancel(None)
    with pytest.raises(OperationNotAllowed):
        task.cancel()
    task.on_cancel(lambda: asked.append("cancel"))
    task.cancel()
    assert records.get("task", task.ref)["allowed_operations"] == [] and asked == ["cancel"]
    assert records.get("task", task.ref)["current_operations"] == {task.ref: "cancel"}
    with pytest.raises(OperationNotAllowed):
        task.cancel()


def test_a_daemon_that_ended_fails_what_it_was_at_and_says_what_had_not_begun(records: Records) -> None:
    earlier = Tasks(records, Clock())
    working, waiting = earlier.begin("t"), earlier.begin("t")
    waiting.set_other("waiting", "to be sent")
    Tasks(records, Clock()).fail_orphans()
    assert records.get("task", working.ref)["error_info"][0] == "INTERNAL_ERROR"
    told = records.get("task", waiting.ref)["error_info"]
    assert told[0] == "VM_MIGRATE_FAILED" and "Nothing had begun" in told[4]


def test_a_pending_task_that_is_destroyed_goes_when_it_ends(records: Records) -> None:
    tasks = Tasks(records, Clock())
    task = tasks.begin("t")
    tasks.discard(task.ref)
    assert records.get("task", task.ref)["status"] == "pending"
    task.succeed()
    with pytest.raises(HandleInvalid):
        records.get("task", task.ref)


def test_bad_log_ins_wait_longer_and_longer_but_not_those_of_others() -> None:
    clock = Clock()
    brake = LoginBrake(clock)
    pauses = []
    for _ in range(8):
        begun = clock.seconds()
        turn = brake.wait("bad")
        assert turn is not None
        while not turn.called:
            clock.advance(0.05)
        pauses.append(clock.seconds() - begun)
        brake.ended("bad", False)
        other = brake.wait("good")
        assert other is not None and other.called
        brake.ended("good", True)
    assert pauses[0] == 0 and pauses == sorted(pauses) and pauses[-1] <= LONGEST_SECONDS + 0.1


def test_a_flood_of_log_ins_is_bounded() -> None:
    brake = LoginBrake(Clock())
    turns = [brake.wait("flood") for _ in range(200)]
    assert sum(turn is not None and turn.called for turn in turns) <= 5 and turns[-1] is None
