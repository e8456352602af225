"""What a VM is busy with, and what may be done to it: current_operations and allowed_operations, kept true."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from xapi_migrate.errors import HandleInvalid, OtherOperationInProgress, VmBadPowerState
from xapi_migrate.migration.giving_up import GIVEN_UP
from xapi_migrate.migration.giving_up import given_up as has_been_given_up
from xapi_migrate.refusals import OperationBlocked
from xapi_migrate.store.interfaces import Change, Record
from xapi_migrate.store.records import Records

_ALLOWED = {
    "Halted": ["start", "migrate_send", "destroy"],
    "Running": [
        "clean_shutdown", "hard_shutdown", "clean_reboot", "hard_reboot", "pause", "suspend", "migrate_send",
        "pool_migrate",
    ],
    "Paused": ["unpause", "hard_shutdown", "hard_reboot", "migrate_send"],
    "Suspended": ["resume", "resume_on", "hard_shutdown", "migrate_send"],
}  # fmt: skip
_MOVES = ("migrate_send", "pool_migrate")


def allowed(record: Record) -> list[str]:
    """What may be done to a VM now."""
    if record["current_operations"] or record["is_control_domain"]:
        return []
    possible = ["destroy"] if record["is_a_template"] else _ALLOWED.get(record["power_state"], [])
    stays = _MOVES if record["platform"].get("nomigrate") in ("true", "1") else ()
    return [one for one in possible if one not in record["blocked_operations"] and one not in stays]


class Operations:
    """`freed` is called with a VM's ref when an operation has ended."""

    def __init__(self, records: Records) -> None:
        self._records = records
        self.freed: Callable[[str], None] = lambda vm: None
        for vm in records.refs("VM"):
            self._refresh(vm, records.get("VM", vm))
        self._end = records.subscribe(self._note)

    def stop(self) -> None:
        self._end()

    def _note(self, change: Change) -> None:
        if change.cls == "VM" and change.record is not None and not change.foreign:
            try:
                self._refresh(change.ref, self._records.get("VM", change.ref))
            except HandleInvalid:
                pass  # destroyed since

    def _refresh(self, vm: str, record: Record) -> None:
        now = allowed(record)
        if record["allowed_operations"] != now:
            self._records.update("VM", vm, allowed_operations=now)

    def check_free(self, vm: str) -> None:
        """OtherOperationInProgress if the VM is busy."""
        for task, operation in self._records.get("VM", vm)["current_operations"].items():
            raise OtherOperationInProgress("VM", vm, operation, task)

    def check_blocked(self, vm: str, operation: str) -> None:
        """OperationBlocked if its administrator does not want it."""
        blocked = self._records.get("VM", vm)["blocked_operations"]
        if operation in blocked:
            raise OperationBlocked(vm, blocked[operation])

    def require(self, vm: str, *states: str) -> Record:
        """The record, if its power state is one of these. VmBadPowerState."""
        record = self._records.get("VM", vm)
        if record["power_state"] not in states:
            raise VmBadPowerState(vm, ", ".join(states).lower(), record["power_state"].lower())
        return record

    def require_off(self, vm: str) -> Record:
        """The record, if the VM is Halted and not busy. VmBadPowerState, OtherOperationInProgress."""
        self.check_free(vm)
        return self.require(vm, "Halted")

    def begin_operation(self, vm: str, operation: str, task: str) -> None:
        """Mark the VM busy. OtherOperationInProgress, OperationBlocked, HandleInvalid."""
        self.check_blocked(vm, operation)
        self.check_free(vm)
        self._records.update("VM", vm, current_operations={task: operation})

    def retake_operation(self, vm: str, operation: str, task: str) -> None:
        """After a restart: the VM is busy with this and with nothing else, whatever its record says."""
        self._records.update("VM", vm, current_operations={task: operation})

    def end_operation(self, vm: str, task: str) -> None:
        """The VM is free again; no VM, no harm."""
        try:
            current = self._records.get("VM", vm)["current_operations"]
        except HandleInvalid:
            return
        if task in current:
            self._records.update("VM", vm, current_operations={t: o for t, o in current.items() if t != task})
            self.freed(vm)

    def is_as_left(self, vm: str, given_up: str, domain: str) -> bool:
        """Whether the VM is still what a piece of work (undertaking.py) has left: nobody has given it up since its
        record said `given_up`, and it has this domain or none. Else it has gone on without that work."""
        if not self._records.has("VM", vm) or has_been_given_up(self._records, vm, given_up):
            return False
        return self._records.get("VM", vm).get("_domain") in (None, "", domain)

    def given_up(self, vm: str) -> str:
        """What the VM's record says now, for `is_as_left`."""
        return str(self._records.get("VM", vm).get(GIVEN_UP, ""))

    @contextmanager
    def operation(self, vm: str, operation: str, task: str) -> Iterator[None]:
        """The VM is busy inside."""
        self.begin_operation(vm, operation, task)
        try:
            yield
        finally:
            self.end_operation(vm, task)
