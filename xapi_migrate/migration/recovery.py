"""What an earlier daemon left: its journals are read, and each migration goes on, goes back or is only acknowledged."""

from __future__ import annotations

from collections.abc import Callable

import attrs
from twisted.logger import Logger

from ..errors import VmMigrateFailed
from ..moment import Moment
from ..store.interfaces import NULL
from .host import Host, TaskHandle, TaskRef
from .incoming import Incoming, Plan
from .interfaces import Outcome
from .journal import IJournal, Mark, data_of, marked
from .outgoing import Outgoing, before_memory, from_journal
from .phase5_completion import Farewell
from .queue import Queue
from .receiving import Receiving
from .sending import Sending
from .story import Story

log = Logger()
TaskOf = Callable[[str, str], TaskHandle]
"""From a ref and a label: the task that the client watches, or a new one."""


@attrs.frozen
class Recovery:
    """`expect` and `follow` make a migration known to the engine."""

    host: Host
    sends: Queue
    expect: Callable[[Incoming], Receiving]
    follow: Callable[[Outgoing], Sending]
    ended: dict[tuple[str, str], Moment[str]] = attrs.Factory(dict)
    """How the migrations that an earlier daemon sent end, by VM and task: the VM's ref, or why it stays. Of one VM
    there may be several, because receivers have not yet acknowledged how earlier ones ended."""

    async def take_up_all(self, task_of: TaskOf) -> None:
        """Every receiver without a decision goes on or has aborted when this fires; senders go on meanwhile."""
        for journal in await self.host.journals.read():
            story = self.host.story(journal.role, journal.migration)
            story.note("taken up by a restarted daemon")
            try:
                if journal.role == "receiver":
                    await self._take_up_incoming(journal, story, task_of)
                elif marked(journal, Mark.ENDED):
                    self._take_leave(journal, story)
                else:
                    self._take_up_outgoing(journal, story, task_of)
            except Exception:
                log.failure("could not take up migration {id} ({role})", id=journal.migration, role=journal.role)

    async def _take_up_incoming(self, journal: IJournal, story: Story, task_of: TaskOf) -> None:
        begun = data_of(journal, Mark.BEGUN)
        incoming = Incoming(
            id=journal.migration,
            host=self.host,
            story=story,
            journal=journal,
            sr=NULL,
            digest=begun["digest"],
            options={},
            document=begun.get("document", "-"),
        )
        plan = incoming.plan = Plan.from_json(begun["plan"])
        if not marked(journal, Mark.ENDED):
            # Until it is completed or gone the hidden VM is nobody else's.
            incoming.task = task_of(begun.get("task", ""), f"VM.receive: {plan.name or plan.final_uuid}")
            if plan.vm in self.host.records.refs("VM"):
                self.host.toolstack.retake_operation(plan.vm, "import", incoming.task.ref)
        receiving = self.expect(incoming)
        await receiving.recover()
        await receiving.taken_up()

    def _take_leave(self, journal: IJournal, story: Story) -> None:
        """Of a migration that has ended here the receiver, and perhaps the client, has not heard yet."""
        begun = data_of(journal, Mark.BEGUN)
        outcome = Outcome.COMMITTED if marked(journal, Mark.COMMITTED) else Outcome.ABORTED
        peer = self.host.peers(begun["uris"])
        over = self.ended[begun["vm"], begun["task"]] = Moment()
        untold = TaskRef(begun["task"])  # it was not yet told, if it is pending
        if outcome is Outcome.COMMITTED:
            over.happen(begun["vm"])
            self.host.tasks.succeed(untold, begun["vm"])
        else:
            phase = 5 if marked(journal, Mark.DONE) else 4 if marked(journal, Mark.MEMORY) else 3
            undone = f"it was rolled back in phase {phase}, and this host's daemon ended before it could tell why"
            failed = VmMigrateFailed(begun["vm"], self.host.name, peer.destination, undone)
            over.fail(failed)
            self.host.tasks.fail(untold, failed)
        self.host.later(Farewell(self.host, story, journal, peer, outcome).take_leave(told=False))

    def _take_up_outgoing(self, journal: IJournal, story: Story, task_of: TaskOf) -> None:
        begun = data_of(journal, Mark.BEGUN)
        task = task_of(begun["task"], f"VM.migrate: {begun['vm_name']}")
        outgoing = from_journal(self.host, journal, task, story)
        if self._is_ours(outgoing.vm, task.ref):
            self.host.toolstack.retake_operation(outgoing.vm, "migrate_send", task.ref)
        if before_memory(journal):
            outgoing.turn = self.sends.join()  # it had it before, and does not wait for it again
        sending = self.follow(outgoing)
        self.ended[outgoing.vm, begun["task"]] = sending.ended
        sending.ended.wait().addCallbacks(
            lambda vm: self.host.tasks.succeed(task, vm), lambda failure: self.host.tasks.fail(task, failure.value)
        )
        sending.recover()

    def _is_ours(self, vm: str, task: str) -> bool:
        """Whether the VM is there, and not at another member that it has reached meanwhile."""
        if not self.host.records.has("VM", vm):
            return False
        record = self.host.records.get("VM", vm)
        return record["resident_on"] in (NULL, self.host.ref) or task in record["current_operations"]
