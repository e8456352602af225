"""Work for a client that is written down before it is done: undone if it fails or is cancelled before it is decided,
finished by the next daemon if this one ends after that.

BEGUN      what is to be done; until it is decided it can be undone as if it had never begun
COMMITTED  decided: from here on it is finished, crash or not
ABORTED    only of one that could not be finished after all and is as it was: it is being undone
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Generic, Protocol, TypeVar
from uuid import uuid4

import attrs
from twisted.internet import defer
from twisted.logger import Logger

from xapi_migrate.errors import InternalError, MigrateError
from xapi_migrate.migration.host import TaskHandle
from xapi_migrate.migration.journal import IJournal, IJournals, JournalFailed, Mark, data_of, marked
from xapi_migrate.together import started
from xapi_migrate.toolstack.operations import Operations

T = TypeVar("T")


class Plan(attrs.AttrsInstance, Protocol):
    """What the journal says; an attrs class of JSON's own types. `task` is the client's, by its ref."""

    @property
    def task(self) -> str: ...
    @property
    def vm(self) -> str: ...


P = TypeVar("P", bound=Plan)
P_in = TypeVar("P_in", bound=Plan, contravariant=True)


class Kind(Protocol[P_in]):
    """One kind of work. Both methods are repeatable: a daemon may have ended in the middle of either."""

    call: str
    """As clients know it: VM.suspend."""
    undone: str
    """How things are, in a sentence, when it was undone because the daemon had ended."""

    async def finish(self, plan: P_in) -> Any:
        """After the decision; the value of the client's task. TurnedBack."""

    async def undo(self, plan: P_in) -> None:
        """Before the decision, or after TurnedBack: nothing is left of it."""


class TurnedBack(Exception):
    """It was decided, and yet things are as they were, because of `reason`: it is to be undone."""

    def __init__(self, reason: MigrateError) -> None:
        super().__init__(str(reason))
        self.reason = reason


class Undertakings(Generic[P]):
    """Those of one host that share `journals`; `kinds` by the role that the journal has. `read` makes a plan of what
    the journal says."""

    log = Logger()

    def __init__(
        self, journals: IJournals, operations: Operations, read: Callable[..., P], kinds: Mapping[str, Kind[P]]
    ) -> None:
        self._journals = journals
        self._operations = operations
        self._read = read
        self._kinds = kinds

    async def do(self, role: str, plan: P, task: TaskHandle, work: Callable[[], Awaitable[None]]) -> Any:
        """Write the plan down, do `work`, decide, finish: what `finish` answers. The client may cancel `work`. It is
        undone before this fails; JournalFailed where it could not be decided. What is cancelled because the daemon ends
        is left to the next one."""
        kind, journal = self._kinds[role], self._journals.begin(role, str(uuid4()))
        await journal.record(Mark.BEGUN, **attrs.asdict(plan))
        await _attempt(task, work(), lambda: self._undo(kind, plan, journal))
        try:
            return await _uncancelled(self._commit(kind, plan, journal))
        except TurnedBack as turned:
            raise turned.reason from None

    async def recover(self, task_of: Callable[[str, str], TaskHandle], tasks: Any) -> None:
        """What an earlier daemon left: finished if it was decided, else undone. Before the domains are looked at.
        `task_of(ref, label)` gives the task that the client watches, `tasks` ends it."""
        for journal in await self._journals.read():
            kind, plan = self._kinds[journal.role], self._read(**data_of(journal, Mark.BEGUN))
            task = task_of(plan.task, kind.call)
            try:
                if marked(journal, Mark.COMMITTED) and not marked(journal, Mark.ABORTED):
                    tasks.succeed(task, await self._finish(kind, plan, journal))
                else:
                    await self._undo(kind, plan, journal)
                    tasks.fail(task, InternalError(f"The daemon ended during {kind.call}: {kind.undone}"))
            except TurnedBack as turned:
                tasks.fail(task, turned.reason)
            except Exception as why:
                self.log.failure("{call} of VM {vm} is not settled", call=kind.call, vm=plan.vm)
                tasks.fail(task, InternalError(f"{kind.call} of VM {plan.vm} could not be settled: {why}"))
            finally:
                self._operations.end_operation(plan.vm, plan.task)

    async def _commit(self, kind: Kind[P], plan: P, journal: IJournal) -> Any:
        try:
            await journal.record(Mark.COMMITTED)
        except JournalFailed:
            # It may be on disk all the same: only without the journal can it be undone.
            await journal.remove()
            await kind.undo(plan)
            raise
        return await self._finish(kind, plan, journal)

    async def _finish(self, kind: Kind[P], plan: P, journal: IJournal) -> Any:
        try:
            value = await kind.finish(plan)
        except TurnedBack:
            await journal.record(Mark.ABORTED)
            await self._undo(kind, plan, journal)
            raise
        await journal.remove()
        return value

    async def _undo(self, kind: Kind[P], plan: P, journal: IJournal) -> None:
        await kind.undo(plan)
        await journal.remove()


async def _attempt(task: TaskHandle, work: Awaitable[T], undo: Callable[[], Awaitable[None]]) -> T:
    """The value of `work`, which the client may cancel meanwhile. Its failure, or CancelledError, comes after `undo`.
    What is cancelled because the daemon ends is not undone."""
    waiting = started(work)
    asked: list[bool] = []

    def cancel() -> None:
        asked.append(True)
        waiting.cancel()

    task.on_cancel(cancel)
    try:
        value = await waiting
    except defer.CancelledError:
        if asked:
            await undo()
        raise
    except Exception:
        await undo()
        raise
    task.on_cancel(None)
    return value


async def _uncancelled(work: Awaitable[T]) -> T:
    """Whoever waits may be cancelled; the work goes on."""
    waiting: defer.Deferred[T] = defer.Deferred()
    started(work).addCallbacks(waiting.callback, waiting.errback)
    return await waiting
