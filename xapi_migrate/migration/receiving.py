"""One incoming migration as others see it: the engine, which offers it and takes it up after a restart, and its URIs,
which bring the sender's verbs. What they start is done by receiver_work.py."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256
from typing import Any

from zope.interface import implementer

from ..errors import HandleInvalid, MigrationAborted, OfferTaken, WrongMoment
from . import phase2_receiving
from .incoming import Incoming
from .interfaces import PROTOCOL_VERSION, Answer, DiskOffer, IIncomingMemory, IReceiving, Outcome
from .journal import Mark, data_of, marked
from .machine_state import state_of
from .metadata_import import import_vm
from .queue import Queue
from .receiver_work import ReceiverWork


@implementer(IReceiving)
class Receiving:
    """From offer to acknowledgement; `forget` is called when nobody will ask any more. Once its metadata has come it
    waits its turn in `queue`."""

    def __init__(self, migration: Incoming, queue: Queue, forget: Callable[[Receiving], None]) -> None:
        self.migration = migration
        self.takes_socket = migration.host.domains.capabilities().takes_socket
        self._work = ReceiverWork(migration, queue, lambda: forget(self))
        self._machine = self._work.machine
        self._decision = self._work.decision

    # -- from the engine ----------------------------------------------------------------------

    def offer(self) -> None:
        """The offer's life begins."""
        self._work.watches.offered()

    async def recover(self) -> None:
        """Finish, or go on with, what the journal of an earlier daemon says."""
        journal = self.migration.journal
        if marked(journal, Mark.COMMITTED) and marked(journal, Mark.ENDED):
            self._decision.is_durable(Answer(Outcome.COMMITTED))
            self._decision.tell()
            self._machine.recover_completed()
        elif marked(journal, Mark.COMMITTED):
            self._machine.recover_committed()
        elif marked(journal, Mark.ABORTED):
            self._decision.is_durable(Answer(Outcome.ABORTED, data_of(journal, Mark.ABORTED).get("reason", "")))
            self._decision.tell()
            self._machine.recover_aborted()
        elif gone := await phase2_receiving.what_is_gone(self.migration):
            restarted = "the receiver's daemon was restarted before it had decided"
            self._machine.recover_undecided(MigrationAborted(f"{restarted}: {gone}"))
        else:
            self._go_on()

    def _go_on(self) -> None:
        """In phase 2 or 3, as the daemon before left it."""
        migration = self.migration
        migration.story.note("all that the sender uses is alive: it goes on")
        migration.claim()
        self._work.turn.join()
        self._work.task.lead()
        self._work.watches.taken()
        self._work.all_prepared()
        if migration.plan is not None and migration.plan.has_memory:
            self._machine.recover_open()
        else:
            self._machine.recover_open_at_rest()
        self._decision.take_up()

    async def taken_up(self) -> None:
        """After `recover`: fires when it goes on, or the outcome is durable; or when it cannot be made so for now, and
        nothing will be answered before it is."""
        await self._decision.await_taken_up()

    def domain_ended(self, reason: Exception) -> None:
        """The domain ended by itself: before COMMIT that ends the migration, afterwards it is the VM's affair."""
        if self.state in ("ReceivingMemory", "AwaitingDone", "Activating"):
            self._machine.failed(reason)

    def let_go(self) -> None:
        """The daemon stops: the next one takes it up from the journal."""
        self._work.let_go()

    @property
    def state(self) -> str:
        return state_of(self._machine)

    # -- IReceiving: the verbs ----------------------------------------------------------------

    @property
    def revoked(self) -> bool:
        return self._decision.answer.outcome is not Outcome.OPEN

    def touch(self) -> None:
        self._work.watches.touch()

    def status(self) -> dict[str, Any]:
        story = self.migration.story
        return {
            "protocol": PROTOCOL_VERSION,
            "state": self.state,
            "step": story.last.id if story.last else "",
            "outcome": self._decision.answer.outcome.value,
            "behind": self._work.turn.behind,
            "disks": len(self.migration.plan.disks) if self.migration.plan else None,
        }

    async def put_metadata(self, document: bytes) -> int:
        digest = sha256(document).hexdigest()
        if not self.migration.document:
            if self.revoked:  # while the document was on its way
                raise MigrationAborted(self._decision.answer.reason)
            self.migration.vm = import_vm(document)
            self.migration.document = digest
            self._work.task.begin()
            self._work.watches.taken()
            self._machine.put_metadata()
        elif digest != self.migration.document:
            raise OfferTaken
        if await self._work.turn.still_waits(self._work.prepared.wait()):
            return self._work.turn.behind
        await self._work.prepared.wait()
        return 0

    async def get_disk(self, number: int, address: str) -> DiskOffer:
        await self._work.making.acquire()
        try:
            plan = self.migration.plan
            if self.state not in ("AwaitingMemory", "ReceivingMemory", "AwaitingDone") or plan is None:
                raise self._wrong_moment(f"GET disk/{number}")
            if number >= len(plan.disks):
                raise HandleInvalid("disk", str(number))
            offer = phase2_receiving.offer_disk(self.migration, plan.disks[number], address)
            return await self._work.answer(offer)
        finally:
            self._work.making.release()

    async def put_memory(self, memory: IIncomingMemory) -> None:
        if self.state != "AwaitingMemory":
            raise self._wrong_moment("PUT memory")
        self.migration.memory = memory
        self._machine.put_memory()
        await self._work.memory_in.wait()

    def _wrong_moment(self, request: str) -> WrongMoment:
        given_up = self._work.given_up
        return WrongMoment(request, f"being given up: {given_up}" if given_up else self.state)

    async def put_done(self) -> Answer:
        self._machine.done()
        return await self._decision.await_it()

    def control(self) -> Answer:
        return self._decision.answer

    async def delete(self, reason: str, acknowledge: Outcome | None = None) -> Answer:
        self._machine.abort(MigrationAborted(reason))
        answer = await self._decision.await_it()
        if acknowledge is answer.outcome:
            self._decision.acknowledged = True
            self._machine.acknowledged()
        return answer
