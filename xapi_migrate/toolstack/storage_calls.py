"""SR.*, PBD.* and VDI.* as clients call them."""

from __future__ import annotations

import uuid as uuids
from typing import Any

from xapi_migrate.errors import FieldTypeError, HandleInvalid, InvalidValue
from xapi_migrate.store.interfaces import NULL
from xapi_migrate.store.records import Records
from xapi_migrate.toolstack.storage import Storage
from xapi_migrate.xenapi.calls import CallContext


class StorageCalls:
    def __init__(self, records: Records, storage: Storage) -> None:
        self._records = records
        self._storage = storage

    # -- SR, PBD ------------------------------------------------------------------------------

    async def SR_create(
        self, call: CallContext, host: str, device_config: dict[str, str], physical_size: int, name_label: str,
        name_description: str, type_: str, content_type: str, shared: bool, sm_config: dict[str, str],
    ) -> str:  # fmt: skip
        return await self._storage.create(
            type_, device_config, name_label=name_label, name_description=name_description, content_type=content_type,
            shared=shared, sm_config=sm_config,
        )  # fmt: skip

    async def SR_destroy(self, call: CallContext, sr: str) -> None:
        await self._storage.destroy(sr)

    async def SR_forget(self, call: CallContext, sr: str) -> None:
        await self._storage.forget(sr)

    async def SR_scan(self, call: CallContext, sr: str) -> None:
        await self._storage.scan(sr)

    async def SR_update(self, call: CallContext, sr: str) -> None:
        await self._storage.update_sr(sr)

    def SR_get_supported_types(self, call: CallContext) -> list[str]:
        return sorted(self._records.get("SM", ref)["type"] for ref in self._records.refs("SM"))

    def PBD_create(self, call: CallContext, args: dict[str, Any]) -> str:
        """How a host reaches an SR; PBD.plug then attaches it there."""
        host, sr = args.get("host", NULL), args.get("SR", NULL)
        for cls, ref in (("host", host), ("SR", sr)):
            if ref == NULL:
                raise HandleInvalid(cls, ref)
        return self._storage.create_pbd(host, sr, args.get("device_config", {}), args.get("other_config", {}))

    def PBD_destroy(self, call: CallContext, self_: str) -> None:
        self._storage.destroy_pbd(self_)

    async def PBD_plug(self, call: CallContext, self_: str) -> None:
        await self._storage.plug(self_)

    async def PBD_unplug(self, call: CallContext, self_: str) -> None:
        await self._storage.unplug(self_)

    # -- VDI ----------------------------------------------------------------------------------

    async def VDI_create(self, call: CallContext, args: dict[str, Any]) -> str:
        given = dict(args)
        sr, size = given.pop("SR", NULL), given.pop("virtual_size", 0)
        if size <= 0:
            raise InvalidValue("virtual_size", str(size))
        for made_here in ("location", "managed", "missing"):
            given.pop(made_here, None)
        if not isinstance(sr, str):
            raise FieldTypeError("SR")
        return await self._storage.create_vdi(sr, str(uuids.uuid4()), size, **given)

    async def VDI_destroy(self, call: CallContext, self_: str) -> None:
        await self._storage.destroy_vdi(self_)

    async def VDI_resize(self, call: CallContext, vdi: str, size: int) -> None:
        if size <= 0:
            raise InvalidValue("size", str(size))
        await self._storage.resize_vdi(vdi, size)

    def VDI_snapshot(self, call: CallContext, vdi: str, driver_params: dict[str, str]) -> None:
        self._storage.refuse(vdi, "VDI_SNAPSHOT")

    def VDI_clone(self, call: CallContext, vdi: str, driver_params: dict[str, str]) -> None:
        self._storage.refuse(vdi, "VDI_CLONE")
