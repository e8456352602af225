"""Guests that wait for a disk: the administrator is told when it takes long, and when it is over. That the disk is
tried again, and that the guest goes on, is others' work (domains/qemu_refusals.py, sm/datapaths.py)."""

from __future__ import annotations

from typing import Any

from twisted.logger import Logger

from xapi_migrate.domains.interfaces import DomainDisk
from xapi_migrate.errors import UuidInvalid
from xapi_migrate.store.records import Records
from xapi_migrate.toolstack.messages import Messages

PATIENCE = 10.0
"""Seconds. A shorter wait is a slow disk, and nobody is told."""
WAITS, GOES_ON = ("VM_WAITS_FOR_DISK", 2), ("VM_DISK_WORKS_AGAIN", 4)
TOLD = "_waits"
"""Of a VBD: the domain of whose wait a message tells, and that wait's beginning in seconds. It outlives the daemon, so
that nobody is told twice."""


class DiskWaits:
    """Of this host's VMs. `host` is this host's ref."""

    log = Logger()

    def __init__(self, records: Records, messages: Messages, clock: Any, host: str) -> None:
        self._records = records
        self._messages = messages
        self._clock = clock
        self._host = host
        self._since: dict[tuple[str, str], float] = {}
        """By domain and VBD."""

    def of_domain(self, domain: str, disk: DomainDisk, why: str) -> None:
        """See IDomainDriver.watch_disks."""
        for vm in self._records.find("VM", _domain=domain):
            for vbd in self._records.get("VM", vm)["VBDs"]:
                if self._records.get("VBD", vbd)["userdevice"] == disk.device:
                    self._seen(vm, vbd, why)

    def of_vdi(self, uuid: str, why: str) -> None:
        """See Reviving.waiting."""
        try:
            vdi = self._records.get("VDI", self._records.by_uuid("VDI", uuid))
        except UuidInvalid:
            return
        for vbd in vdi["VBDs"]:
            record = self._records.get("VBD", vbd)
            if record["currently_attached"]:
                self._seen(record["VM"], vbd, why)

    def told(self, vm: str) -> str:
        """For which disk the VM's guest waits, a sentence, if a message has told so; else ""."""
        domain = self._records.get("VM", vm).get("_domain")
        for vbd in self._records.get("VM", vm)["VBDs"]:
            told = self._records.get("VBD", vbd).get(TOLD)
            if told and told["domain"] == domain:
                return f"its guest waits for {self._disk(vbd)}, which {told['why']}"
        return ""

    def _seen(self, vm: str, vbd: str, why: str) -> None:
        domain = str(self._records.get("VM", vm).get("_domain") or "")
        told = self._records.get("VBD", vbd).get(TOLD)
        told = told if told and told["domain"] == domain else None
        now = self._clock.seconds()
        if not why:
            self._since.pop((domain, vbd), None)
            if told:
                self._records.update("VBD", vbd, **{TOLD: None})
                lasted = f"{now - told['since']:.0f} s"
                self._tell(vm, GOES_ON, f"goes on: {self._disk(vbd)}, takes its requests again, after {lasted}.")
            return
        since = self._since.setdefault((domain, vbd), now)
        if told or not domain or now - since < PATIENCE:
            return
        self._records.update("VBD", vbd, **{TOLD: {"domain": domain, "since": since, "why": why}})
        self._tell(
            vm, WAITS,
            f"has waited for {now - since:.0f} s for {self._disk(vbd)}, which {why}. It is tried again for as long as "
            "it takes, and the guest goes on by itself when the disk works: see to the storage of that SR. "
            "VM.hard_shutdown and VM.hard_reboot end the wait; to the guest that is a loss of power.",
        )  # fmt: skip

    def _disk(self, vbd: str) -> str:
        record = self._records.get("VBD", vbd)
        vdi = self._records.get("VDI", record["VDI"])
        sr = self._records.get("SR", vdi["SR"])
        return (
            f"its disk {record['userdevice']}, VDI {vdi['uuid']} ({vdi['name_label']}) in SR {sr['uuid']} "
            f"({sr['name_label']})"
        )

    def _tell(self, vm: str, what: tuple[str, int], text: str) -> None:
        record = self._records.get("VM", vm)
        host = self._records.get("host", self._host)["name_label"]
        body = f"The guest of VM {record['name_label']} ({record['uuid']}) on host {host} {text}"
        self.log.warn("{body}", body=body)
        self._messages.tell(*what, "VM", record["uuid"], body)
