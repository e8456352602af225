"""The SRs of this host: their records joined to the SM API."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import CancelledError, DeferredLock
from twisted.logger import Logger

from xapi_migrate.errors import HandleInvalid, InvalidValue, MigrateError, OperationNotAllowed, SrNotAttached, VdiInUse
from xapi_migrate.refusals import SrHasPbd, SrOperationNotSupported
from xapi_migrate.sm.discovery import Drivers
from xapi_migrate.sm.interfaces import ISR, ISMDriver, SRConfig, VDIInfo
from xapi_migrate.store.interfaces import NULL, Record
from xapi_migrate.store.records import Records
from xapi_migrate.toolstack.late_srs import LateSRs

MakeSR = Callable[[SRConfig, ISMDriver], ISR]
_SECTOR = 512


class Storage:
    """`make` opens an SR by its driver (a Repository with the host's services); `host` is this host's ref."""

    log = Logger()

    def __init__(self, records: Records, drivers: Drivers, make: MakeSR, host: str, clock: Any) -> None:
        self._records = records
        self._drivers = drivers
        self._make = make
        self._host = host
        self._attached: dict[str, ISR] = {}
        self._locks: dict[str, DeferredLock] = {}
        self._late = LateSRs(records, clock, self.plug)
        self.plugged: Callable[[], None] = lambda: None
        """Called when an SR has been attached."""

    async def open(self) -> None:
        """Attach every SR that has a PBD on this host. One that cannot be attached is logged and tried again later."""
        for pbd in self._records.find("PBD", host=self._host):
            self._records.update("PBD", pbd, currently_attached=False)
            try:
                await self.plug(pbd)
            except CancelledError:
                raise
            except Exception as why:
                self._late.keep(pbd, why)

    def stop(self) -> None:
        """The daemon ends; SRs stay attached."""
        self._late.stop()

    # -- finding ------------------------------------------------------------------------------

    def _ref(self, ref_or_uuid: str) -> str:
        found = self._records.find("SR", uuid=ref_or_uuid)
        return found[0] if found else ref_or_uuid

    def sr(self, ref_or_uuid: str) -> ISR:
        """The attached SR. HandleInvalid, SrNotAttached."""
        ref = self._ref(ref_or_uuid)
        self._records.get("SR", ref)
        if ref not in self._attached:
            raise SrNotAttached(ref)
        return self._attached[ref]

    def of_vdi(self, vdi: str) -> tuple[ISR, str]:
        """The SR that holds a VDI (by ref), and the VDI's uuid. HandleInvalid, SrNotAttached."""
        record = self._records.get("VDI", vdi)
        return self.sr(record["SR"]), record["uuid"]

    def _pbd(self, sr: str) -> str:
        found = self._records.find("PBD", SR=sr, host=self._host)
        if not found:
            raise SrNotAttached(sr)
        return found[0]

    # -- SRs ----------------------------------------------------------------------------------

    async def create(self, driver: str, device_config: dict[str, str], **fields: Any) -> str:
        """A new SR, attached, with the VDIs in it. Its ref. SrUnknownDriver, InvalidValue, SrBackendFailure."""
        features = self._drivers.get(driver).features
        if fields.get("shared") and "SHARED" not in features:
            raise InvalidValue("shared", f"SRs of type {driver} belong to one host")
        sr = self._records.create("SR", type=driver, **fields)
        try:
            pbd = self._records.create("PBD", host=self._host, SR=sr, device_config=device_config)
            await self.plug(pbd)
            await self.scan(sr)
        except BaseException:
            attached = self._attached.pop(sr, None)
            if attached is not None:
                await attached.detach()
            self.drop_records(sr)
            raise
        for pool in self._records.refs("pool"):
            if self._records.get("pool", pool)["default_SR"] == NULL:
                self._records.update("pool", pool, default_SR=sr)
        return sr

    def create_pbd(self, host: str, sr: str, device_config: dict[str, str], other_config: dict[str, str]) -> str:
        """PBD.create; the host's there is already one is InvalidValue."""
        for known in self._records.find("PBD", SR=sr, host=host):
            raise InvalidValue("host", f"{host}, which has the PBD {known} of that SR")
        return self._records.create("PBD", host=host, SR=sr, device_config=device_config, other_config=other_config)

    def destroy_pbd(self, pbd: str) -> None:
        """PBD.destroy of one that is not plugged. VdiInUse."""
        record = self._records.get("PBD", pbd)
        if record["currently_attached"]:
            raise OperationNotAllowed(f"The PBD {pbd} is plugged: unplug it first.")
        self._late.leave(pbd)
        self._records.destroy("PBD", pbd)

    async def plug(self, pbd: str) -> None:
        """PBD.plug: attach the SR here."""
        record = self._records.get("PBD", pbd)
        sr: str = record["SR"]
        async with self._lock(sr):
            if sr not in self._attached:
                known = self._records.get("SR", sr)
                config = SRConfig(known["uuid"], known["type"], dict(record["device_config"]))
                repository = self._make(config, self._drivers.get(known["type"]))
                await repository.attach()
                self._attached[sr] = repository
            self._records.update("PBD", pbd, currently_attached=True)
        self.plugged()
        await self.update_sr(sr)

    async def unplug(self, pbd: str) -> None:
        """PBD.unplug: detach the SR here. VdiInUse."""
        sr = self._records.get("PBD", pbd)["SR"]
        self._check_idle(sr)
        self._late.leave(pbd)
        if sr in self._attached:
            await self._attached[sr].detach()
            del self._attached[sr]
        self._records.update("PBD", pbd, currently_attached=False)

    async def forget(self, sr: str) -> None:
        """SR.forget: the records go, the data stays. VdiInUse, SrHasPbd."""
        self._records.get("SR", sr)
        self._check_here_only(sr)
        for pbd in self._records.find("PBD", SR=sr):
            await self.unplug(pbd)
        self.drop_records(sr)

    async def destroy(self, sr: str) -> None:
        """SR.destroy: the VDIs go too. VdiInUse."""
        self._check_idle(sr)
        self._check_here_only(sr)
        for vdi in self._records.find("VDI", SR=sr):
            await self.destroy_vdi(vdi)
        await self.forget(sr)

    def _check_here_only(self, sr: str) -> None:
        for pbd in self._records.find("PBD", SR=sr, currently_attached=True):
            if self._records.get("PBD", pbd)["host"] != self._host:
                raise SrHasPbd(sr)

    def _check_idle(self, sr: str) -> None:
        """VdiInUse while something is being done with a VM that has a disk in the SR: its disks are not attached all
        the time then."""
        for vdi in self._records.find("VDI", SR=sr):
            self._check_vdi_idle(vdi)

    def _check_vdi_idle(self, vdi: str) -> None:
        vms = [self._records.get("VBD", vbd)["VM"] for vbd in self._records.get("VDI", vdi)["VBDs"]]
        for vm in [*vms, *self._records.find("VM", suspend_VDI=vdi)]:
            if vm != NULL and self._records.get("VM", vm)["current_operations"]:
                raise VdiInUse(vdi, f"a disk of VM {vm}, which is busy")

    def drop_records(self, sr: str) -> None:
        for cls in ("VDI", "PBD"):
            for ref in self._records.find(cls, SR=sr):
                self._records.destroy(cls, ref)
        self._records.destroy("SR", sr)

    async def update_sr(self, sr: str) -> None:
        """Sizes in the record, from SR.stat."""
        stat = await self.sr(sr).stat()
        allocated = sum(self._records.get("VDI", vdi)["virtual_size"] for vdi in self._records.get("SR", sr)["VDIs"])
        self._records.update(
            "SR",
            sr,
            physical_size=stat.total,
            physical_utilisation=stat.total - stat.free,
            virtual_allocation=allocated,
        )

    async def scan(self, sr: str) -> None:
        """SR.scan: new VDIs get records; records whose VDI is gone go, unless a VM still names it: then `missing`."""
        repository = self.sr(sr)
        async with self._lock(sr):
            before = self._records.find("VDI", SR=sr)
            there = {info.uuid: info for info in await repository.scan()}
            await self._records.refresh()  # what other members have made has its record by now
            for ref in before:
                record = self._records.get("VDI", ref) if ref in self._records.refs("VDI") else None
                if record is not None:
                    self._refresh(ref, record, there.pop(record["uuid"], None))
            for info in there.values():
                self._introduce(sr, info)
        await self.update_sr(sr)

    def _refresh(self, ref: str, record: Record, info: VDIInfo | None) -> None:
        if info is not None:
            self._records.update(
                "VDI", ref, missing=False, virtual_size=info.virtual_size, physical_utilisation=info.used
            )
        elif record["VBDs"] or self._records.find("VM", suspend_VDI=ref):
            self._records.update("VDI", ref, missing=True)
        else:
            self._records.destroy("VDI", ref)

    def _introduce(self, sr: str, info: VDIInfo, **fields: Any) -> str:
        known = self._records.find("VDI", uuid=info.uuid)
        if known:
            if self._records.get("VDI", known[0])["SR"] != sr:
                self.log.warn("VDI {uuid} is in two SRs; only the first is shown", uuid=info.uuid)
            return known[0]
        return self._records.create(
            "VDI", uuid=info.uuid, SR=sr, location=info.uuid, managed=True, virtual_size=info.virtual_size,
            physical_utilisation=info.used, read_only=info.read_only or fields.pop("read_only", False), **fields,
        )  # fmt: skip

    def _lock(self, sr: str) -> DeferredLock:
        return self._locks.setdefault(sr, DeferredLock())

    # -- VDIs ---------------------------------------------------------------------------------

    async def create_vdi(self, sr: str, uuid: str, virtual_size: int, **fields: Any) -> str:
        """VDI.create: `virtual_size` bytes, rounded up to whole sectors. SrFull, SrNotAttached."""
        repository = self.sr(sr)
        size = _sectors(virtual_size)
        async with self._lock(sr):
            info = await repository.vdi_create(uuid, size)
            ref = self._introduce(sr, info, **fields)
        await self.update_sr(sr)
        return ref

    async def resize_vdi(self, vdi: str, virtual_size: int) -> None:
        """VDI.resize: to `virtual_size` bytes, rounded up. VdiInUse, InvalidValue when it would shrink,
        SrOperationNotSupported."""
        record = self._records.get("VDI", vdi)
        self._check_unused(vdi, record)
        repository, uuid = self.of_vdi(vdi)
        async with self._lock(record["SR"]):
            info = await repository.vdi_resize(uuid, _sectors(virtual_size))
            self._records.update("VDI", vdi, virtual_size=info.virtual_size, physical_utilisation=info.used)
        await self.update_sr(record["SR"])

    def refuse(self, vdi: str, operation: str) -> None:
        """What no SR does. HandleInvalid, SrOperationNotSupported."""
        raise SrOperationNotSupported(self._records.get("VDI", vdi)["SR"], operation)

    def _check_unused(self, vdi: str, record: Record) -> None:
        for vbd in record["VBDs"]:
            if self._records.get("VBD", vbd)["currently_attached"]:
                raise VdiInUse(vdi, "attached to a running VM")
        self._check_vdi_idle(vdi)
        for vm in self._records.find("VM", suspend_VDI=vdi):
            raise VdiInUse(vdi, f"the memory of VM {vm}, which is Suspended")

    async def destroy_vdi(self, vdi: str) -> None:
        """VDI.destroy. VdiInUse while a VM has it attached."""
        record = self._records.get("VDI", vdi)
        self._check_unused(vdi, record)
        repository, uuid = self.of_vdi(vdi)
        async with self._lock(record["SR"]):
            await repository.vdi_destroy(uuid)
            for vbd in record["VBDs"]:
                self._records.destroy("VBD", vbd)
            self._records.destroy("VDI", vdi)
        try:
            await self.update_sr(record["SR"])
        except (HandleInvalid, MigrateError):
            pass


def _sectors(size: int) -> int:
    return -(-size // _SECTOR) * _SECTOR
