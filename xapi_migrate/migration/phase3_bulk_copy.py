"""Phase 3, bulk disk transfer: steps 3.1 to 3.7, all on the sender."""

from __future__ import annotations

from collections.abc import Awaitable

from twisted.internet import defer, task

from ..errors import CopyFailed, MigrateError, MigrationAborted
from ..sm.interfaces import CopyState
from ..steps import Step
from ..together import started, together
from .outgoing import Outgoing, OutgoingDisk

SHORTEST, PART = 0.02, 0.02
LAST_WORD = 1.0
"""Seconds for a receiver that gives up to say so after it has shut its LUNs, and for its answer to the question."""


async def copy_disks(migration: Outgoing) -> None:
    """Begin all copies and wait until each is ready (or finished, where there was nothing to copy). CopyFailed."""
    await together(*(_begin(migration, disk) for disk in migration.disks))
    migration.story.step(Step.GET_STATE, f"Task.get_state of {len(migration.disks)} copies")
    began = told = migration.host.clock.seconds()
    while not await _all_ready(migration):
        now = migration.host.clock.seconds()
        if now - told >= migration.host.config.times.poll:
            told = now
            _tell(migration)
        await task.deferLater(migration.host.clock, _pause(now - began, migration.host.config.times.poll))
    _tell(migration)
    migration.story.step(Step.ALL_READY)


def _pause(elapsed: float, longest: float) -> float:
    """Seconds until the copies are looked at again: a small part of what they have taken so far, so that a quick one is
    not waited for longer than it takes."""
    return min(longest, max(SHORTEST, PART * elapsed))


async def _begin(migration: Outgoing, disk: OutgoingDisk) -> None:
    assert disk.offer is not None
    story = migration.story
    story.step(Step.VDI_COPY, f"VDI.copy of disk {disk.number}, VDI {disk.vdi_uuid}")
    story.step(Step.SPAWN_COPIER, f"copier of disk {disk.number}")
    await disk.sr.vdi_copy(disk.vdi_uuid, disk.offer.url, disk.copy, disk.offer.proof)
    disk.status = await disk.sr.copy_state(disk.copy)
    story.step(Step.SAME_DISK, f"disk {disk.number}: {'the same disk' if disk.status.same_disk else 'another disk'}")
    if not disk.status.same_disk:
        story.step(Step.ATTACH_LUN, f"LUN of disk {disk.number}")
        story.step(Step.LOG_DIRTY, f"disk {disk.number} tracks its writes")


async def poll(migration: Outgoing) -> None:
    """Step 3.6 for every copy, and tell the task of it. CopyFailed, or MigrationAborted if that is why."""
    await _all_ready(migration)
    _tell(migration)


async def _all_ready(migration: Outgoing) -> bool:
    for disk in migration.disks:
        disk.status = await disk.sr.copy_state(disk.copy)
        if disk.status.state is CopyState.FAILED:
            raise await _why(migration, CopyFailed(disk.vdi_uuid, disk.status.error or "no reason was given"))
    return all(disk.status and disk.status.state is not CopyState.PENDING for disk in migration.disks)


def _tell(migration: Outgoing) -> None:
    migration.progress()
    migration.tell_measures()


async def _why(migration: Outgoing, failure: CopyFailed) -> MigrateError:
    """A receiver that gives a migration up shuts its LUNs first: the copy then fails for a reason that only the
    receiver knows. (While memory is sent the answer to PUT memory may come before this one.)"""
    await task.deferLater(migration.host.clock, LAST_WORD)
    asked = started(migration.peer.head())
    asked.addTimeout(LAST_WORD, migration.host.clock)
    try:
        await asked
    except MigrationAborted as word:
        return word
    except (MigrateError, defer.TimeoutError) as silence:
        migration.story.note(f"the receiver was asked why a copy failed: {silence}")
    return failure


async def watch(migration: Outgoing) -> None:
    """While memory is sent: ends with the CopyFailed of the first copy that fails, and only then."""
    while True:
        await task.deferLater(migration.host.clock, migration.host.config.times.poll)
        await poll(migration)


def replace_copiers(migration: Outgoing) -> list[Awaitable[None]]:
    """After fail-over to another URI: the copies go on to the same disks by the new way."""
    return [_replace(migration, disk) for disk in migration.disks if disk.offer is not None]


async def _replace(migration: Outgoing, disk: OutgoingDisk) -> None:
    disk.offer = await migration.peer.get_disk(disk.number)
    if disk.status is not None and disk.status.state in (CopyState.PENDING, CopyState.READY):
        await disk.sr.copy_replace(disk.copy, disk.offer.url)
