"""What a VM's records say because it runs: its domid, its console and its metrics; that its VIFs are attached, and as
what its disks. Kept true as its power state changes, whoever changes that: a call, the guest, or a migration."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

from xapi_migrate.errors import HandleInvalid
from xapi_migrate.store.interfaces import NULL, Change, Record
from xapi_migrate.store.records import Records

RUNNING = ("Running", "Paused")
_NUMBERED = "_numbered_domain"
"""Of a VM's record: the domain that has its domid."""


class RunningRecords:
    """`host` is this host's ref, `address` what consoles are said to be at."""

    def __init__(self, records: Records, host: str, address: str, now: Callable[[], datetime]) -> None:
        self._records = records
        self._host = host
        self._address = address
        self._now = now
        self._last_domid = max(
            (records.get("VM", vm)["domid"] for vm in records.find("VM", resident_on=host)), default=0
        )
        for vm in records.refs("VM"):
            self._refresh(vm, records.get("VM", vm))
        self._sweep()
        self._end = records.subscribe(self._note)

    def stop(self) -> None:
        self._end()

    def _note(self, change: Change) -> None:
        if change.cls == "VBD" and change.record is not None and not change.foreign:
            self._note_disk(change.ref, change.record)
        if change.cls != "VM" or change.foreign:
            return
        if change.record is None:
            self._sweep()
            return
        try:
            self._refresh(change.ref, self._records.get("VM", change.ref))
        except HandleInvalid:
            pass  # destroyed since

    def _refresh(self, vm: str, record: Record) -> None:
        if record["resident_on"] not in (self._host, NULL):
            return
        running = self._runs_here(record)
        # the console's text is in a file; clients want a location that is a URL
        location = f"https://{self._address}/console?uuid={record['uuid']}"
        there = False
        for console in record["consoles"]:
            if running and self._records.get("console", console)["location"] == location:
                there = True
            else:
                self._records.destroy("console", console)
        if running and not there:
            self._records.create("console", protocol="vt100", location=location, VM=vm)
        for vif in record["VIFs"]:
            if self._records.get("VIF", vif)["currently_attached"] != running:
                self._records.update("VIF", vif, currently_attached=running)
        for vbd in record["VBDs"]:
            self._refresh_disk(vbd, running)
        self._refresh_metrics(vm, record, running)
        self._refresh_domid(vm, record, running)

    def _note_disk(self, vbd: str, record: Record) -> None:
        try:
            vm = self._records.get("VM", record["VM"])
            if vm["resident_on"] in (self._host, NULL):
                self._refresh_disk(vbd, self._runs_here(vm))
        except HandleInvalid:
            pass  # destroyed since

    def _runs_here(self, record: Record) -> bool:
        return record["power_state"] in RUNNING and record["resident_on"] == self._host

    def _refresh_disk(self, vbd: str, running: bool) -> None:
        record = self._records.get("VBD", vbd)
        device = device_name(record["userdevice"]) if running and record["currently_attached"] else ""
        if record["device"] != device:
            self._records.update("VBD", vbd, device=device)

    def _refresh_metrics(self, vm: str, record: Record, running: bool) -> None:
        """`start_time` is that of the latest start or resume, or of the arrival here from another pool."""
        if record["metrics"] == NULL:
            if running:
                self._records.update("VM", vm, metrics=self._records.create("VM_metrics", **self._metrics(record)))
        elif running and record["domid"] < 0:
            self._records.update("VM_metrics", record["metrics"], **self._metrics(record))

    def _metrics(self, record: Record) -> dict[str, Any]:
        now = self._now()
        return {
            "memory_actual": record["memory_static_max"], "VCPUs_number": max(1, record["VCPUs_max"]), "hvm": True,
            "start_time": now, "last_updated": now, "current_domain_type": "hvm",
        }  # fmt: skip

    def _refresh_domid(self, vm: str, record: Record, running: bool) -> None:
        """Each domain of this host has a number of its own, never used again while the daemon runs; no domain: -1. A
        VM that comes from another member of the pool still has the number that its domain had there."""
        if running and (record["domid"] <= 0 or record.get(_NUMBERED) != record.get("_domain")):
            self._last_domid += 1
            self._records.update("VM", vm, domid=self._last_domid, **{_NUMBERED: record.get("_domain")})
        elif not running and record["domid"] != -1 and not record["is_control_domain"]:
            self._records.update("VM", vm, domid=-1)

    def _sweep(self) -> None:
        """What belonged to VMs that are gone."""
        used = {self._records.get("VM", vm)["metrics"] for vm in self._records.refs("VM")}
        for metrics in self._records.refs("VM_metrics"):
            if metrics not in used:
                self._records.destroy("VM_metrics", metrics)
        for console in self._records.find("console", VM=NULL):
            self._records.destroy("console", console)


def device_name(userdevice: str) -> str:
    """As XenAPI calls a disk: 0 is xvda. What is no number is its own name."""
    if not userdevice.isdecimal() or int(userdevice) >= 26:
        return userdevice
    return f"xvd{chr(ord('a') + int(userdevice))}"
