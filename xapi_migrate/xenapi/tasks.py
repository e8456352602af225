"""Tasks: what a client polls, watches and cancels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

from twisted.internet import defer, task
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from xapi_migrate.errors import (
    HandleInvalid,
    InternalError,
    MigrateError,
    OperationNotAllowed,
    TaskCancelled,
    VmMigrateFailed,
)
from xapi_migrate.refusals import MigrationNotBegun
from xapi_migrate.store.interfaces import NULL, IRecords, Record
from xapi_migrate.xenapi import wire

KEPT = timedelta(minutes=65)
"""How long a finished task is kept for its client, who removes it by task.destroy."""
MOST = 200
"""Finished tasks beyond this number go before their time, the oldest first."""
COLLECT_SECONDS = 300.0

PENDING = "pending"
_DESTROY = "_destroy_when_over"

log = Logger()


class Task:
    """One task. Once it is over nothing changes it any more."""

    def __init__(self, records: IRecords, ref: str, now: Callable[[], datetime]) -> None:
        self.ref = ref
        self._records = records
        self._now = now
        self._cancel: Callable[[], object] | None = None

    @property
    def pending(self) -> bool:
        try:
            return bool(self._records.get("task", self.ref)["status"] == PENDING)
        except HandleInvalid:
            return False

    def set_progress(self, progress: float) -> None:
        """0..1; never goes back, and is 1 only at the end."""
        if self.pending and progress > self._records.get("task", self.ref)["progress"]:
            self._records.update("task", self.ref, progress=float(min(progress, 1.0)))

    def set_other(self, key: str, value: str) -> None:
        """A key of other_config; an empty value takes it away."""
        if self.pending:
            known = self._records.get("task", self.ref)["other_config"]
            changed = {**known, key: value} if value else {k: v for k, v in known.items() if k != key}
            if changed != known:
                self._records.update("task", self.ref, other_config=changed)

    def step(self, text: str) -> None:
        """What is being done now, for people (name_description)."""
        if self.pending:
            self._records.update("task", self.ref, name_description=text)

    def on_cancel(self, callback: Callable[[], object] | None) -> None:
        """While set, `cancel` is in allowed_operations and task.cancel calls it, once."""
        self._cancel = callback
        if self.pending:
            self._records.update("task", self.ref, allowed_operations=["cancel"] if callback else [])

    def cancel(self) -> None:
        """task.cancel. OperationNotAllowed when it cannot be cancelled now."""
        callback, self._cancel = self._cancel, None
        if callback is None or not self.pending:
            raise OperationNotAllowed(f"The task {self.ref} cannot be cancelled now.")
        self._records.update("task", self.ref, allowed_operations=[], current_operations={self.ref: "cancel"})
        callback()

    def succeed(self, value: Any = None) -> None:
        """It is over; the result as XML-RPC writes it."""
        self._end(status="success", result=wire.value(value))

    def fail(self, error: BaseException) -> None:
        """It is over; TaskCancelled and a cancelled Deferred mean `cancelled`, others are told as a call would."""
        if isinstance(error, TaskCancelled | defer.CancelledError):
            self.cancelled()
        else:
            self._end(status="failure", error_info=description(error))

    def cancelled(self) -> None:
        self._end(status="cancelled")

    def _end(self, **fields: Any) -> None:
        self._cancel = None
        if not self.pending:
            return
        over = {"progress": 1.0, "finished": self._now(), "allowed_operations": [], "current_operations": {}}
        self._records.update("task", self.ref, **over, **fields)
        if self._records.get("task", self.ref).get(_DESTROY):
            self._records.destroy("task", self.ref)


def description(error: BaseException) -> list[str]:
    """ErrorDescription of any exception: those of the catalogue say what they are, others only that they happened."""
    if isinstance(error, MigrateError):
        return [wire.fit(part) for part in error.failure()]
    return ["INTERNAL_ERROR", f"{type(error).__name__}; the log of this server says more"]


class TaskName(Protocol):
    """Whatever knows a task's ref."""

    @property
    def ref(self) -> str: ...


