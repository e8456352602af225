"""Which member a call belongs to: where its VM runs, who sees its storage, whose host, PBD or task it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from xapi_migrate.refusals import NoHostsAvailable
from xapi_migrate.store.interfaces import NULL, Record
from xapi_migrate.store.records import Records
from xapi_migrate.toolstack.placement import Placement
from xapi_migrate.xenapi.datamodel import Message

ANYWHERE = {
    "VM": {"create", "destroy", "receive", "assert_can_boot_here", "update_allowed_operations", "power_state_reset"},
    "VDI": set[str](),
    "SR": set[str](),
    "PBD": {"create"},
    "host": set[str](),
    "task": {"create"},
}
"""Of the calls that are more than reading and setting a field: those that are about records alone."""
ASKED = {"get_servertime", "get_server_localtime", "get_data_sources", "get_vms_which_prevent_evacuation"}
"""What a host has to be asked for."""
ON_HOST = {"start_on", "resume_on"}


class Routing:
    """`host` is this host's ref."""

    def __init__(self, records: Records, host: str, placement: Placement) -> None:
        self._records = records
        self._host = host
        self._placement = placement

    def member(self, message: Message, values: Sequence[Any]) -> str:
        """The member's ref; "" if it is this one, or any."""
        if not values or message.cls not in ANYWHERE or message.name in ANYWHERE[message.cls]:
            return ""
        if message.name.startswith("get_") and message.name not in ASKED or self._sets(message):
            return ""
        if message.kind == "object" and message.name not in ("create", "destroy"):
            return ""
        host = self._of(message.cls, message.name, values)
        return "" if host in (self._host, NULL) else host

    def _sets(self, message: Message) -> bool:
        """Fields are set where that is asked for; a task's by its own host, which writes them all the time."""
        return message.cls != "task" and message.name.startswith(("set_", "add_", "remove_"))

    def _of(self, cls: str, name: str, values: Sequence[Any]) -> str:
        first = values[0]
        if cls == "VM":
            return str(values[1]) if name in ON_HOST else self._of_vm(name, first)
        if cls == "VDI":
            return self._of_vdi(name, first)
        if cls == "SR":
            return str(first) if name in ("create", "probe") else self._of_sr(first)
        if cls == "PBD":
            return str(self._record("PBD", first)["host"])
        return str(self._record("task", first)["resident_on"]) if cls == "task" else str(first)

    def _record(self, cls: str, ref: str) -> Record:
        return self._records.get(cls, ref)

    def _of_vm(self, name: str, vm: str) -> str:
        record = self._record("VM", vm)
        if record["resident_on"] != NULL:
            return str(record["resident_on"])
        domain_host = record.get("_domain_host") or ""
        if domain_host and self._records.has("host", domain_host):
            return str(domain_host)
        if name in ("start", "resume"):
            try:
                return self._placement.choose(vm, first=self._host)
            except NoHostsAvailable:
                return self._host  # which says why
        disks = self._placement.srs_of(vm)
        return self._placement.who_sees(disks, first=self._host) or self._host

    def _of_vdi(self, name: str, given: Any) -> str:
        if name == "create":
            return self._of_sr(given.get("SR", NULL))
        record = self._record("VDI", given)
        if name == "pool_migrate":
            vms = [self._record("VBD", vbd)["VM"] for vbd in record["VBDs"]]
            for vm in (vm for vm in vms if vm != NULL):
                return self._of_vm(name, vm)
        return self._of_sr(record["SR"])

    def _of_sr(self, sr: str) -> str:
        """One member does what changes a shared SR, so that it comes one after the other."""
        if not self._records.has("SR", sr):
            return NULL
        return self._placement.who_sees([sr], first="") or self._host
