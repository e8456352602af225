"""Phase 5, completion, on the sender: steps 5.1, 5.3, 5.4; and what is done instead when it comes to nothing."""

from __future__ import annotations

import attrs
from twisted.internet import task

from ..domains.interfaces import GONE
from ..errors import MigrateError
from ..steps import Step
from ..store.interfaces import NULL
from ..together import together
from . import within_pool
from .disk_users import other_owner
from .host import Host
from .interfaces import Answer, IPeer, Outcome
from .journal import IJournal
from .outgoing import Outgoing, OutgoingDisk
from .story import Story
from .undo import attempt, surely

FAREWELLS = 500


async def say_done(migration: Outgoing) -> Answer:
    """Step 5.1; OPEN when no answer came that decides."""
    migration.story.step(Step.DONE)
    try:
        return await migration.peer.put_done()
    except MigrateError as silence:
        migration.story.note(f"`done` is unanswered: {silence}")
        return Answer(Outcome.OPEN, str(silence))


async def ask(migration: Outgoing) -> Answer:
    """In doubt: ask every URI what was decided, for as long as it takes. While the receiver has decided nothing `done`
    is said again."""
    while True:
        try:
            answer = await migration.peer.get_control()
            if answer.outcome is Outcome.OPEN:
                answer = await migration.peer.put_done()
            if answer.outcome in (Outcome.COMMITTED, Outcome.ABORTED):
                return answer
            migration.story.note(f"in doubt: the receiver's answer is {answer.outcome.value!r}")
        except MigrateError as silence:
            migration.story.note(f"in doubt: {silence}")
        migration.task.set_other("in_doubt", "the receiver has not yet said whether it runs the VM; it is being asked")
        await task.deferLater(migration.host.clock, migration.host.config.times.ask)


async def withdraw(migration: Outgoing) -> Answer:
    """Cancelled after `done`: DELETE until it is answered; the receiver's word decides."""
    while True:
        try:
            answer = await migration.peer.delete()
            if answer.outcome in (Outcome.COMMITTED, Outcome.ABORTED):
                return answer
        except MigrateError as silence:
            migration.story.note(f"withdrawing: {silence}")
        await task.deferLater(migration.host.clock, migration.host.config.times.ask)


async def clean_up(migration: Outgoing) -> None:
    """Steps 5.3 and 5.4, then the source's disks and records. Each part is repeatable, so that a restart in the middle
    goes on from the beginning; one that fails is told and does not stop the others."""
    host = migration.host
    if migration.domain:
        migration.story.step(Step.DESTROY_DOMAIN, f"domain {migration.domain}")
        await attempt(migration.story, "destroy the domain", host.domains.destroy(migration.domain))
    migration.story.step(Step.VDI_DETACH, f"VDI.detach of {len(migration.disks)} disks")
    await together(*(_leave_disk(migration, disk) for disk in migration.disks))
    if migration.is_given_up:
        migration.story.note(f"the VM {migration.vm_uuid} was given up meanwhile: its record stays as it is")
    elif migration.keep_source and not within_pool.adopted(migration):
        host.toolstack.set_domain(migration.vm, "")
        left = "Suspended" if migration.power_state == "Suspended" else "Halted"
        host.records.update("VM", migration.vm, power_state=left, resident_on=NULL)
        for disk in migration.disks:
            if disk.vbd:
                host.records.update("VBD", disk.vbd, currently_attached=False)
    elif await within_pool.handed_over(migration):
        within_pool.forget_sources(migration)
    else:
        _forget_records(migration)
    await host.records.flush()


async def _leave_disk(migration: Outgoing, disk: OutgoingDisk) -> None:
    same = disk.status is not None and disk.status.same_disk
    if not await attempt(migration.story, "find the SR of", _find_sr(disk)):
        return  # what is in it is found again by SR.scan
    if migration.domain:  # else it is not attached for this VM, and perhaps for another
        await attempt(migration.story, "detach", _detach(disk))
    await attempt(migration.story, "forget the copy of", disk.sr.copy_cancel(disk.copy))
    if _has_another_owner(migration, disk):
        migration.story.note(f"disk {disk.number} stays here too: it is another VM's as well")
    elif not same and not migration.keep_source:
        await attempt(migration.story, "destroy", disk.sr.vdi_destroy(disk.vdi_uuid))


