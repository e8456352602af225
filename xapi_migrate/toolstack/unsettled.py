"""What can be neither finished nor undone now (an SR is not there, a process does not answer) is tried again, in
growing pauses and at once when an SR is plugged, until it is settled or an administrator gives it up."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import attrs
from twisted.internet import defer
from twisted.logger import Logger

from xapi_migrate.errors import InternalError, MigrateError, SrNotAttached
from xapi_migrate.migration.journal import IJournal, Mark, marked
from xapi_migrate.store.records import Records
from xapi_migrate.together import started
from xapi_migrate.toolstack.operations import Operations

FIRST, LONGEST = 2.0, 60.0
"""Seconds between two attempts."""
NOT_SETTLED = ("VM_NOT_SETTLED", 2)
NOTE = "unsettled"
"""The key in other_config of the task that says what is waited for."""


class Pause:
    """A wait that can be cut short."""

    def __init__(self, clock: Any) -> None:
        self._clock = clock
        self._over: defer.Deferred[None] | None = None
        self._woken = False

    def wake(self) -> None:
        """End the pause, or leave the next one out."""
        self._woken = True
        over, self._over = self._over, None
        if over is not None:
            over.callback(None)

    async def wait(self, seconds: float) -> None:
        if not self._woken:
            late = self._clock.callLater(seconds, self.wake)
            self._over = defer.Deferred()
            try:
                await self._over
            finally:
                self._over = None
                if late.active():
                    late.cancel()
        self._woken = False


@attrs.define(eq=False)
class Undertaking:
    """One, as far as it has come: see undertaking.py. `taken_up`: an earlier daemon began it; `at_rest`: its VM is
    done with."""

    kind: Any
    plan: Any
    journal: IJournal
    taken_up: bool = False
    at_rest: bool = False
    strange: bool = False
    """The VM has gone on without it: it is not to be held up."""
    lost_journal: bool = False
    """That it is decided could not be written: it is undone."""
    task: Any = None
    """That for which the VM is busy, where it is not the client's call that is under way."""
    value: Any = None
    turned: MigrateError | None = None
    why: str = ""

    @property
    def holds(self) -> bool:
        """Whether the VM has to wait for it."""
        return not (self.at_rest or self.strange)

    @property
    def decided(self) -> bool:
        return marked(self.journal, Mark.COMMITTED) and not marked(self.journal, Mark.ABORTED)


class Tasks(Protocol):
    def begin(self, label: str, description: str = "") -> Any: ...
    def fail(self, task: Any, error: Any) -> None: ...


class Unsettled:
    """Those of one host. `tell` makes a message to administrators."""

    log = Logger()

    def __init__(
        self, records: Records, operations: Operations, tasks: Tasks, clock: Any,
        tell: Callable[[str, int, str, str, str], object],
    ) -> None:  # fmt: skip
        self._records = records
        self._operations = operations
        self._tasks = tasks
        self._clock = clock
        self._tell = tell
        self._waiting: dict[Undertaking, tuple[Pause, defer.Deferred[None]]] = {}

    def keep(
        self, one: Undertaking, why: BaseException, settle: Callable[[Undertaking], Awaitable[None]],
        let_go: Callable[[Undertaking], None],
    ) -> None:  # fmt: skip
        """Try again to `settle` it, which has failed for this reason. Its VM is busy until it is at rest, then
        `let_go` is called."""
        self._note(one, why)
        if one.holds:
            self._hold(one)
        pause = Pause(self._clock)
        retrying = started(self._retry(one, pause, settle, let_go))
        self._waiting[one] = pause, retrying
        retrying.addErrback(lambda failure: failure.trap(defer.CancelledError) and None)
        retrying.addErrback(lambda failure: self.log.failure("{why}", failure, why=one.why))

    def wake(self) -> None:
        """Something has changed: try them all now."""
        for pause, _ in list(self._waiting.values()):
            pause.wake()

    def stop(self) -> None:
        """The daemon ends: the next one goes on with them."""
        for _, retrying in list(self._waiting.values()):
            retrying.cancel()
        self._waiting.clear()

    def all(self) -> list[dict[str, Any]]:
        """For people: of each the VM's uuid, what it waits for, and whether the VM is busy meanwhile."""
        return [{"vm": self._uuid(one), "why": one.why, "busy": one.holds} for one in self._waiting]

    async def give_up(self, uuid: str) -> list[str]:
        """Those of this VM are not tried any more: the VM has the disks and the memory that its record says now, and
        nothing is destroyed. A sentence for each."""
        given_up = []
        for one in [one for one in self._waiting if self._uuid(one) == uuid]:
            await one.journal.remove()
            if one not in self._waiting:
                continue  # it was settled in this moment
            _, retrying = self._waiting.pop(one)
            retrying.cancel()
            sentence = f"{one.kind.call} is given up by an administrator. {one.why}"
            self.log.warn("VM {vm}: {sentence}", vm=uuid, sentence=sentence)
            if one.task is not None:
                self._tasks.fail(one.task, InternalError(sentence))
                self._operations.end_operation(one.plan.vm, one.task.ref)
            given_up.append(sentence)
        return given_up

    def reason(self, why: BaseException) -> str:
        """A sentence that says what to do about it, where that is known."""
        if isinstance(why, SrNotAttached) and self._records.has("SR", why.sr):
            sr = self._records.get("SR", why.sr)
            return f"SR {sr['uuid']} ({sr['name_label']}) is not attached to this host: plug its PBD (PBD.plug)."
        return str(why) if isinstance(why, MigrateError) else f"{type(why).__name__}: {why}."

    async def _retry(
        self, one: Undertaking, pause: Pause, settle: Callable[[Undertaking], Awaitable[None]],
        let_go: Callable[[Undertaking], None],
    ) -> None:  # fmt: skip
        seconds = FIRST
        while True:
            await pause.wait(seconds)
            seconds = min(2 * seconds, LONGEST)
            try:
                await settle(one)
            except defer.CancelledError:
                raise
            except Exception as why:
                if one.at_rest:
                    let_go(one)
                self._note(one, why)
            else:
                break
        self._waiting.pop(one, None)
        self.log.info("{call} of VM {vm} is settled", call=one.kind.call, vm=self._uuid(one))
        let_go(one)

    def _note(self, one: Undertaking, why: BaseException) -> None:
        waits = "The VM is busy until then" if one.holds else "What is left of it goes later"
        one.why = (
            f"{one.kind.call} of VM {self._name(one)} is not settled: {self.reason(why)} It is tried again, at once"
            f" when an SR is plugged. {waits}, or until `xapi-migrate force-settle --outcome given-up`."
        )
        self.log.warn("{why}", why=one.why)
        if one.task is not None and hasattr(one.task, "set_other"):
            one.task.set_other(NOTE, one.why)

    def _hold(self, one: Undertaking) -> None:
        """For the administrator, who has not called for anything, and for whoever asks why the VM is busy."""
        if one.task is None:
            one.task = self._tasks.begin(f"{one.kind.call}: to be settled", one.why)
            self._operations.retake_operation(one.plan.vm, one.kind.operation, one.task.ref)
        one.task.set_other(NOTE, one.why)
        self._tell(*NOT_SETTLED, "VM", self._uuid(one), one.why)

    def _uuid(self, one: Undertaking) -> str:
        vm = one.plan.vm
        return str(self._records.get("VM", vm)["uuid"]) if self._records.has("VM", vm) else str(vm)

    def _name(self, one: Undertaking) -> str:
        vm = one.plan.vm
        name = self._records.get("VM", vm)["name_label"] if self._records.has("VM", vm) else ""
        return f"{name} ({self._uuid(one)})"
