"""Phase 1, connection: steps 1.1 to 1.4 are the client's calls; 1.5 is the sender's search for a URI that works."""

from __future__ import annotations

from twisted.internet import task

from ..domains.interfaces import GONE
from ..errors import DomainError, MigrateError, MigrationAborted, NoUriAnswered
from ..steps import Step
from .outgoing import Outgoing


async def connect(migration: Outgoing, patience: float = 0) -> None:
    """Step 1.5. NoUriAnswered tells what each URI did, after `patience` seconds in which all of them are tried again;
    DomainError if there is nothing to be sent any more."""
    if migration.domain:
        state = await migration.host.domains.state(migration.domain)
        if state in GONE:
            raise DomainError(migration.domain, migration.host.name, "be sent", f"it is {state.value}")
    migration.story.step(Step.HEAD, f"HEAD on {len(migration.uris)} URIs in order")
    until = migration.host.clock.seconds() + patience
    while True:
        try:
            await migration.peer.connect()
            break
        except NoUriAnswered as silence:
            if migration.host.clock.seconds() >= until:
                raise
            migration.story.note(str(silence))
            await _unless_aborted(migration)
        await task.deferLater(migration.host.clock, migration.host.config.times.ask)
    migration.story.note(f"connected to {migration.peer.destination}")
    migration.task.set_other("destination", migration.peer.destination)
    migration.task.set_progress(0.02)


async def _unless_aborted(migration: Outgoing) -> None:
    """MigrationAborted, if that is the receiver's answer."""
    try:
        await migration.peer.head()
    except MigrationAborted:
        raise
    except MigrateError as silence:
        migration.story.note(str(silence))
