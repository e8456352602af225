"""The answers of the resource tree: text or JSON, never HTML, never cached."""

from __future__ import annotations

import attrs

from ..errors import MigrateError, MigrationAborted, OperationNotAllowed
from ..migration.interfaces import Answer, IReceiving, Outcome
from . import wire

JSON = "application/json"
TEXT = "text/plain; charset=utf-8"


@attrs.frozen
class Reply:
    """One HTTP response. The body may hold a CHAP password, so its repr is hidden."""

    status: int
    body: bytes = attrs.field(default=b"", repr=False)
    content_type: str = TEXT
    headers: tuple[tuple[str, str], ...] = ()


NOT_FOUND = Reply(404, b"Not found.\n")
"""The one answer to whoever does not hold a capability, whatever was asked for and how."""


def failure(error: MigrateError) -> Reply:
    """An error of the receiver's as its migration URIs tell it."""
    return Reply(error.status, wire.error_body(error), JSON)


def refused(status: int, reason: str, *headers: tuple[str, str]) -> Reply:
    """A request that is wrong in itself: `reason` is the sentence."""
    body = {"code": "OPERATION_NOT_ALLOWED", "params": [reason], "message": reason}
    return Reply(status, wire.encode(body), JSON, headers)


def not_allowed(methods: tuple[str, ...]) -> Reply:
    allowed = ", ".join(methods)
    return refused(405, f"Only {allowed} may be done here.", ("Allow", allowed))


def too_long(limit: int) -> Reply:
    return refused(413, f"The body may have {limit} bytes at most.")


def revoked(receiving: IReceiving) -> Reply:
    """The answer of all that an ended migration no longer does."""
    decided = receiving.control()
    if decided.outcome is Outcome.ABORTED:
        return failure(MigrationAborted(decided.reason))
    reason = "This migration has ended: only HEAD, control and DELETE are still answered."
    return attrs.evolve(failure(OperationNotAllowed(reason)), status=410)


def decision(answer: Answer) -> Reply:
    """What PUT control is told: 410 where the migration is aborted, for that is not what was wanted."""
    return Reply(410 if answer.outcome is Outcome.ABORTED else 200, wire.answer_body(answer), JSON)
