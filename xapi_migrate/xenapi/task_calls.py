"""task.*: what clients do with tasks, their own (task.create) and those of calls."""

from __future__ import annotations

from typing import Any

from xapi_migrate.store.interfaces import IRecords
from xapi_migrate.xenapi.calls import CallContext
from xapi_migrate.xenapi.tasks import PENDING, Tasks


class TaskCalls:
    def __init__(self, records: IRecords, tasks: Tasks) -> None:
        self._records = records
        self._tasks = tasks

    def task_create(self, call: CallContext, label: str, description: str) -> str:
        """A task that the client itself works on, and ends by task.set_status."""
        ref = self._tasks.begin(label, description).ref
        self._records.update("task", ref, _by_client=True)
        return ref

    def task_destroy(self, call: CallContext, self_: str) -> None:
        self._tasks.discard(self_)

    def task_cancel(self, call: CallContext, task: str) -> None:
        if self._records.get("task", task).get("_by_client"):
            self._tasks.get(task).cancelled()
        else:
            self._tasks.get(task).cancel()

    def task_set_status(self, call: CallContext, self_: str, value: str) -> None:
        over = {} if value in (PENDING, "cancelling") else {"finished": self._tasks.now()}
        self._change(self_, status=value, **over)

    def task_set_progress(self, call: CallContext, self_: str, value: float) -> None:
        self._change(self_, progress=min(1.0, max(0.0, value)))

    def task_set_result(self, call: CallContext, self_: str, value: str) -> None:
        self._change(self_, result=value)

    def task_set_error_info(self, call: CallContext, self_: str, value: list[str]) -> None:
        self._change(self_, error_info=value)

    def _change(self, ref: str, **fields: Any) -> None:
        """Only a client's own task is changed so: how another one ends is not for clients to say. It is no error, for
        Xen Orchestra sets the status of tasks that it is about to destroy."""
        if self._records.get("task", ref).get("_by_client"):
            self._records.update("task", ref, **fields)

    def task_set_other_config(self, call: CallContext, self_: str, value: dict[str, str]) -> None:
        self._records.update("task", self_, other_config=value)

    def task_add_to_other_config(self, call: CallContext, self_: str, key: str, value: str) -> None:
        known = self._records.get("task", self_)["other_config"]
        self._records.update("task", self_, other_config={**known, key: value})

    def task_remove_from_other_config(self, call: CallContext, self_: str, key: str) -> None:
        known = self._records.get("task", self_)["other_config"]
        self._records.update("task", self_, other_config={k: v for k, v in known.items() if k != key})
