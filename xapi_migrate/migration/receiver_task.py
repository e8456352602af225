"""The receiver's own task: what a client of the receiving host sees of a migration, and cancels."""

from __future__ import annotations

from collections.abc import Callable

from ..errors import TaskCancelled
from .incoming import Incoming
from .waiting import tell_place


class ReceiverTask:
    """`migration.task` from the metadata (2.1), or a restart, to its end. `cancelled` is told of the client's
    cancel."""

    def __init__(self, migration: Incoming, cancelled: Callable[[Exception], None]) -> None:
        self._migration = migration
        self._cancelled = cancelled

    def begin(self) -> None:
        """The metadata has come."""
        vm = self._migration.vm
        assert vm is not None
        label = f"VM.receive: {vm.fields['name_label'] or vm.uuid}"
        self._migration.task = self._migration.host.tasks.begin(label, "receives a VM from another host")
        self.lead()

    def lead(self) -> None:
        """It tells the steps and can be cancelled."""
        task = self._migration.task
        if task is not None:
            task.on_cancel(lambda: self._cancelled(TaskCancelled(task.ref)))
            self._migration.story.listeners.append(lambda step, text: task.set_other("step", f"{step.id} {text}"))

    def tell_place(self, behind: int) -> None:
        """It waits behind so many; 0: no longer."""
        if self._migration.task is not None:
            tell_place(self._migration.task, "to be received", behind)

    def no_cancel(self) -> None:
        """It is too late for that."""
        if self._migration.task is not None:
            self._migration.task.on_cancel(None)

    def end(self, failure: Exception | None) -> None:
        """It ends with the VM's ref, or with what went wrong."""
        task, self._migration.task = self._migration.task, None
        if task is None:
            return
        if failure is None:
            assert self._migration.plan is not None
            self._migration.host.tasks.succeed(task, self._migration.plan.final_ref)
        else:
            self._migration.host.tasks.fail(task, failure)
