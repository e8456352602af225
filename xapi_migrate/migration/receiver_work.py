"""The receiver's work: joins the machine (receiver.py) with the phases, the journal, the watches and the task."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from twisted.internet import defer
from zope.interface import implementer

from ..errors import MigrationAborted
from ..moment import Moment
from . import phase2_receiving, phase4_receiving, phase5_receiving
from .decision import Decision
from .incoming import Incoming
from .interfaces import Answer, Outcome
from .journal import LONGEST_REASON, Mark, marked, note_end, note_undone
from .machine_state import Watched
from .one_work import OneWork
from .queue import Queue
from .receiver import IReceiverWork, Receiver, build_receiver
from .receiver_task import ReceiverTask
from .receiver_turn import ReceiverTurn
from .receiver_watches import ReceiverWatches
from .undo import surely

T = TypeVar("T")


@implementer(IReceiverWork)
class ReceiverWork:
    """What the states of one incoming migration are about. `machine` is the one that it works for; `ended` is called
    when nobody will ask any more."""

    def __init__(self, migration: Incoming, queue: Queue, ended: Callable[[], None]) -> None:
        self.migration = migration
        self._ended = ended
        self.machine: Receiver = Watched(build_receiver(self), migration.story.enters)
        self.task = ReceiverTask(migration, lambda reason: self.machine.abort(reason))
        self.turn = ReceiverTurn(migration, queue, self.task)
        self.watches = ReceiverWatches(migration, self.machine)
        self.decision = Decision()
        self.prepared: Moment[None] = Moment()
        self.memory_in: Moment[None] = Moment()
        self.making = defer.DeferredLock()
        """Held while VM, VDIs or a LUN are being made."""
        self._work = OneWork(migration.host.clock, migration.id)
        self._reason: Exception = MigrationAborted("no reason was given")
        self.given_up = ""
        """Why, from the moment on in which it is to be undone."""

    def let_go(self) -> None:
        """The daemon stops: the next one takes it up from the journal."""
        self.watches.stop()
        self._work.leave()

    async def answer(self, asked: Coroutine[Any, Any, T]) -> T:
        """See OneWork."""
        return await self._work.answer(asked)

    def all_prepared(self) -> None:
        """The sender may go on from 2.2: what `prepare` is for is there, made now or by an earlier daemon."""
        self.prepared.happen(None)
        self.watches.look_after_disks()

    # -- phases 2 to 5 ------------------------------------------------------------------------

    def prepare(self) -> None:
        async def prepare() -> None:
            await self.turn.come()
            await self.making.acquire()
            try:
                await phase2_receiving.prepare(self.migration)
            finally:
                self.making.release()

        def then() -> None:
            assert self.migration.plan is not None
            if self.migration.plan.has_memory:
                self.machine.prepared()
            else:
                self.machine.prepared_at_rest()
            self.all_prepared()

        self._do(prepare(), then)

    def receive_memory(self) -> None:
        async def receive() -> None:
            await self.migration.journal.record(Mark.MEMORY)
            await phase4_receiving.receive_memory(self.migration)

        def then() -> None:
            self.machine.memory_in()
            self.memory_in.happen(None)

        self._do(receive(), then)

    def activate(self) -> None:
        self.watches.leave_disks()

        async def activate() -> None:
            await self._made()
            await phase5_receiving.activate(self.migration)

        self._do(activate(), self.machine.activated)

    # -- COMMIT, and what follows from it -----------------------------------------------------

    def write_commit(self) -> None:
        self.task.no_cancel()

        def written() -> None:
            self.migration.story.note("COMMIT is in the journal")
            self.machine.commit_written()

        self._do(self.migration.journal.record(Mark.COMMITTED), written, self.machine.undecidable)

    def complete(self) -> None:
        self._let_others()
        self.decision.is_durable(Answer(Outcome.COMMITTED))
        self.watches.stop()

        async def complete() -> bool:
            await phase5_receiving.complete(self.migration)
            await phase5_receiving.close_proofs(self.migration)
            return True

        def then() -> None:
            # Nobody waits for it: done again in the short time before it is durable, completing finds nothing to do.
            self.migration.host.later(note_end(self.migration.journal, self.migration.story))
            self.machine.completed()
            self.decision.tell()
            self.task.end(None)
            self._end_if_acknowledged()

        # After COMMIT there is only forward.
        self._do(surely(self.migration.host, self.migration.story, "complete", complete), then)

    # -- ABORT, and what leads to it and follows from it --------------------------------------

    def shut(self, reason: Exception) -> None:
        if self.turn.is_waiting:
            self.turn.end()
        self._reason = reason
        self.given_up = str(reason)
        self.watches.stop()
        self.task.no_cancel()
        self.migration.story.note(f"aborting: {reason}")
        for moment in (self.prepared, self.memory_in):
            moment.fail(reason)

        async def shut() -> bool:
            await note_undone(self.migration.journal, self.migration.story)
            await self._made()
            done = False
            try:
                done = await phase5_receiving.shut(self.migration)
            finally:
                if not done:
                    self.decision.take_up()
            return done

        host = self.migration.host
        self._do(surely(host, self.migration.story, "shut everything", shut), self.machine.is_shut)

    def write_abort(self, reason: Exception) -> None:
        # A refused document has made no plan: there is nothing that a restart would have to know.
        planned = marked(self.migration.journal, Mark.BEGUN)
        why = str(reason)[:LONGEST_REASON]
        record = self.migration.journal.record(Mark.ABORTED, reason=why) if planned else _nothing()
        self._do(record, self.machine.abort_written, self.machine.undecidable)

    def clean_up(self) -> None:
        if not self.decision.is_told:
            self.decision.is_durable(Answer(Outcome.ABORTED, str(self._reason)))
            self.decision.tell()
        self.decision.take_up()

        def then() -> None:
            self._let_others()
            self.task.end(self._reason)
            self.machine.cleaned()
            self._end_if_acknowledged()

        self._do(phase5_receiving.clean_up(self.migration), then, lambda _: then())

    # -- neither, and the end -----------------------------------------------------------------

    def decide_nothing(self) -> None:
        self.turn.end()
        self.migration.story.note(
            "nothing can be decided before this daemon is restarted: its journal cannot be written"
        )
        self.decision.cannot_be_made()

    def end_unused(self, reason: Exception) -> None:
        self.decision.is_durable(Answer(Outcome.ABORTED, str(reason)))  # nothing is there that a restart would find
        self.decision.tell()
        self.end()

    def end(self) -> None:
        self.watches.stop()
        self._ended()

    # -- how it is done -----------------------------------------------------------------------

    def _do(
        self, work: Awaitable[None], then: Callable[[], None], otherwise: Callable[[Exception], None] | None = None
    ) -> None:
        self._work.do(work, then, otherwise or self.machine.failed)

    async def _made(self) -> None:
        """Nothing is being made any more for the sender; and nothing will be, in the present state."""
        await self.making.run(lambda: None)

    def _let_others(self) -> None:
        """The host's again, or gone: what it needs is no longer claimed, and the next one has its turn."""
        self.migration.host.claims.release(self.migration.id)
        self.turn.end()

    def _end_if_acknowledged(self) -> None:
        if self.decision.acknowledged:
            self.machine.acknowledged()


async def _nothing() -> None:
    return