def _has_another_owner(migration: Outgoing, disk: OutgoingDisk) -> bool:
    records, own = migration.host.records, () if migration.is_given_up else (migration.vm,)
    return records.has("VDI", disk.vdi) and bool(other_owner(records, disk.vdi, own))


async def _find_sr(disk: OutgoingDisk) -> None:
    assert disk.sr


def _forget_records(migration: Outgoing) -> None:
    records = migration.host.records
    for vbd in list(records.get("VM", migration.vm)["VBDs"]) if migration.vm in records.refs("VM") else []:
        records.destroy("VBD", vbd)
    for vif in list(records.get("VM", migration.vm)["VIFs"]) if migration.vm in records.refs("VM") else []:
        records.destroy("VIF", vif)
    for disk in migration.disks:
        if (disk.status is None or not disk.status.same_disk) and not _has_another_owner(migration, disk):
            records.destroy("VDI", disk.vdi)
    records.destroy("VM", migration.vm)


async def roll_back(migration: Outgoing) -> None:
    """The VM as it was: stream and copies ended, disks active, domain running. Repeatable."""
    if migration.memory_put is not None:
        migration.memory_put.addErrback(lambda _: None)
        migration.memory_put.cancel()
    if migration.suspension is not None:
        await attempt(migration.story, "end the stream", migration.suspension.cancel())
    await together(*(attempt(migration.story, "end the copy of", _end_copy(disk)) for disk in migration.disks))
    if migration.domain and migration.is_given_up:
        migration.story.note(f"the VM {migration.vm_uuid} was given up meanwhile, and may run elsewhere")
        await attempt(migration.story, "destroy the domain", migration.host.domains.destroy(migration.domain))
        await together(*(attempt(migration.story, "detach", _detach(disk)) for disk in migration.disks))
    elif migration.domain:
        until = migration.host.clock.seconds() + migration.host.config.times.heartbeat_lost
        await surely(migration.host, migration.story, "let the domain run again", lambda: _go_on(migration, until))


async def _detach(disk: OutgoingDisk) -> None:
    await disk.sr.vdi_detach(disk.vdi_uuid)


async def _end_copy(disk: OutgoingDisk) -> None:
    await disk.sr.copy_cancel(disk.copy)


async def _go_on(migration: Outgoing, until: float) -> bool:
    """The disks come first, all of them: behind a shut gate the guest would find that its disk has failed. Where they
    cannot be had the domain is left as it is, for its owner to decide."""
    host, story = migration.host, migration.story
    if await host.domains.state(migration.domain) in GONE:
        story.note(f"domain {migration.domain} has ended")
        return True
    try:
        await together(*(_activate(disk) for disk in migration.disks))
        await host.domains.resume(migration.domain, migration.power_state == "Paused")
    except MigrateError as failure:
        if host.clock.seconds() < until:
            raise
        story.note(f"domain {migration.domain} stays suspended: {failure}")
        migration.task.set_other("suspended", str(failure))
        return True
    story.note(f"domain {migration.domain} is {migration.power_state} here")
    return True


async def _activate(disk: OutgoingDisk) -> None:
    await disk.sr.vdi_activate(disk.vdi_uuid)


@attrs.frozen
class Farewell:
    """What is left of a migration that has ended here: that the receiver is told, so that it can forget."""

    host: Host
    story: Story
    journal: IJournal
    peer: IPeer
    outcome: Outcome

    async def take_leave(self, told: bool) -> None:
        """Tell the receiver until it has heard (`told`: it has); then the journal goes."""
        try:
            for _ in range(0 if told else FAREWELLS):
                if await self.say():
                    break
                await task.deferLater(self.host.clock, self.host.config.times.ask)
            await self.journal.remove()
        finally:
            self.peer.close()

    async def say(self) -> bool:
        """One DELETE that also acknowledges the outcome; whether the receiver has heard it."""
        try:
            return (await self.peer.delete(acknowledge=self.outcome)).outcome is not Outcome.OPEN
        except MigrateError as silence:
            self.story.note(f"the receiver does not yet know that the migration is {self.outcome.value}: {silence}")
            return False


def farewell_of(migration: Outgoing, outcome: Outcome) -> Farewell:
    """The end of this migration."""
    return Farewell(migration.host, migration.story, migration.journal, migration.peer, outcome)
