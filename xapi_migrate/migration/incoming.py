"""What a receiver knows of one migration: the hidden VM, its disks, its domain."""

from __future__ import annotations

from typing import Any

import attrs
from twisted.internet import defer

from ..domains.interfaces import IRestoration
from ..sm.interfaces import ISR, SameDiskProof
from .claims import DiskClaim
from .host import Host, TaskHandle
from .interfaces import DiskOffer, IIncomingMemory
from .journal import IJournal
from .metadata_import import IncomingVM
from .story import Story


@attrs.define
class IncomingDisk:
    """Disk `number`: where it goes. `vbd` is "" for a suspend image. `found`: the VDI was here already, nothing is
    created for it."""

    number: int
    vbd: str
    vdi: str
    vdi_uuid: str
    sr_ref: str
    sr_uuid: str
    size: int
    found: bool
    offer: DiskOffer | None = None


@attrs.define
class Plan:
    """What will be created, made up before any of it is: it is in the journal, so that a restarted daemon can remove or
    finish it. `vm` and `vm_uuid` are the hidden VM's own; `final_ref` and `final_uuid` what it becomes (5.2)."""

    vm: str
    vm_uuid: str
    domain: str
    final_ref: str
    final_uuid: str
    name: str
    power_state: str
    leave_paused: bool
    disks: list[IncomingDisk]
    in_pool: bool = False
    """The sender is a member of this pool: the VM has a record here, which it keeps."""
    given_up: str = ""
    """What that record said of GIVEN_UP when it began."""

    def to_json(self) -> dict[str, Any]:
        return attrs.asdict(self, filter=lambda attribute, _: attribute.name != "offer")

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Plan:
        return cls(**{**value, "disks": [IncomingDisk(**disk) for disk in value["disks"]]})

    @property
    def has_memory(self) -> bool:
        return self.power_state in ("Running", "Paused")


@attrs.define
class Incoming:
    """One incoming migration. `sr` is the offer's SR for disks that no map names."""

    id: str
    host: Host
    story: Story
    journal: IJournal
    sr: str
    digest: str
    options: dict[str, str]
    session: str = attrs.field(default="", repr=False)
    """With which the host's keeper (keeping.py) is asked; "" after a restart: the keeper has it."""
    networks: list[str] | None = None
    """Those that its VIFs may be on; None: all that have records here."""
    document: str = ""
    """Digest of the metadata (2.1); "" before it has come."""
    task: TaskHandle | None = None
    vm: IncomingVM | None = None
    plan: Plan | None = None
    memory: IIncomingMemory | None = None
    restoration: IRestoration | None = None
    _proofs: dict[str, SameDiskProof] = attrs.Factory(dict)
    _proving: defer.DeferredLock = attrs.Factory(defer.DeferredLock)

    def claim(self) -> None:
        """What the plan needs of this host is taken for it, until `Claims.release`."""
        assert self.plan is not None
        fresh = [DiskClaim(disk.sr_ref, disk.vdi_uuid, disk.size) for disk in self.plan.disks if not disk.found]
        memory = self.vm.memory if self.vm else int(self.host.records.get("VM", self.plan.vm)["memory_static_max"])
        self.host.claims.take(self.id, memory if self.plan.has_memory else 0, fresh)

    async def proof_in(self, sr_ref: str) -> SameDiskProof:
        """The nonce in the SR, for all of its disks that were found: a second one would take the first one's place."""
        await self._proving.acquire()
        try:
            if sr_ref not in self._proofs:
                self._proofs[sr_ref] = await self.host.toolstack.sr(sr_ref).same_disk_proof(self.id)
            return self._proofs[sr_ref]
        finally:
            self._proving.release()

    def sr_of(self, disk: IncomingDisk) -> ISR:
        return self.host.toolstack.sr(disk.sr_ref)
