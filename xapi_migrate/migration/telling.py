"""What the client is told of a migration that failed: which VM, which hosts, after which step, and why."""

from __future__ import annotations

from ..domains.interfaces import DomainState
from ..errors import DomainError, MigrateError, MigrationAborted, RemoteError, VmMigrateFailed
from ..steps import Step
from .host import Host
from .journal import JournalFailed
from .outgoing import Outgoing

_ENDS_WITH_A_SENTENCE = ("CANNOT_CONTACT_HOST", "OPERATION_NOT_ALLOWED", "SR_BACKEND_FAILURE", "VM_MIGRATE_FAILED")
"""Errors whose last parameter is for people: it says there which host it was, and when. Programs know the others by
all their parameters."""
_NOBODYS = ("INTERNAL_ERROR", "MIRROR_FAILED")
"""What no client of VM.migrate knows: the migration failed."""


def failure(migration: Outgoing, text: str, cause: MigrateError | None = None) -> MigrateError:
    """The end of `migration` for its client: `cause` in words of the XenAPI, or `text` where the cause says no more."""
    last = migration.story.last
    where = f" (last step {last.id}: {last.text})" if isinstance(last, Step) else ""
    # the receiver's last word does not say which VM it was about
    if cause is None or isinstance(cause, MigrationAborted) or cause.failure()[0] in _NOBODYS:
        said = f" (said by {migration.peer.destination})" if isinstance(cause, RemoteError) else ""
        said = f" (on host {migration.host.name})" if isinstance(cause, JournalFailed) else said
        return VmMigrateFailed(migration.vm, migration.host.name, migration.peer.destination, text + said + where)
    *description, sentence = cause.failure()
    if not description or description[0] not in _ENDS_WITH_A_SENTENCE:
        return cause
    host = migration.peer.destination if isinstance(cause, RemoteError) else f"host {migration.host.name}"
    said = f" (said by {host}){where}"
    return RemoteError([*description, sentence + said], f"{cause}{said}")


def ended(host: Host, domain: str, state: DomainState, action: str) -> DomainError:
    """The end of a domain that ended by itself."""
    return DomainError(
        domain, host.name, action, f"it is {state.value}: {host.domains.why(domain) or 'nobody knows why'}"
    )
