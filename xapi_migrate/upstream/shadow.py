"""Records here of a VM of the upstream's while it is sent, under the same references, for the engine to work with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from twisted.logger import Logger

from ..errors import HandleInvalid, MigrateError
from ..store.records import Records
from ..xenapi.arguments import Arguments
from .lent import backend_of
from .reading import OURS, Raw, Seen

_OWN = frozenset({"uuid", "current_operations", "allowed_operations", "blocked_operations", "currently_attached"})
"""Fields that are not taken over as they are."""


class Plugs(Protocol):
    """What attaches SRs here."""

    async def plug(self, pbd: str) -> None: ...


class Shadows:
    """`host` is this host's own ref; `known` says whether there is a storage backend of a name."""

    log = Logger()

    def __init__(self, records: Records, storage: Plugs, host: str, known: Callable[[str], bool]) -> None:
        self._records = records
        self._storage = storage
        self._host = host
        self._known = known
        self._arguments = Arguments(records.model, lambda cls, ref: True)

    async def cast(self, seen: Seen) -> None:
        """All records of the VM, its SRs attached. They are in the database when this fires."""
        self.drop(seen.vm, list(seen.vdis))
        for ref, sr in seen.srs.items():
            await self.attach(ref, sr, seen.pbds[ref])
        for ref, network in seen.networks.items():
            self._create("network", ref, network)
        blocked = seen.record.get("blocked_operations") or {}
        others = {op: str(why) for op, why in blocked.items() if not str(why).startswith(OURS)}
        self._create("VM", seen.vm, seen.record, blocked_operations=others)
        for ref, vdi in seen.vdis.items():
            self._create("VDI", ref, vdi, SR=vdi["SR"], location=vdi["uuid"])
        if seen.image_form:
            self._records.update("VM", seen.vm, suspend_VDI=seen.record["suspend_VDI"], _image_form=seen.image_form)
        for ref, vbd in seen.vbds.items():
            self._create("VBD", ref, vbd, VM=seen.vm, VDI=vbd["VDI"])
        for ref, vif in seen.vifs.items():
            self._create("VIF", ref, vif, VM=seen.vm, network=vif["network"])
        await self._records.flush()

    async def attach(self, ref: str, sr: Raw, pbd: Raw) -> None:
        """An SR of the upstream's is used here too. OperationNotAllowed, SrBackendFailure."""
        kind, config = backend_of(sr, pbd.get("device_config") or {}, self._known)
        if not self._has("SR", ref):
            self._create("SR", ref, sr, type=kind)
        mine = self._records.find("PBD", SR=ref, host=self._host)
        if mine:
            self._records.update("PBD", mine[0], device_config=config)
        await self._storage.plug(mine[0] if mine else self._records.create(
            "PBD", host=self._host, SR=ref, device_config=config))  # fmt: skip

    def networks(self, seen: Mapping[str, Raw]) -> None:
        """These are networks of the upstream's."""
        for ref, network in seen.items():
            if self._has("network", ref):
                self._records.update("network", ref, name_label=str(network.get("name_label", "")))
            else:
                self._create("network", ref, network)

    def _create(self, cls: str, ref: str, raw: Raw, **fields: Any) -> None:
        if not self._has(cls, ref):
            self._records.create(cls, ref, uuid=raw["uuid"], **{**self._fields(cls, raw), **fields})

    def _fields(self, cls: str, raw: Mapping[str, Any]) -> dict[str, Any]:
        """What this version knows of a record, but for references: what they lead to is not here."""
        taken = {}
        for name, field in self._records.model.classes[cls].fields.items():
            if name in raw and name not in _OWN and not field.type.classes():
                try:
                    taken[name] = self._arguments.value(field.type, raw[name], name)
                except MigrateError:
                    self.log.info("{cls}.{name} is of a kind that is not known here", cls=cls, name=name)
        return taken

    def _has(self, cls: str, ref: str) -> bool:
        try:
            self._records.get(cls, ref)
        except HandleInvalid:
            return False
        return True

    def left(self, vdis: list[str]) -> list[str]:
        """Those of the VDIs that are still here: after a migration those that were not copied, because the receiver has
        the same disk."""
        return [vdi for vdi in vdis if self._has("VDI", vdi)]

    def drop(self, vm: str, vdis: list[str]) -> None:
        """Forget the VM and its disks; its SRs stay attached."""
        if self._has("VM", vm):
            record = self._records.get("VM", vm)
            for cls, field in (("VBD", "VBDs"), ("VIF", "VIFs")):
                for ref in list(record[field]):
                    self._records.destroy(cls, ref)
            self._records.destroy("VM", vm)
        for vdi in vdis:
            if self._has("VDI", vdi):
                self._records.destroy("VDI", vdi)
