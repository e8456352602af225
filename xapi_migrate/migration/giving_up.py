"""A VM of a pool that was given up with its hosts (VM.power_state_reset). A host that comes back with a migration of it
from before has no say in it any more: the VM may run elsewhere."""

from __future__ import annotations

from ..store.interfaces import IRecords

GIVEN_UP = "_given_up"
"""Of a VM's record: another value each time that an administrator gives the VM up."""


def given_up(records: IRecords, vm: str, then: str) -> bool:
    """Whether the VM has been given up since its record said `then`."""
    return records.has("VM", vm) and records.get("VM", vm).get(GIVEN_UP, "") != then
