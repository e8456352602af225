"""The VMs of this host: from records to domains and back."""

from __future__ import annotations

import uuid as uuids
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from twisted.internet import defer
from twisted.logger import Logger

from xapi_migrate.domains.interfaces import GONE, DomainDisk, DomainNic, DomainSpec, DomainState, IDomainDriver
from xapi_migrate.errors import DomainError, HandleInvalid, InvalidValue, SrBackendFailure, VdiInUse, VmBadPowerState
from xapi_migrate.migration.claims import Claims
from xapi_migrate.migration.disk_users import other_user
from xapi_migrate.sm.interfaces import ISR, Attachment, Purpose
from xapi_migrate.store.interfaces import NULL, Record
from xapi_migrate.store.records import Records
from xapi_migrate.together import started
from xapi_migrate.toolstack.networks import Networks
from xapi_migrate.toolstack.operations import Operations
from xapi_migrate.toolstack.storage import Storage

MIGRATING = ("migrate_send", "pool_migrate", "import")
"""Operations during which the domain is the migration's, and its end is no business of ours."""
LEAST_MEMORY = 1 << 20
"""Of a VM that runs, as of one that is received. QEMU takes none at all for 128 MiB, which nobody has counted."""
_SERIAL_LENGTH = 20


class Machines:
    """Starts and ends domains. `host` is this host's ref; consoles are files below `state_dir`."""

    log = Logger()

    def __init__(
        self,
        records: Records,
        storage: Storage,
        domains: IDomainDriver,
        operations: Operations,
        networks: Networks,
        host: str,
        state_dir: Path,
        claims: Claims,
    ) -> None:
        self._claims = claims
        self._records = records
        self._storage = storage
        self._domains = domains
        self._operations = operations
        self._networks = networks
        self._host = host
        self._consoles = state_dir / "consoles"
        self.crashed: Callable[[str, str], Awaitable[None]] = _nothing
        """Called with a VM's ref and a reason when its domain has crashed and is gone: the VM is Halted."""
        self.waits: Callable[[str], str] = lambda vm: ""
        """For which disk a VM's guest waits, and has for long, a sentence; "" if it does not."""
        self._under_way: set[defer.Deferred[None]] = set()
        self._ending: set[str] = set()

    async def open(self) -> None:
        """Before the engine takes up its migrations: forget what an earlier daemon was doing, but for those."""
        self._consoles.mkdir(parents=True, exist_ok=True)
        for vm in self._records.refs("VM"):
            current = self._records.get("VM", vm)["current_operations"]
            left = {t: operation for t, operation in current.items() if operation in MIGRATING or self._elsewhere(t)}
            self._records.update("VM", vm, current_operations=left)
        self._operations.freed = self._look_again
        self._domains.watch(self._domain_changed)

    def _elsewhere(self, task: str) -> bool:
        """Whether another member works on it."""
        known = self._records.get("task", task) if self._records.has("task", task) else None
        return known is not None and known["resident_on"] not in (self._host, NULL)

    async def close(self) -> None:
        """Stop looking after domains; they live on."""
        self._operations.freed = lambda vm: None
        for work in list(self._under_way):
            work.cancel()

    # -- what the migration engine needs -------------------------------------------------------

    def disks(self, vm: str) -> list[str]:
        """The refs of the VM's Disk VBDs that hold a VDI, in userdevice order."""
        found = [(ref, self._records.get("VBD", ref)) for ref in self._records.get("VM", vm)["VBDs"]]
        kept = [(ref, r) for ref, r in found if r["type"] == "Disk" and not r["empty"] and r["VDI"] != NULL]
        return [ref for ref, record in sorted(kept, key=lambda item: _device(item[1]["userdevice"]))]

    def domain_of(self, vm: str) -> str:
        """The id of the VM's domain, "" if it has none."""
        return str(self._records.get("VM", vm).get("_domain") or "")

    def set_domain(self, vm: str, domain: str) -> None:
        """The VM's domain is this one; "": none."""
        self._records.update("VM", vm, _domain=domain, _domain_host=self._host if domain else "")

    def spec_of(self, vm: str, domain: str, attachments: Mapping[str, Attachment]) -> DomainSpec:
        """The virtual hardware of the VM, its disks attached so (VBD ref -> attachment). A VM that is being received
        has the uuid and the console of the VM that it will be."""
        record = self._records.get("VM", vm)
        uuid = record.get("_incoming_uuid") or record["uuid"]
        platform, capabilities = record["platform"], self._domains.capabilities()
        return DomainSpec(
            domain_id=domain,
            vm_uuid=uuid,
            name=record["name_label"],
            memory=record["memory_static_max"],
            vcpus=max(1, record["VCPUs_max"]),
            disks=tuple(self._disk(vbd, attachments[vbd]) for vbd in self.disks(vm) if vbd in attachments),
            nics=tuple(self._nic(vif) for vif in sorted(record["VIFs"], key=self._vif_device)),
            machine=platform.get("machine") or capabilities.machine,
            cpu=platform.get("cpu") or capabilities.cpu,
            console_path=str(self._consoles / f"{uuid}.log"),
        )

    def _disk(self, vbd: str, attachment: Attachment) -> DomainDisk:
        record = self._records.get("VBD", vbd)
        vdi = self._records.get("VDI", record["VDI"])
        return DomainDisk(
            device=record["userdevice"], socket_path=attachment.socket_path, export=attachment.export,
            read_only=_read_only(record, vdi), bootable=record["bootable"],
        )  # fmt: skip

    def _vif_device(self, vif: str) -> int:
        return _device(self._records.get("VIF", vif)["device"])

    def _nic(self, vif: str) -> DomainNic:
        record = self._records.get("VIF", vif)
        bridge = self._networks.bridge_of(record["network"])
        return DomainNic(device=record["device"], mac=record["MAC"], bridge=bridge, mtu=record["MTU"] or 1500)

    # -- life ----------------------------------------------------------------------------------

    async def claim(self, vm: str) -> None:
        """No other member of the pool builds a domain of the VM from here on. VmBadPowerState if one does already."""
        if not await self._records.take("VM", vm, "_domain_host", (None, "", self._host), self._host):
            raise VmBadPowerState(vm, "halted, suspended", "running")

    def let_go(self, vm: str, task: str) -> None:
        """The end of a claim by this task's operation, where no domain came of it; no VM, no harm."""
        record = self._find(vm)
        if record is None or task not in record["current_operations"] or record.get("_domain"):
            return
        if record.get("_domain_host") == self._host:
            self.set_domain(vm, "")

    async def start_halted(self, vm: str, task: str, paused: bool = False) -> None:
        """As `start`, for a VM that has to be Halted and free, and is busy with this for as long as it takes.
        VmBadPowerState, OtherOperationInProgress, OperationBlocked, NotEnoughMemory."""
        self._operations.require(vm, "Halted")
        self._operations.check_blocked(vm, "start")
        self._operations.check_free(vm)
        with self.room_for(vm):
            await self.claim(vm)
            self._operations.require(vm, "Halted")
            with self._operations.operation(vm, "start", task):
                await self.start(vm, paused)

    def room_for(self, vm: str) -> AbstractContextManager[Callable[[], None]]:
        """The VM's memory is promised to nobody else while its domain is built inside: see `Claims.held`."""
        return self._claims.held(int(self._records.get("VM", vm)["memory_static_max"]))

    async def start(self, vm: str, paused: bool = False) -> None:
        """VM.start. DomainError, and then nothing is left of it; SrNotAttached, VdiInUse, BridgeNotAvailable,
        InvalidValue for a VM without memory."""
        record = self._records.get("VM", vm)
        if record["memory_static_max"] < LEAST_MEMORY:
            raise InvalidValue("memory_static_max", str(record["memory_static_max"]))
        self.check_networks(vm)
        domain = str(uuids.uuid4())
        self.set_domain(vm, domain)
        try:
            platform = record["platform"]
            capabilities = self._domains.capabilities()
            # pinned at the first start, so that the VM keeps its hardware wherever it goes
            pinned = {"machine": capabilities.machine, "cpu": capabilities.cpu, **platform}
            self._records.update("VM", vm, platform=pinned)
            attachments = await self.attach_disks(vm)
            # A daemon that is killed has to know of this domain, or the VM could be started a second time.
            await self._records.flush()
            await self._domains.start(self.spec_of(vm, domain, attachments))
            if paused:
                await self._domains.pause(domain)
        except BaseException:
            await self.destroy_domain(vm)
            raise
        self.running(vm, "Paused" if paused else "Running")

    def check_networks(self, vm: str) -> None:
        """BridgeNotAvailable if one of its VIFs cannot be connected and must be."""
        for vif in self._records.get("VM", vm)["VIFs"]:
            self._networks.check(self._records.get("VIF", vif)["network"])

    async def attach_disks(self, vm: str) -> dict[str, Attachment]:
        """VDI.attach and VDI.activate of every disk: VBD ref -> attachment. VdiInUse if another VM has one of them."""
        attachments: dict[str, Attachment] = {}
        for vbd in self.disks(vm):
            record = self._records.get("VBD", vbd)
            vdi = self._records.get("VDI", record["VDI"])
            if other := other_user(self._records, self._host, record["VDI"], (vm,), busy=True):
                raise VdiInUse(record["VDI"], f"attached to {other}, which uses it now")
            repository, uuid = self._storage.of_vdi(record["VDI"])
            self._records.update("VBD", vbd, currently_attached=True)
            attachments[vbd] = await repository.vdi_attach(uuid, Purpose.DOMAIN, _read_only(record, vdi))
            await repository.vdi_activate(uuid, Purpose.DOMAIN)
        return attachments

    async def release_disks(self, vm: str) -> None:
        """VDI.deactivate and VDI.detach of every disk that is attached; one that fails is logged and does not keep the
        others."""
        for vbd in self.disks(vm):
            record = self._records.get("VBD", vbd)
            if not record["currently_attached"]:
                continue
            try:
                repository, uuid = self._storage.of_vdi(record["VDI"])
                await self._release(repository, uuid)
            except Exception:
                self.log.failure("VDI {vdi} could not be released", vdi=record["VDI"])
            self._records.update("VBD", vbd, currently_attached=False)

    async def _release(self, repository: ISR, uuid: str) -> None:
        try:
            await repository.vdi_deactivate(uuid, Purpose.DOMAIN)
        except SrBackendFailure as failure:  # its domain is gone: nobody is kept by that
            self.log.warn("VDI {vdi} is released all the same: {failure}", vdi=uuid, failure=failure)
        await repository.vdi_detach(uuid, Purpose.DOMAIN)

    async def shutdown(self, vm: str, seconds: float, clock: Any) -> None:
        """VM.clean_shutdown: press the power button and wait. TimeoutError if the guest does not listen,
        SrBackendFailure if it cannot because it waits for a disk."""
        domain = self.domain_of(vm)
        until = clock.seconds() + seconds
        self._check_waits(vm)
        await self._domains.shutdown(domain)
        while await self._domains.state(domain) not in GONE:
            self._check_waits(vm)
            if clock.seconds() > until:
                raise TimeoutError
            await _later(clock, 0.1)
        await self.destroy_domain(vm)

    def _check_waits(self, vm: str) -> None:
        why = self.waits(vm)
        if why:
            raise SrBackendFailure(f"VM {vm}", f"{why}: it cannot shut itself down")

    async def destroy_domain(self, vm: str) -> None:
        """End the VM's domain at once and release its storage: Halted. Repeatable."""
        await self.end_domain(vm, self.domain_of(vm))
        self._records.update("VM", vm, power_state="Halted")

    async def end_domain(self, vm: str, domain: str) -> None:
        """End this domain of the VM, if it is not "", and release its storage: it is on no host. Repeatable. The power
        state is the caller's."""
        if domain:
            await self._domains.destroy(domain)
        await self.release_disks(vm)
        self._records.update("VM", vm, _domain="", _domain_host="", resident_on=NULL, domid=-1)

    async def end_strange(self, vm: str, domain: str) -> None:
        """End a domain that was once the VM's, and leave the VM as it is. Nothing happens if it is the VM's now."""
        record = self._find(vm)
        if record is None or record.get("_domain") != domain:
            await self._domains.destroy(domain)

    async def pause(self, vm: str) -> None:
        await self._domains.pause(self.domain_of(vm))
        self.running(vm, "Paused")

    async def unpause(self, vm: str) -> None:
        await self._domains.unpause(self.domain_of(vm))
        self.running(vm, "Running")

    def running(self, vm: str, power_state: str) -> None:
        """The VM is on this host, Running or Paused."""
        self._records.update("VM", vm, power_state=power_state, resident_on=self._host)

    # -- keeping records true ------------------------------------------------------------------

    async def resync(self) -> None:
        """After the engine took up its migrations: every VM's power state from what its domain is. Repeatable."""
        pending = set(self._records.find("task", status="pending"))
        for vm in self._records.refs("VM"):
            current = self._records.get("VM", vm)["current_operations"]
            left = {task: operation for task, operation in current.items() if task in pending}
            self._records.update("VM", vm, current_operations=left)
            record = self._records.get("VM", vm)
            if not left and not record.get("_domain") and record.get("_domain_host") == self._host:
                self.set_domain(vm, "")  # claimed by what did not come so far
            try:
                await self.resync_vm(vm)
            except Exception:
                self.log.failure("What VM {vm} does could not be found out", vm=vm)
        known = {self.domain_of(vm) for vm in self._records.refs("VM")}
        for domain in await self._domains.domains():
            if domain not in known:
                self.log.warn("Domain {domain} belongs to no VM of this host", domain=domain)

    async def resync_vm(self, vm: str) -> None:
        """One VM; nothing if it is busy, gone, or not of this host."""
        record = self._find(vm)
        if record is None or record["current_operations"]:
            return
        domain = self.domain_of(vm)
        if record["resident_on"] not in (self._host, NULL) or record.get("_domain_host") not in (None, "", self._host):
            return
        if not domain:
            if record["power_state"] in ("Running", "Paused") and record["resident_on"] in (self._host, NULL):
                await self.destroy_domain(vm)
            return
        try:
            state = await self._domains.state(domain)
        except DomainError:
            # it was ended while it was being asked: whoever ended it keeps the record
            if self._busy_or_gone(vm, domain):
                return
            raise
        if self._busy_or_gone(vm, domain):
            return
        if state in GONE:
            await self._ended(vm, domain)
        elif state is DomainState.RUNNING:
            self.running(vm, "Running")
        elif state is DomainState.PAUSED:
            self.running(vm, "Paused")

    async def _ended(self, vm: str, domain: str) -> None:
        if domain in self._ending:
            return
        self._ending.add(domain)
        try:
            why = self._domains.why(domain)
            await self.destroy_domain(vm)
        finally:
            self._ending.discard(domain)
        if why:
            await self.crashed(vm, why)

    def _busy_or_gone(self, vm: str, domain: str) -> bool:
        record = self._find(vm)
        return record is None or bool(record["current_operations"]) or self.domain_of(vm) != domain

    def _find(self, vm: str) -> Record | None:
        try:
            return self._records.get("VM", vm)
        except HandleInvalid:
            return None

    def _domain_changed(self, domain: str, state: DomainState) -> None:
        for vm in self._records.find("VM", _domain=domain):
            self._look_again(vm)

    def _look_again(self, vm: str) -> None:
        work = started(self.resync_vm(vm))
        self._under_way.add(work)
        work.addErrback(lambda failure: failure.trap(defer.CancelledError) and None)
        work.addErrback(lambda failure: self.log.failure("What VM {vm} does could not be found out", failure, vm=vm))
        work.addBoth(lambda _: self._under_way.discard(work))


async def _nothing(vm: str, why: str) -> None:
    pass


def _device(text: str) -> int:
    return int(text) if text.isdecimal() else 1 << 30


def _read_only(vbd: Record, vdi: Record) -> bool:
    return vbd["mode"] == "RO" or bool(vdi["read_only"])


def _later(clock: Any, seconds: float) -> defer.Deferred[None]:
    done: defer.Deferred[None] = defer.Deferred(lambda _: late.cancel())
    late = clock.callLater(seconds, done.callback, None)
    return done
