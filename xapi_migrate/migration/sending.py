"""The sender's work: joins the machine (sender.py) with the phases, the journal, the heartbeat and the task."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from twisted.internet import defer
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from ..domains.interfaces import GONE, DomainState
from ..errors import MigrateError, OfferTaken, OperationNotAllowed, TaskCancelled
from ..moment import Moment
from ..together import started, together
from . import phase1_connection, phase2_preparation, phase3_bulk_copy, phase4_memory, phase5_completion, telling
from .heartbeat import Pulse
from .interfaces import Answer, Outcome
from .journal import JournalFailed, Mark, note_end, note_undone
from .machine_state import Watched, state_of
from .one_work import OneWork, exception_of
from .outgoing import Outgoing, before_memory
from .patience import patiently
from .sender import ISenderWork, Sender, build_sender
from .undo import surely

log = Logger()
FAREWELL_SECONDS = 5.0


@implementer(ISenderWork)
class Sending:
    """One outgoing migration from begin to end; `ended` happens with the VM's ref or fails with what went wrong."""

    def __init__(self, migration: Outgoing) -> None:
        self.migration = migration
        self.ended: Moment[str] = Moment()
        self._machine: Sender = Watched(build_sender(self), migration.story.enters)
        self._work = OneWork(migration.host.clock, migration.id)
        self._watching: defer.Deferred[None] | None = None
        self._reason: Exception | None = None
        self._outcome = Outcome.ABORTED
        self._answer = Answer(Outcome.OPEN)
        self._forgetful = False
        self._left = False
        self._patience = 0.0
        self._told = True
        """The receiver knows how it ended; or has never been told that it began."""
        host = migration.host
        self._pulse = Pulse(
            host.clock, host.config.times, migration.peer, migration.story, self._moved, self._machine.failed
        )
        migration.story.listeners.append(lambda step, text: migration.task.set_other("step", f"{step.id} {text}"))

    # -- from outside -------------------------------------------------------------------------

    def begin(self) -> None:
        """Start a new migration; BEGUN must be in the journal."""
        self.migration.task.on_cancel(self.cancel)
        self._machine.begin()

    def recover(self) -> None:
        """Go on, or back, with what the journal of an earlier daemon says."""
        self._told = False
        marks = [entry.mark for entry in self.migration.journal.entries]
        self.migration.task.on_cancel(self.cancel)
        if Mark.COMMITTED in marks:
            self._outcome = Outcome.COMMITTED
            self._machine.recover_committed()
        elif Mark.DONE in marks and Mark.ABORTED not in marks:
            self._machine.recover_in_doubt()
        elif self.migration.is_given_up:
            self._machine.recover_undone(self._failure("the VM was given up while this host's daemon was down"))
        elif before_memory(self.migration.journal):
            # The receiver may be starting too.
            self._patience = self.migration.host.config.times.heartbeat_lost / 2
            self._machine.recover_open()
        else:
            self._machine.recover_undone(
                self._failure("this host's daemon was restarted in phase 4, before the VM was handed over")
            )

    def cancel(self) -> None:
        """The client's cancel; the task ends when everything is back in place (or the receiver's word was too late)."""
        # In a turn of its own: it may be told from within the work that it stops.
        self.migration.host.clock.callLater(0, self._cancel)

    def _cancel(self) -> None:
        if not self._left:
            self._machine.cancel(TaskCancelled(self.migration.task.ref))

    def settle(self, outcome: Outcome) -> None:
        """An administrator's word in place of the receiver's, whom nobody can ask any more. OperationNotAllowed unless
        this sender is in doubt. If the word is wrong, two copies run, or none: nothing here can know."""
        if not self.in_doubt:
            vm = self.migration.vm_uuid
            raise OperationNotAllowed(f"The migration of VM {vm} is not in doubt: it ends by itself.")
        self.migration.forced = outcome is Outcome.COMMITTED
        self.migration.story.note(f"settled by force: {outcome.value}")
        self._decide(_said(Answer(outcome, "an administrator said so")))

    @property
    def in_doubt(self) -> bool:
        """The receiver is being asked what it decided."""
        return state_of(self._machine) in ("InDoubt", "Withdrawing")

    def domain_ended(self, reason: Exception) -> None:
        """The domain ended by itself. From 4.4 on that is no matter where the receiver has all of its memory: then its
        copy there is the only one, and goes on. (While the stream is being sent, it tells by itself.)"""
        if state_of(self._machine) in ("Releasing", "WritingDone"):
            self.migration.story.note(f"it is not needed here any more: {reason}")
        else:
            self._machine.failed(reason)

    def let_go(self) -> None:
        """The daemon stops: nothing is undone, the next one takes it up from the journal."""
        self._left = True
        self._stop_all()
        self._work.leave()
        if self.migration.memory_put is not None:
            self.migration.memory_put.addErrback(lambda _: None)
            self.migration.memory_put.cancel()
        self.migration.peer.close()

    # -- the machine's work -------------------------------------------------------------------

    def connect(self) -> None:
        self._do(phase1_connection.connect(self.migration, self._patience), self._machine.connected)

    def prepare(self) -> None:
        self._told = False
        self._pulse.start()
        self._do(self._prepare(), self._machine.prepared)

    def copy_disks(self) -> None:
        then = self._machine.copied if self.migration.domain else self._machine.copied_at_rest
        self._do(phase3_bulk_copy.copy_disks(self.migration), then)

    def send_memory(self) -> None:
        watching = self._watching = started(phase3_bulk_copy.watch(self.migration))

        def failed(failure: Failure) -> None:
            if self._watching is watching:
                self._watching = None
                self._machine.failed(exception_of(failure))

        watching.addErrback(failed)
        self._do(self._send_memory(), self._machine.suspended)

    def release(self) -> None:
        self._stop_watching()
        self._do(self._release(), self._machine.released)

    def write_done(self) -> None:
        self._pulse.stop()
        same = [disk.number for disk in self.migration.disks if disk.status and disk.status.same_disk]

        def written() -> None:
            self.migration.story.note("DONE is in the journal")
            self._machine.done_written()

        self._do(self.migration.journal.record(Mark.DONE, same_disks=same), written)

    def say_done(self) -> None:
        self.migration.end_turn()
        self._decide(phase5_completion.say_done(self.migration))

    def ask(self) -> None:
        self._decide(phase5_completion.ask(self.migration))

    def withdraw(self, reason: Exception | None) -> None:
        self.migration.end_turn()
        self._reason = self._reason or reason
        self._decide(phase5_completion.withdraw(self.migration))

    def clean_up(self) -> None:
        self._outcome = Outcome.COMMITTED
        self.migration.task.on_cancel(None)
        self._downtime()
        self._surely("clean up", self._clean_up, self._machine.cleaned)

    def roll_back(self, reason: Exception) -> None:
        self._reason = reason
        self._stop_all()
        self.migration.task.on_cancel(None)
        self.migration.story.note(f"rolling back: {reason}")
        self._surely("roll back", self._roll_back, self._machine.rolled_back)

    def succeed(self) -> None:
        self._end()
        self.migration.story.note("the VM is at the receiver")
        self.ended.happen(self.migration.copy_ref or self.migration.vm)

    def fail(self) -> None:
        self._end()
        reason = self._reason or RuntimeError("no reason was given")
        self.migration.story.note("the VM is where it was")
        self.ended.fail(reason if isinstance(reason, TaskCancelled) else self._failure(str(reason), reason))

    # -- how it is done -----------------------------------------------------------------------

    def _do(self, work: Awaitable[None], then: Callable[[], None]) -> None:
        self._work.do(work, then, self._machine.failed)

    def _surely(self, what: str, work: Callable[[], Awaitable[None]], then: Callable[[], None]) -> None:
        """The machine does not leave these states before it is done."""

        async def done() -> bool:
            await work()
            return True

        self._do(surely(self.migration.host, self.migration.story, what, done), then)

    def _decide(self, work: Awaitable[Answer]) -> None:
        async def decide() -> None:
            answer = await work
            if answer.outcome in (Outcome.COMMITTED, Outcome.ABORTED):
                await self._remember(answer.outcome)
            self._answer = answer

        def decided() -> None:
            if self._answer.outcome is Outcome.COMMITTED:
                self._machine.committed()
            elif self._answer.outcome is Outcome.ABORTED:
                told = self._failure(f"asked after 5.1, the receiver gave it up: {self._answer.reason}")
                self._machine.aborted(self._reason or told)
            else:
                self._machine.undecided()

        self._do(decide(), decided)

    async def _remember(self, outcome: Outcome) -> None:
        """The receiver's word, written down. Where that fails the word still holds, but the receiver must not be told
        that it may forget it: a restarted daemon has to be able to ask again."""
        try:
            mark = Mark.COMMITTED if outcome is Outcome.COMMITTED else Mark.ABORTED
            await self.migration.journal.record(mark, **({"forced": True} if self.migration.forced else {}))
        except JournalFailed as failure:
            self._forgetful = True
            self.migration.story.note(str(failure))

    async def _send_memory(self) -> None:
        # A receiver whose daemon is just starting would not get the memory, which is sent once only.
        await patiently(self.migration, self.migration.peer.head)
        await self.migration.journal.record(Mark.MEMORY)
        await phase4_memory.send_memory(self.migration)

    async def _release(self) -> None:
        host, domain = self.migration.host, self.migration.domain
        try:
            await phase4_memory.release(self.migration)
        except MigrateError:
            state = await host.domains.state(domain) if domain else DomainState.RUNNING
            if state in GONE:  # why it ended says more than that its stream broke off
                raise telling.ended(host, domain, state, "be sent") from None
            raise

    async def _prepare(self) -> None:
        try:
            await phase2_preparation.prepare(self.migration)
        except MigrateError as refusal:
            # A DELETE would end the migration of the VM that the offer belongs to.
            self._told = refusal.failure()[0] == OfferTaken.code
            raise

    async def _clean_up(self) -> None:
        await phase5_completion.clean_up(self.migration)
        await note_end(self.migration.journal, self.migration.story)

    async def _roll_back(self) -> None:
        await note_undone(self.migration.journal, self.migration.story)
        await phase5_completion.roll_back(self.migration)
        # Before the VM is free for another migration, which a restarted daemon must not undo with this one.
        await note_end(self.migration.journal, self.migration.story)
        self.migration.host.toolstack.end_operation(self.migration.vm, self.migration.task.ref)
        if self._forgetful or self._told:
            return
        # The receiver is told before the client is, if it answers quickly; else later.
        told = started(phase5_completion.farewell_of(self.migration, Outcome.ABORTED).say())
        told.addTimeout(FAREWELL_SECONDS, self.migration.host.clock)
        try:
            self._told = await told
        except Exception as failure:
            self.migration.story.note(f"the receiver could not be told yet: {failure}")

    async def _moved(self) -> None:
        await together(*phase3_bulk_copy.replace_copiers(self.migration))

    def _downtime(self) -> None:
        """From the final suspend to the receiver's word that the VM runs there: the longest it can have been."""
        if self.migration.suspended_at is not None:
            seconds = self.migration.host.clock.seconds() - self.migration.suspended_at
            self.migration.task.set_other("downtime_ms", f"{seconds * 1000:.0f}")

    def _end(self) -> None:
        self.migration.end_turn()
        self._stop_all()
        self.migration.host.toolstack.end_operation(self.migration.vm, self.migration.task.ref)
        if not self._forgetful:
            farewell = phase5_completion.farewell_of(self.migration, self._outcome)
            self.migration.host.later(farewell.take_leave(self._told))

    def _stop_all(self) -> None:
        self._pulse.stop()
        self._stop_watching()
        self._work.stop()

    def _stop_watching(self) -> None:
        watching, self._watching = self._watching, None
        if watching is not None:
            watching.cancel()

    def _failure(self, text: str, cause: Exception | None = None) -> MigrateError:
        return telling.failure(self.migration, text, cause if isinstance(cause, MigrateError) else None)


async def _said(answer: Answer) -> Answer:
    return answer
