"""What a sender knows of one migration: the VM, its disks, where it goes."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any
from uuid import uuid4

import attrs
from twisted.internet import defer

from ..domains.interfaces import ISuspension
from ..errors import InvalidValue, OperationNotAllowed
from ..sm.interfaces import ISR, CopyState, CopyStatus
from .giving_up import given_up
from .host import Host, TaskHandle, Toolstack
from .interfaces import DiskOffer, IPeer
from .journal import IJournal, Mark, data_of
from .queue import Turn
from .story import Story

DISK_FIELDS = ("number", "vbd", "vdi", "vdi_uuid", "sr_ref", "sr_uuid", "size", "copy")
OPTIONS = frozenset({"live", "copy"})
FOR_TESTS = frozenset({"keep_source", "leave_paused"})
SWITCH = {"true": "true", "1": "true", "false": "false", "0": "false"}


@attrs.define
class OutgoingDisk:
    """Disk `number` of the VM (GET disk/N): refs and uuids of the sender's records; `copy` names its VDI.copy task.
    `vbd` is "" for a suspend image."""

    number: int
    vbd: str
    vdi: str
    vdi_uuid: str
    sr_ref: str
    sr_uuid: str
    size: int
    copy: str
    toolstack: Toolstack = attrs.field(repr=False)
    offer: DiskOffer | None = None
    status: CopyStatus | None = None

    def progress(self) -> tuple[int, int]:
        """Bytes done, of all. Holes are not copied: what there is to do is known once the copy has begun."""
        status = self.status
        whole = (status.total if status else 0) or self.size
        if status is None or status.state is CopyState.PENDING or status.copied < status.total:
            return min(status.copied, whole) if status else 0, whole
        return whole, whole

    @property
    def sr(self) -> ISR:
        """Looked up each time: after a restart it may not be attached yet. SrNotAttached."""
        return self.toolstack.sr(self.sr_ref)


@attrs.define
class Outgoing:
    """One outgoing migration. `domain` is "" for a VM that has none (Halted, Suspended). `document` is its metadata
    (2.1), the same each time it is put."""

    id: str
    host: Host
    task: TaskHandle
    story: Story
    journal: IJournal
    peer: IPeer
    uris: list[str] = attrs.field(repr=False)
    vm: str
    vm_uuid: str
    vm_name: str
    power_state: str
    domain: str
    disks: list[OutgoingDisk]
    document: bytes = attrs.field(repr=False)
    options: dict[str, str]
    turn: Turn | None = None
    """Its turn among this host's migrations; None after a restart when it only ends."""
    copy_ref: str = ""
    """The reference that the copy has at the receiver; "" where the VM itself moves."""
    suspension: ISuspension | None = None
    memory_put: defer.Deferred[None] | None = None
    suspended_at: float | None = None
    given_up: str = ""
    """What its record said of GIVEN_UP when it began."""
    forced: bool = False
    """That it was committed is an administrator's word, not the receiver's."""

    @property
    def keep_source(self) -> bool:
        """The VM stays here, Halted, with its disks."""
        return self.forced or bool(self.copy_ref) or self.options.get("keep_source") == "true"

    @property
    def is_given_up(self) -> bool:
        """See `given_up`."""
        return given_up(self.host.records, self.vm, self.given_up)

    def end_turn(self) -> None:
        """The next one may begin: there is nothing more to transfer."""
        if self.turn is not None:
            self.turn.end()

    def tell_measures(self) -> None:
        """Tell the task what is done about a guest that writes faster than the link carries it away."""
        told = [
            f"the guest's writes to disk {disk.number} are limited to {disk.status.slowed} bytes per second"
            for disk in self.disks
            if disk.status and disk.status.slowed
        ]
        memory = self.suspension.measures() if self.suspension else ""
        if memory:
            told.append(f"the guest changes its memory faster than it is sent: {memory}")
        self.task.set_other("convergence", "; ".join(told))

    def progress(self) -> None:
        """Tell the task how far it is: bytes copied and sent of all there are, within what the phases before and
        after them take up."""
        done = total = 0
        for disk in self.disks:
            moved, whole = disk.progress()
            done, total = done + moved, total + whole
        if self.domain:
            sent, whole = self.suspension.progress() if self.suspension else (0, 0)
            memory = max(whole, int(self.host.records.get("VM", self.vm)["memory_static_max"]))
            done, total = done + min(sent, memory), total + memory
        self.task.set_progress(0.05 + 0.85 * (done / total if total else 1.0))


