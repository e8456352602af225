"""Work for a client that is written down before it is done: undone if it fails or is cancelled before it is decided,
finished by the next daemon if this one ends after that.

BEGUN      what is to be done; until it is decided it can be undone as if it had never begun
COMMITTED  decided: from here on it is finished, crash or not
ABORTED    only of one that could not be finished after all and is as it was: it is being undone
ENDED      only of one of which something is left: the VM is its owner's again, and what nobody needs still has to go

What cannot be finished or undone now is tried again (`unsettled.py`), and until then the VM is busy with it. A VM that
has gone on without it all the same (`Operations.is_as_left`) is not touched.
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
from xapi_migrate.refusals import NotSettled
from xapi_migrate.together import started
from xapi_migrate.toolstack.operations import Operations
from xapi_migrate.toolstack.unsettled import Undertaking, Unsettled

T = TypeVar("T")


class Plan(attrs.AttrsInstance, Protocol):
    """What the journal says; an attrs class of JSON's own types. `task` is the client's, by its ref; `domain` the one
    that the VM has or is to have, and `given_up` what `Operations.given_up` said when it began."""

    @property
    def task(self) -> str: ...
    @property
    def vm(self) -> str: ...
    @property
    def domain(self) -> str: ...
    @property
    def given_up(self) -> str: ...


P = TypeVar("P", bound=Plan)
P_in = TypeVar("P_in", bound=Plan, contravariant=True)


class Kind(Protocol[P_in]):
    """One kind of work. All methods are repeatable: a daemon may have ended in the middle of any."""

    call: str
    """As clients know it: VM.suspend."""
    operation: str
    """As it is in the VM's current_operations."""
    undone: str
    """How things are, in a sentence, when it was undone because the daemon had ended."""

    async def finish(self, plan: P_in) -> Any:
        """After the decision, the VM; the value of the client's task. TurnedBack."""

    async def undo(self, plan: P_in) -> None:
        """Before the decision, or after TurnedBack: the VM is as it was."""

    async def clear(self, plan: P_in, decided: bool) -> None:
        """After either, when the VM may be its owner's again: what was made for this, or is replaced by it, goes if
        nobody uses it."""

    async def withdraw(self, plan: P_in, decided: bool) -> None:
        """In the place of both where the VM has gone on without this: what is not the VM's ends. `clear` comes next,
        but not of what was decided: then something may be left that is nowhere else."""


class TurnedBack(Exception):
    """It was decided, and yet things are as they were, because of `reason`: it is to be undone."""

    def __init__(self, reason: MigrateError) -> None:
        super().__init__(str(reason))
        self.reason = reason


class ITasks(Protocol):
    """The daemon's tasks."""

    def begin(self, label: str, description: str = "") -> Any: ...
    def resume(self, ref: str, label: str) -> Any: ...
    def succeed(self, task: Any, value: Any) -> None: ...
    def fail(self, task: Any, error: Any) -> None: ...