class Tasks:
    """All tasks of this host."""

    def __init__(self, records: IRecords, clock: IReactorTime, host: Callable[[], str] = lambda: NULL) -> None:
        self._records = records
        self._clock = clock
        self._host = host
        self._live: dict[str, Task] = {}
        self._collecting = task.LoopingCall(self.collect)
        self._collecting.clock = clock

    def start(self) -> None:
        """Begin to collect old tasks."""
        self._collecting.start(COLLECT_SECONDS, now=False)

    def stop(self) -> None:
        if self._collecting.running:
            self._collecting.stop()

    def now(self) -> datetime:
        return datetime.fromtimestamp(self._clock.seconds(), UTC)

    def begin(self, label: str, description: str = "", user: str = "") -> Task:
        """A new pending task, of what `user` asked for."""
        return self._begin(label, description, user)

    def _begin(self, label: str, description: str = "", user: str = "", **ref: str) -> Task:
        made = self._records.create(
            "task", name_label=label, name_description=description, status=PENDING, progress=0.0, created=self.now(),
            type="<none/>", resident_on=self._host(), _user=user, **ref,
        )  # fmt: skip
        return self._of(made)

    create = begin

    def get(self, ref: str) -> Task:
        """The task of this ref. HandleInvalid."""
        self._records.get("task", ref)
        return self._of(ref)

    def resume(self, ref: str, label: str) -> Task:
        """After a restart: the task that the client still watches if it is pending; under its own reference if its
        record was lost with the daemon; else a new one."""
        found = self._of(ref)
        if found.pending:
            return found
        known = ref in self._records.refs("task") or not ref.startswith("OpaqueRef:")
        return self.begin(label) if known else self._begin(label, ref=ref)

    def succeed(self, task: TaskName, value: Any = None) -> None:
        """As Task.succeed; of a task that is known by its ref only too."""
        self._of(task.ref).succeed(value)

    def fail(self, task: TaskName, error: BaseException) -> None:
        """As Task.fail."""
        self._of(task.ref).fail(error)

    def fail_orphans(self) -> None:
        """Once at start, after all work of an earlier daemon was taken up: the others have nobody who works on them."""
        for ref in self._records.find("task", status=PENDING):
            record = self._records.get("task", ref)
            if ref in self._live or record.get("_by_client") or not self._mine(record):
                continue
            self._of(ref).fail(self._orphan(record["other_config"]))

    def _orphan(self, known: Mapping[str, str]) -> MigrateError:
        """What is told of a task whose end got lost with the daemon, by its other_config."""
        if "waiting" in known:
            return MigrationNotBegun()
        if "step" not in known or "destination" not in known:
            return InternalError("The daemon ended while this task was under way.")
        step, _, text = known["step"].partition(" ")
        lost = f"this host's daemon ended before it could tell how this ended (last step {step}: {text})"
        host = self._host()
        name = self._records.get("host", host)["name_label"] if self._records.has("host", host) else host
        return VmMigrateFailed(known.get("applies_to", "").partition(",")[0], name, known["destination"], lost)

    def _mine(self, record: Record) -> bool:
        """Not another member's."""
        return record["resident_on"] in (self._host(), NULL)

    def discard(self, ref: str) -> None:
        """task.destroy: at once, or when it is over."""
        if self.get(ref).pending and not self._records.get("task", ref).get("_by_client"):
            self._records.update("task", ref, **{_DESTROY: True})
        else:
            self._records.destroy("task", ref)
            self._live.pop(ref, None)

    def collect(self) -> None:
        """Remove finished tasks that are old or too many."""
        finished = [
            (self._records.get("task", ref)["finished"], ref)
            for ref in self._records.refs("task")
            if self._records.get("task", ref)["status"] != PENDING and self._mine(self._records.get("task", ref))
        ]
        finished.sort()
        limit = self.now() - KEPT
        for number, (moment, ref) in enumerate(finished):
            if moment < limit or number < len(finished) - MOST:
                self._records.destroy("task", ref)
        known = set(self._records.refs("task"))
        self._live = {ref: one for ref, one in self._live.items() if ref in known}

    def _of(self, ref: str) -> Task:
        found = self._live.get(ref)
        if found is None:
            found = self._live[ref] = Task(self._records, ref, self.now)
        return found