def outgoing_disks(host: Host, vm: str) -> list[OutgoingDisk]:
    """The VM's disks in the order of GET disk/N, each with a new ref for its copy; a Suspended VM's image is the last.
    SrNotAttached names the SR that is not there."""
    record = host.records.get("VM", vm)
    images = [(vbd, host.records.get("VBD", vbd)["VDI"]) for vbd in host.toolstack.disks(vm)]
    if record["power_state"] == "Suspended":
        images.append(("", record["suspend_VDI"]))
    disks: list[OutgoingDisk] = []
    for number, (vbd, vdi_ref) in enumerate(images):
        vdi = host.records.get("VDI", vdi_ref)
        sr = host.records.get("SR", vdi["SR"])
        host.toolstack.sr(vdi["SR"])
        disks.append(
            OutgoingDisk(
                number=number,
                vbd=vbd,
                vdi=vdi_ref,
                vdi_uuid=vdi["uuid"],
                sr_ref=vdi["SR"],
                sr_uuid=sr["uuid"],
                size=int(vdi["virtual_size"]),
                copy=f"OpaqueRef:{uuid4()}",
                toolstack=host.toolstack,
            )
        )
    return disks


def checked_options(options: dict[str, str], known: Collection[str], test_options: bool) -> dict[str, str]:
    """The options, with "true" and "false" as their values. What is not known, or neither of the two, is refused, so
    that no mistyped option is silently without effect: "copy" that is not understood would move the VM. InvalidValue,
    OperationNotAllowed."""
    checked = {}
    for name, value in options.items():
        if name not in known and not (name in FOR_TESTS and test_options):
            raise OperationNotAllowed(f"There is no option named {name!r} for a migration.")
        if value.lower() not in SWITCH:
            raise InvalidValue(f"options:{name}", value)
        checked[name] = SWITCH[value.lower()]
    return checked


def is_on(options: Mapping[str, str], name: str) -> bool:
    """Whether an option has been given, and is true; for who takes others than `checked_options` lets through."""
    return SWITCH.get(options.get(name, "").lower()) == SWITCH["true"]


def begun_entry(migration: Outgoing) -> dict[str, Any]:
    """What a restarted daemon needs to go on, for the journal's BEGUN."""
    return {
        "task": migration.task.ref,
        "uris": migration.uris,
        "vm": migration.vm,
        "vm_uuid": migration.vm_uuid,
        "vm_name": migration.vm_name,
        "power_state": migration.power_state,
        "domain": migration.domain,
        "options": migration.options,
        "copy_ref": migration.copy_ref,
        "given_up": migration.given_up,
        "document": migration.document.decode(),
        "disks": [{name: getattr(disk, name) for name in DISK_FIELDS} for disk in migration.disks],
    }


def before_memory(journal: IJournal) -> bool:
    """Whether it had not come to phase 4, and is not being undone: a restarted daemon goes on with it."""
    return not {entry.mark for entry in journal.entries} & {
        Mark.MEMORY, Mark.UNDONE, Mark.DONE, Mark.COMMITTED, Mark.ABORTED,
    }  # fmt: skip


def from_journal(host: Host, journal: IJournal, task: TaskHandle, story: Story) -> Outgoing:
    """The migration that an earlier daemon's journal tells of."""
    begun = data_of(journal, Mark.BEGUN)
    same = data_of(journal, Mark.DONE).get("same_disks", [])
    disks = [OutgoingDisk(**told, toolstack=host.toolstack) for told in begun["disks"]]
    for disk in disks:
        if disk.number in same:
            disk.status = CopyStatus(CopyState.FINISHED, same_disk=True)
    return Outgoing(
        id=journal.migration,
        host=host,
        task=task,
        story=story,
        journal=journal,
        peer=host.peers(begun["uris"]),
        uris=begun["uris"],
        vm=begun["vm"],
        vm_uuid=begun["vm_uuid"],
        vm_name=begun["vm_name"],
        power_state=begun["power_state"],
        domain=begun["domain"],
        disks=disks,
        document=begun["document"].encode(),
        options=begun["options"],
        copy_ref=begun.get("copy_ref", ""),
        given_up=begun.get("given_up", ""),
        forced=data_of(journal, Mark.COMMITTED).get("forced", False),
    )