class Undertakings(Generic[P]):
    """Those of one host that share `journals`; `kinds` by the role that the journal has. `read` makes a plan of what
    the journal says; `unsettled` has those that wait."""

    log = Logger()

    def __init__(
        self, journals: IJournals, operations: Operations, read: Callable[..., P], kinds: Mapping[str, Kind[P]],
        tasks: ITasks, unsettled: Unsettled,
    ) -> None:  # fmt: skip
        self._journals = journals
        self._operations = operations
        self._read = read
        self._kinds = kinds
        self._tasks = tasks
        self._unsettled = unsettled

    async def do(self, role: str, plan: P, task: TaskHandle, work: Callable[[], Awaitable[None]]) -> Any:
        """Write the plan down, do `work`, decide, finish: what `finish` answers. The client may cancel `work`. It is
        undone before this fails; JournalFailed where it could not be decided, NotSettled where that, or to finish it,
        has to be tried again. What is cancelled because the daemon ends is left to the next one."""
        one = Undertaking(self._kinds[role], plan, self._journals.begin(role, str(uuid4())))
        await one.journal.record(Mark.BEGUN, **attrs.asdict(plan))
        await _attempt(task, work(), lambda: self._bring_to_rest(one))
        return await _uncancelled(self._commit(one))

    async def recover(self) -> None:
        """What an earlier daemon left: finished if it was decided, else undone, or taken up to be tried again. Before
        the domains are looked at. The task that the client watches says what came of it."""
        for journal in await self._journals.read():
            try:
                await self._take_up(journal)
            except Exception:
                self.log.failure("{role} {id} could not be taken up", role=journal.role, id=journal.migration)

    async def _take_up(self, journal: IJournal) -> None:
        plan = self._read(**data_of(journal, Mark.BEGUN))
        one = Undertaking(self._kinds[journal.role], plan, journal, True, marked(journal, Mark.ENDED))
        if not one.at_rest:
            one.task = self._tasks.resume(plan.task, one.kind.call)
            if self._applies(plan):
                self._operations.retake_operation(plan.vm, one.kind.operation, one.task.ref)
        try:
            await self._bring_to_rest(one)
        except NotSettled:
            return
        except MigrateError:
            pass  # it was turned back, and its task is told so
        self._let_go(one)
        self._operations.end_operation(plan.vm, plan.task)

    def _applies(self, plan: Plan) -> bool:
        return self._operations.is_as_left(plan.vm, plan.given_up, plan.domain)

    # -- the end of one

    async def _commit(self, one: Undertaking) -> Any:
        try:
            await one.journal.record(Mark.COMMITTED)
        except JournalFailed:
            one.lost_journal = True
            await self._bring_to_rest(one)
            raise
        return await self._bring_to_rest(one)

    async def _bring_to_rest(self, one: Undertaking) -> Any:
        """Finish or undo it; the value. NotSettled: it is tried again, and so is what is left when this succeeds."""
        try:
            await self._settle(one)
        except defer.CancelledError:
            raise
        except Exception as why:
            self._unsettled.keep(one, why, self._settle, self._let_go)
            if not one.at_rest:
                raise NotSettled(one.kind.call, one.plan.vm, self._unsettled.reason(why)) from why
        if one.turned is not None:
            raise one.turned
        return one.value

    async def _settle(self, one: Undertaking) -> None:
        """All that is left to do. Whatever it raises: `one.at_rest` then says whether the VM is done with."""
        if not one.at_rest:
            if one.lost_journal:
                # COMMITTED may be on disk all the same: only without the journal can it be undone.
                await one.journal.remove()
            one.strange = not self._applies(one.plan)
            if not one.strange:
                await self._settle_vm(one)
            else:
                self.log.warn("VM {vm} has gone on without its {call}", vm=one.plan.vm, call=one.kind.call)
                await one.kind.withdraw(one.plan, one.decided)
        if not (one.strange and one.decided):
            try:
                await one.kind.clear(one.plan, one.decided)
            except defer.CancelledError:
                raise
            except Exception:
                if not one.at_rest:
                    await one.journal.record(Mark.ENDED)
                    one.at_rest = True
                raise
        await one.journal.remove()
        one.at_rest = True

    async def _settle_vm(self, one: Undertaking) -> None:
        if one.decided:
            try:
                one.value = await one.kind.finish(one.plan)
            except TurnedBack as turned:
                one.turned = turned.reason
                await one.journal.record(Mark.ABORTED)
        if not one.decided:
            await one.kind.undo(one.plan)

    def _let_go(self, one: Undertaking) -> None:
        """The VM is free, and the task that stood for it is over."""
        task, one.task = one.task, None
        if task is None:
            return
        if one.turned is not None:
            self._tasks.fail(task, one.turned)
        elif one.taken_up and not one.decided:
            undone = InternalError(f"The daemon ended during {one.kind.call}: {one.kind.undone}")
            self._tasks.fail(task, undone)
        else:
            self._tasks.succeed(task, one.value)
        self._operations.end_operation(one.plan.vm, task.ref)


async def _attempt(task: TaskHandle, work: Awaitable[T], undo: Callable[[], Awaitable[object]]) -> T:
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
