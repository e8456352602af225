"""The VDIs of one SR on this host: what is known of them, and their datapaths."""

from __future__ import annotations

from typing import Any

from twisted.logger import Logger

from xapi_migrate.errors import MigrateError, SrBackendFailure, SrNotAttached, VdiMissing
from xapi_migrate.sm.datapath import Datapath
from xapi_migrate.sm.datapath_state import DatapathOf
from xapi_migrate.sm.guarded import GuardedBackend
from xapi_migrate.sm.images import ImageCalls
from xapi_migrate.sm.interfaces import ImageNode, ISMDriver, SRConfig, VDIInfo
from xapi_migrate.sm.services import SMServices


class SRImages:
    """What all calls of the SM API need: the backend, the host's shared services, and the images."""

    log = Logger()

    def __init__(self, config: SRConfig, backend: Any, services: SMServices, driver: ISMDriver | None = None) -> None:
        self.uuid = config.uuid
        self._backend = GuardedBackend(
            config.uuid,
            backend,
            services.reactor,
            services.timeouts.backend,
            driver.features if driver else None,
            driver.formats if driver else None,
        )
        self._services = services
        self._attached = False
        self._sizes: dict[str, VDIInfo] = {}
        if self._backend.attaches:
            services.datapaths.images.of_sr(self.uuid, ImageCalls(self._backend.vdi_attach, self._image_detach))

    async def scan(self) -> list[VDIInfo]:
        self._require_attached()
        found = await self._backend.scan()
        self._sizes = {info.uuid: info for info in found}
        return found

    async def datapath_of(self, uuid: str, read_only: bool = False) -> DatapathOf:
        """What a datapath of this VDI is for."""
        self._require_attached()
        info = await self._info(uuid)
        at = await self._backend.vdi_location(uuid)
        size, read_only = info.virtual_size, read_only or info.read_only
        if isinstance(at, ImageNode):
            node, secrets = dict(at.options), dict(at.secrets)
            return DatapathOf(self.uuid, uuid, "", at.format.value, size, read_only, 0, at.size, node, secrets)
        return DatapathOf(self.uuid, uuid, str(at.path), at.format.value, size, read_only, 0, at.size)

    async def _info(self, uuid: str) -> VDIInfo:
        if uuid not in self._sizes:
            await self.scan()
        if uuid not in self._sizes:
            raise VdiMissing(self.uuid, uuid)
        return self._sizes[uuid]

    async def _attach(self, uuid: str, user: str, read_only: bool = False) -> Datapath:
        return await self._services.datapaths.attach(await self.datapath_of(uuid, read_only), user)

    def _datapath(self, uuid: str) -> Datapath:
        datapath = self._services.datapaths.get(uuid)
        if datapath is None:
            raise SrBackendFailure(f"VDI {uuid}", "it is not attached")
        return datapath

    async def _tidied(self, uuid: str) -> None:
        """What was put off for this VDI while a guest waited is done."""
        await self._services.behind.done(uuid)
        await self._services.copies.tidied(uuid)

    async def _image_detach(self, uuid: str) -> None:
        try:
            await self._backend.vdi_detach(uuid)
        except MigrateError as failure:  # nobody uses it any more: nothing that waits for this is at stake
            self.log.warn("VDI {vdi} stays attached to its storage: {reason}", vdi=uuid, reason=str(failure))

    def _require_attached(self) -> None:
        if not self._attached:
            raise SrNotAttached(self.uuid)
