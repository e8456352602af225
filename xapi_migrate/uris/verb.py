"""What every verb of a migration URI is: one answer to one whole request."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import attrs

from ..migration.interfaces import IReceiving
from .reply import Reply


@attrs.frozen
class Call:
    """A request that the gate let through: `number` the disk's (0 elsewhere), `address` the local address on which it
    arrived, `body` all of its body, `acknowledge` the header of that name ("" where there is none)."""

    receiving: IReceiving
    number: int
    address: str
    body: bytes = attrs.field(default=b"", repr=False)
    acknowledge: str = ""


@attrs.frozen
class Verb:
    """`answer` makes the reply; MigrateErrors it raises become replies of their own status. `body_limit` in bytes."""

    answer: Callable[[Call], Awaitable[Reply]]
    body_limit: int = 0
