"""The receiver's work: joins the machine (receiver.py) with the phases, the journal, the heartbeat and its task; and
answers the verbs of the migration's URIs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from hashlib import sha256
from typing import Any

from twisted.internet import defer, task
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from ..errors import HandleInvalid, MigrationAborted, OfferTaken, TaskCancelled, WrongMoment
from ..moment import Moment
from ..together import started, unless
from . import phase2_receiving, phase4_receiving, phase5_receiving
from .heartbeat import Listening
from .host import TaskHandle
from .incoming import Incoming
from .interfaces import PROTOCOL_VERSION, Answer, DiskOffer, IIncomingMemory, IReceiving, Outcome
from .journal import LONGEST_REASON, Mark, data_of, marked, note_end, note_undone
from .machine_state import Watched, state_of
from .metadata_import import import_vm
from .one_work import OneWork, exception_of
from .queue import Queue, Turn
from .receiver import IReceiverWork, Receiver, build_receiver
from .undo import surely
from .waiting import tell_place

log = Logger()
HOLD = 4
"""A PUT metadata that waits its turn is answered after so many times `poll`."""


@implementer(IReceiverWork, IReceiving)
class Receiving:
    """One incoming migration from offer to acknowledgement; `forget` is called when nobody will ask any more.
    Once its metadata has come it waits its turn in `queue`."""

    def __init__(self, migration: Incoming, queue: Queue, forget: Callable[[Receiving], None]) -> None:
        self.migration = migration
        self._queue = queue
        self._turn: Turn | None = None
        self.takes_socket = migration.host.domains.capabilities().takes_socket
        self._forget = forget
        self._machine: Receiver = Watched(build_receiver(self), migration.story.enters)
        self._work = OneWork(migration.host.clock, migration.id)
        self._prepared: Moment[None] = Moment()
        self._memory_in: Moment[None] = Moment()
        self._decided: Moment[Answer] = Moment()
        self._taken_up: Moment[None] = Moment()
        self._answer = Answer(Outcome.OPEN)
        self._reason: Exception = MigrationAborted("no reason was given")
        self._acknowledged = False
        self._looking: defer.Deferred[None] | None = None
        self._making = defer.DeferredLock()
        """Held while VM, VDIs or a LUN are being made."""
        host = migration.host
        self._listening = Listening(
            host.clock, host.config.times.heartbeat_lost, migration.story, lambda reason: self._machine.abort(reason)
        )
        self._expiry: Any = None

    # -- from the engine ----------------------------------------------------------------------

    def offer(self) -> None:
        """The offer's life begins."""
        host = self.migration.host
        self._expiry = host.clock.callLater(host.config.times.offer, self._machine.expire)

    async def recover(self) -> None:
        """Finish, or go on with, what the journal of an earlier daemon says."""
        journal = self.migration.journal
        if marked(journal, Mark.COMMITTED) and marked(journal, Mark.ENDED):
            self._answer = Answer(Outcome.COMMITTED)
            self._decided.happen(self._answer)
            self._taken_up.happen(None)
            self._machine.recover_completed()
        elif marked(journal, Mark.COMMITTED):
            self._machine.recover_committed()
        elif marked(journal, Mark.ABORTED):
            self._answer = Answer(Outcome.ABORTED, data_of(journal, Mark.ABORTED).get("reason", ""))
            self._decided.happen(self._answer)
            self._machine.recover_aborted()
        elif await phase2_receiving.still_there(self.migration):
            self._go_on()
        else:
            self._machine.recover_undecided(
                MigrationAborted("the receiver's daemon was restarted before it had decided")
            )

    def _go_on(self) -> None:
        """In phase 2 or 3, as the daemon before left it."""
        migration = self.migration
        migration.story.note("all that the sender uses is alive: it goes on")
        migration.claim()
        self._turn = self._queue.join(self._told_place)
        if migration.task is not None:
            self._lead(migration.task)
        self._listening.start()
        self._look_after()
        self._prepared.happen(None)
        if migration.plan is not None and migration.plan.has_memory:
            self._machine.recover_open()
        else:
            self._machine.recover_open_at_rest()
        self._taken_up.happen(None)

    async def taken_up(self) -> None:
        """After `recover`: fires when it goes on, or the outcome is durable; or when it cannot be made so for now, and
        nothing will be answered before it is."""
        await self._taken_up.wait()

    def cancel(self) -> None:
        """The receiver's own task was cancelled."""
        task = self.migration.task
        self._machine.abort(TaskCancelled(task.ref if task else ""))

    def domain_ended(self, reason: Exception) -> None:
        """The domain ended by itself: before COMMIT that ends the migration, afterwards it is the VM's affair."""
        if self.state in ("ReceivingMemory", "AwaitingDone", "Activating"):
            self._machine.failed(reason)

    def let_go(self) -> None:
        """The daemon stops: the next one takes it up from the journal."""
        self._listening.stop()
        self._stop_looking()
        self._stop_expiry()
        self._work.stop()

    @property
    def state(self) -> str:
        return state_of(self._machine)

    # -- IReceiving: the verbs ----------------------------------------------------------------

    @property
    def revoked(self) -> bool:
        return self._answer.outcome is not Outcome.OPEN

    def touch(self) -> None:
        self._listening.touch()
        if self._expiry is not None and self._expiry.active():
            # A sender that waits its own turn keeps its offer by HEAD.
            self._expiry.reset(self.migration.host.config.times.offer)

    def status(self) -> dict[str, Any]:
        story = self.migration.story
        return {
            "protocol": PROTOCOL_VERSION,
            "state": self.state,
            "step": story.last.id if story.last else "",
            "outcome": self._answer.outcome.value,
            "behind": self._turn.behind if self._turn else 0,
            "disks": len(self.migration.plan.disks) if self.migration.plan else None,
        }

    async def put_metadata(self, document: bytes) -> int:
        digest = sha256(document).hexdigest()
        if not self.migration.document:
            self.migration.vm = import_vm(document)
            self.migration.document = digest
            self._stop_expiry()
            self._begin_task()
            self._listening.start()
            self._machine.put_metadata()
        elif digest != self.migration.document:
            raise OfferTaken
        if await self._waits():
            assert self._turn is not None
            return self._turn.behind
        await self._prepared.wait()
        return 0

    async def get_disk(self, number: int, address: str) -> DiskOffer:
        await self._making.acquire()
        try:
            plan = self.migration.plan
            if self.state not in ("AwaitingMemory", "ReceivingMemory", "AwaitingDone") or plan is None:
                raise WrongMoment(f"GET disk/{number}", self.state)
            if number >= len(plan.disks):
                raise HandleInvalid("disk", str(number))
            return await phase2_receiving.offer_disk(self.migration, plan.disks[number], address)
        finally:
            self._making.release()

    async def put_memory(self, memory: IIncomingMemory) -> None:
        if self.state != "AwaitingMemory":
            raise WrongMoment("PUT memory", self.state)
        self.migration.memory = memory
        self._machine.put_memory()
        await self._memory_in.wait()

    async def put_done(self) -> Answer:
        self._machine.done()
        return await self._decided.wait()

    def control(self) -> Answer:
        return self._answer

    async def delete(self, reason: str, acknowledge: Outcome | None = None) -> Answer:
        if self.state == "Offered":
            self._answer = Answer(Outcome.ABORTED, reason)
            self._machine.abort(MigrationAborted(reason))
            return self._answer
        self._machine.abort(MigrationAborted(reason))
        answer = await self._decided.wait()
        if acknowledge is answer.outcome:
            self._acknowledged = True
            self._machine.acknowledged()
        return answer

    # -- the machine's work -------------------------------------------------------------------

    def prepare(self) -> None:
        def then() -> None:
            assert self.migration.plan is not None
            if self.migration.plan.has_memory:
                self._machine.prepared()
            else:
                self._machine.prepared_at_rest()
            self._prepared.happen(None)
            self._look_after()

        self._do(self._prepare(), then)

    def receive_memory(self) -> None:
        def then() -> None:
            self._machine.memory_in()
            self._memory_in.happen(None)

        async def receive() -> None:
            await self.migration.journal.record(Mark.MEMORY)
            await phase4_receiving.receive_memory(self.migration)

        self._do(receive(), then)

    def activate(self) -> None:
        self._stop_looking()

        async def activate() -> None:
            await self._made()
            await phase5_receiving.activate(self.migration)

        self._do(activate(), self._machine.activated)

    def write_commit(self) -> None:
        self._stop_cancelling()

        def written() -> None:
            self.migration.story.note("COMMIT is in the journal")
            self._machine.commit_written()

        self._do(self.migration.journal.record(Mark.COMMITTED), written, self._machine.undecidable)

    async def _prepare(self) -> None:
        turn = self._turn = self._queue.join(self._told_place)
        if not turn.has_come:
            await turn.wait()
            self._told_place(0)
        await self._making.acquire()
        try:
            await phase2_receiving.prepare(self.migration)
        finally:
            self._making.release()

    def complete(self) -> None:
        self._let_others()
        self._answer = Answer(Outcome.COMMITTED)
        self._taken_up.happen(None)
        self._listening.stop()

        def then() -> None:
            # Nobody waits for it: done again in the short time before it is durable, completing finds nothing to do.
            self.migration.host.later(note_end(self.migration.journal, self.migration.story))
            self._machine.completed()
            self._decided.happen(self._answer)
            self._end_task(None)
            self._end_if_acknowledged()

        async def complete() -> bool:
            await phase5_receiving.complete(self.migration)
            await phase5_receiving.close_proofs(self.migration)
            return True

        # After COMMIT there is only forward.
        self._do(surely(self.migration.host, self.migration.story, "complete", complete), then)

    def shut(self, reason: Exception) -> None:
        if self._turn is not None and not self._turn.has_come:
            self._end_turn()
        self._reason = reason
        self._listening.stop()
        self._stop_looking()
        self._stop_cancelling()
        self.migration.story.note(f"aborting: {reason}")
        for moment in (self._prepared, self._memory_in):
            moment.fail(reason)

        async def shut() -> bool:
            await note_undone(self.migration.journal, self.migration.story)
            await self._made()
            done = False
            try:
                done = await phase5_receiving.shut(self.migration)
            finally:
                if not done:
                    self._taken_up.happen(None)
            return done

        host = self.migration.host
        self._do(surely(host, self.migration.story, "shut everything", shut), self._machine.is_shut)

    def write_abort(self, reason: Exception) -> None:
        # A refused document has made no plan: there is nothing that a restart would have to know.
        planned = marked(self.migration.journal, Mark.BEGUN)
        why = str(reason)[:LONGEST_REASON]
        record = self.migration.journal.record(Mark.ABORTED, reason=why) if planned else _nothing()
        self._do(record, self._machine.abort_written, self._machine.undecidable)

    def clean_up(self) -> None:
        if not self._decided.happened:
            self._answer = Answer(Outcome.ABORTED, str(self._reason))
            self._decided.happen(self._answer)
        self._taken_up.happen(None)

        def then() -> None:
            self._let_others()
            self._end_task(self._reason)
            self._machine.cleaned()
            self._end_if_acknowledged()

        self._do(phase5_receiving.clean_up(self.migration), then, lambda _: then())

    def decide_nothing(self) -> None:
        self._end_turn()
        self.migration.story.note(
            "nothing can be decided before this daemon is restarted: its journal cannot be written"
        )
        self._taken_up.happen(None)
        self._decided.fail(
            WrongMoment("the question what was decided", "undecided until the receiver's daemon is restarted")
        )

    def end(self) -> None:
        self._stop_expiry()
        self._listening.stop()
        self._forget(self)

    # -- how it is done -----------------------------------------------------------------------

    def _do(
        self, work: Awaitable[None], then: Callable[[], None], otherwise: Callable[[Exception], None] | None = None
    ) -> None:
        self._work.do(work, then, otherwise or self._machine.failed)

    async def _waits(self) -> bool:
        """Whether other migrations still come before this one after a moment."""
        if self._turn is None or self._turn.has_come:
            return False
        host, refused = self.migration.host, self._prepared.wait()
        try:
            turn = started(unless(self._turn.wait(), refused))
            await turn.addTimeout(HOLD * host.config.times.poll, host.clock)
        except defer.TimeoutError:
            return True
        finally:
            refused.addErrback(lambda _: None)
            refused.cancel()
        return False

    def _told_place(self, behind: int) -> None:
        if behind:
            self.migration.story.note(f"waits behind {behind} other migrations to this host")
        if self.migration.task is not None:
            tell_place(self.migration.task, "to be received", behind)

    def _let_others(self) -> None:
        """The host's again, or gone: what it needs is no longer claimed, and the next one has its turn."""
        self.migration.host.claims.release(self.migration.id)
        self._end_turn()

    def _end_turn(self) -> None:
        if self._turn is not None:
            self._turn.end()

    def _begin_task(self) -> None:
        vm = self.migration.vm
        assert vm is not None
        label = f"VM.receive: {vm.fields['name_label'] or vm.uuid}"
        task = self.migration.task = self.migration.host.tasks.begin(label, "receives a VM from another host")
        self._lead(task)

    def _lead(self, task: TaskHandle) -> None:
        task.on_cancel(self.cancel)
        self.migration.story.listeners.append(lambda step, text: task.set_other("step", f"{step.id} {text}"))

    async def _made(self) -> None:
        """Nothing is being made any more for the sender; and nothing will be, in the present state."""
        await self._making.run(lambda: None)

    def _look_after(self) -> None:
        """While the sender copies: what it copies into must live."""

        async def look() -> None:
            while True:
                await task.deferLater(self.migration.host.clock, self.migration.host.config.times.poll)
                await phase2_receiving.look_after(self.migration)

        def died(failure: Failure) -> None:
            if self._looking is looking and failure.check(defer.CancelledError) is None:
                self._looking = None
                self._machine.failed(exception_of(failure))

        looking = self._looking = started(look())
        looking.addErrback(died)

    def _stop_looking(self) -> None:
        looking, self._looking = self._looking, None
        if looking is not None:
            looking.cancel()

    def _stop_cancelling(self) -> None:
        if self.migration.task is not None:
            self.migration.task.on_cancel(None)

    def _end_task(self, failure: Exception | None) -> None:
        task, self.migration.task = self.migration.task, None
        if task is None:
            return
        if failure is None:
            assert self.migration.plan is not None
            self.migration.host.tasks.succeed(task, self.migration.plan.final_ref)
        else:
            self.migration.host.tasks.fail(task, failure)

    def _end_if_acknowledged(self) -> None:
        if self._acknowledged:
            self._machine.acknowledged()

    def _stop_expiry(self) -> None:
        if self._expiry is not None and self._expiry.active():
            self._expiry.cancel()


async def _nothing() -> None:
    return
