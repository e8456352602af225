"""The records that a VM has because it runs: its console and its metrics; and that its VIFs are attached. Kept true as
its power state changes, whoever changes that: a call, the guest, or a migration."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

from xapi_migrate.errors import HandleInvalid
from xapi_migrate.store.interfaces import NULL, Change, Record
from xapi_migrate.store.records import Records

RUNNING = ("Running", "Paused")


class RunningRecords:
    """`host` is this host's ref, `address` what consoles are said to be at."""

    def __init__(self, records: Records, host: str, address: str, now: Callable[[], datetime]) -> None:
        self._records = records
        self._host = host
        self._address = address
        self._now = now
        for vm in records.refs("VM"):
            self._refresh(vm, records.get("VM", vm))
        self._sweep()
        self._end = records.subscribe(self._note)

    def stop(self) -> None:
        self._end()

    def _note(self, change: Change) -> None:
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
        running = record["power_state"] in RUNNING and record["resident_on"] == self._host
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
        if running and record["metrics"] == NULL:
            self._records.update("VM", vm, metrics=self._records.create("VM_metrics", **self._metrics(record)))

    def _metrics(self, record: Record) -> dict[str, Any]:
        now = self._now()
        return {
            "memory_actual": record["memory_static_max"], "VCPUs_number": max(1, record["VCPUs_max"]), "hvm": True,
            "start_time": now, "last_updated": now, "current_domain_type": "hvm",
        }  # fmt: skip

    def _sweep(self) -> None:
        """What belonged to VMs that are gone."""
        used = {self._records.get("VM", vm)["metrics"] for vm in self._records.refs("VM")}
        for metrics in self._records.refs("VM_metrics"):
            if metrics not in used:
                self._records.destroy("VM_metrics", metrics)
        for console in self._records.find("console", VM=NULL):
            self._records.destroy("console", console)
