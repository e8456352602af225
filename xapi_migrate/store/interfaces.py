"""The record store: XenAPI objects by class and reference, their relations, and a stream of changes.

Reads are immediate (the working set is in memory); changes are visible at once and reach the database
in order, behind the reactor's back; `flush` waits for that. Nothing that a migration's safety rests on
is kept here: that is the journal's.

A field whose name begins with an underscore is internal: kept, never shown to a client.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import attrs
from zope.interface import Attribute, Interface

NULL = "OpaqueRef:NULL"

Record = Mapping[str, Any]
"""Field name -> value: str, int, float, bool, list, dict, datetime (aware, UTC). Complete: every field of the class."""


@attrs.frozen
class Change:
    """One change: `operation` add, mod or del; `generation` grows by one with each change. `foreign`: another daemon of
    the same database made it."""

    generation: int
    cls: str
    operation: str
    ref: str
    record: Record | None
    foreign: bool = False


class IRecords(Interface):
    """The record store. Class names are the data model's ("VM", "SR", "task", ...)."""

    generation: int = Attribute("the number of the latest change")
    member_secret: str = Attribute("what members of one pool know each other by; empty: there are no others")

    def create(cls: str, /, ref: str = "", **fields: Any) -> str:
        """A new record; defaults from the data model, uuid and ref made here unless given. Its ref."""

    def get(cls: str, ref: str) -> Record:
        """The complete record, not to be changed by the caller. HandleInvalid."""

    def has(cls: str, ref: str) -> bool:
        """Whether there is such a record."""

    def find(cls: str, **fields: Any) -> list[str]:
        """The refs of all records of the class with these field values, in order of creation."""

    def by_uuid(cls: str, uuid: str) -> str:
        """The ref. UuidInvalid."""

    def refs(cls: str) -> list[str]:
        """All refs of the class, in order of creation."""

    def update(cls: str, ref: str, **fields: Any) -> None:
        """Set fields. HandleInvalid. Reverse references (VM.VBDs for VBD.VM) follow by themselves. No
        change, no event."""

    def rekey(cls: str, ref: str, new_ref: str, new_uuid: str) -> None:
        """Give a record another ref and uuid; every reference to it follows. (Step 5.2: the received VM takes the
        moved VM's identity.) HandleInvalid; InvalidValue if new_ref or new_uuid is taken by another record."""

    def destroy(cls: str, ref: str) -> None:
        """Remove the record; references to it become NULL or are taken out of sets. No record: nothing happens."""

    def subscribe(callback: Callable[[Change], None]) -> Callable[[], None]:
        """Call back at each change, synchronously; the returned function ends it."""

    def flush() -> Awaitable[None]:
        """Fires when all changes so far are in the database."""

    def refresh() -> Awaitable[bool]:
        """Fires when all that other daemons had committed before is known here; False if the database does not answer.
        Costs nothing where there are no others."""

    def close() -> Awaitable[None]:
        """Flush and let go of the database."""
