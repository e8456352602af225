"""The SM API of one attached SR, made out of a storage backend and the host's shared services.

A backend that has `vdi_get_url`, `vdi_close_url` or `vdi_copy` of its own (`sm/optional.py`) is asked first.
"""

from __future__ import annotations

from pathlib import Path

import attrs
from zope.interface import implementer

from xapi_migrate.errors import InvalidValue, MigrateError, SrBackendFailure, VdiInUse
from xapi_migrate.sm.datapath_state import DOMAIN, TARGET
from xapi_migrate.sm.interfaces import (
    ISR,
    Attachment,
    IMovesImages,
    IShowsImages,
    ISMDriver,
    Purpose,
    SRConfig,
    SRStat,
    VDIInfo,
)
from xapi_migrate.sm.services import SMServices
from xapi_migrate.sm.shared import SharedServices
from xapi_migrate.sm.sr_copying import CopiesImages
from xapi_migrate.sm.sr_moving import MovesImages
from xapi_migrate.sm.sr_serving import ServesImages


@implementer(ISR, IMovesImages, IShowsImages)
class Repository(ServesImages, CopiesImages, MovesImages):
    """One SR on this host: the SR, and the life of its VDIs."""

    # -- the SR

    async def attach(self) -> None:
        await self._backend.attach()
        await self._backend.vdi_keep(self._services.datapaths.of_sr(self.uuid))
        self._attached = True

    async def detach(self) -> None:
        for vdi in self._services.datapaths.of_sr(self.uuid):
            await self._tidied(vdi)
        for vdi in self._services.datapaths.of_sr(self.uuid):
            raise VdiInUse(vdi, "attached")
        await self._backend.detach()
        self._attached = False

    async def stat(self) -> SRStat:
        self._require_attached()
        return await self._backend.stat()

    # -- VDIs

    async def vdi_create(self, uuid: str, virtual_size: int) -> VDIInfo:
        self._require_attached()
        info = await self._backend.vdi_create(uuid, virtual_size)
        self._sizes[uuid] = info
        return info

    async def vdi_destroy(self, uuid: str) -> None:
        self._require_attached()
        await self._check_unused(uuid)
        await self._backend.vdi_destroy(uuid)
        self._sizes.pop(uuid, None)

    async def vdi_resize(self, uuid: str, virtual_size: int) -> VDIInfo:
        self._require_attached()
        await self._check_unused(uuid)
        if virtual_size < (await self._info(uuid)).virtual_size:
            raise InvalidValue("size", f"{virtual_size}: a VDI cannot be made smaller")
        self._sizes.pop(uuid, None)
        info = self._sizes[uuid] = await self._backend.vdi_resize(uuid, virtual_size)
        return info

    async def _check_unused(self, uuid: str) -> None:
        await self._tidied(uuid)
        if self._services.datapaths.get(uuid) is not None:
            raise VdiInUse(uuid, "attached")

    # -- the users of a VDI

    async def vdi_attach(self, uuid: str, purpose: Purpose, read_only: bool = False) -> Attachment:
        return (await self._attach(uuid, purpose.value, read_only)).attachment

    async def vdi_activate(self, uuid: str, purpose: Purpose = Purpose.DOMAIN) -> None:
        await self._services.datapaths.revived(uuid)
        await self._datapath(uuid).activate(purpose.value)

    async def vdi_deactivate(self, uuid: str, purpose: Purpose = Purpose.DOMAIN) -> None:
        await self._services.datapaths.revived(uuid)
        datapath = self._services.datapaths.get(uuid)
        if datapath is None:
            await self._services.datapaths.deactivate_dead(uuid, purpose.value)
            return
        copy = self._services.copies.of_vdi(uuid) if purpose is Purpose.DOMAIN else None
        if copy is None:
            await datapath.deactivate(purpose.value)
            if purpose is Purpose.DOMAIN:
                await self._finish_own_copies(uuid)
        else:
            # First nothing can be written any more, then the copy ends: FINISHED is final. The image, which only the
            # copy still holds, is closed behind.
            await copy.shielded(lambda: datapath.deactivate(DOMAIN))
            await copy.finish()

    async def vdi_detach(self, uuid: str, purpose: Purpose = Purpose.DOMAIN) -> None:
        try:
            await self.vdi_deactivate(uuid, purpose)
        except SrBackendFailure:
            datapath = self._services.datapaths.get(uuid)
            if datapath is not None and datapath.users.get(purpose.value):
                raise
            # It died meanwhile. What was started in its place is inactive.
        await self._tidied(uuid)
        await self._services.datapaths.detach(uuid, purpose.value)

    # -- the VDI's bytes as a file

    async def view_open(self, uuid: str) -> Path:
        await self._services.behind.done(uuid)
        datapath = await self._attach(uuid, TARGET)
        try:
            await datapath.activate(TARGET)
        except BaseException:
            await self._services.datapaths.detach(uuid, TARGET)
            raise
        return datapath.view

    async def view_close(self, uuid: str) -> None:
        await self._services.datapaths.detach(uuid, TARGET)


def open_repository(driver: ISMDriver, config: SRConfig, services: SMServices) -> Repository:
    """The SR of this record. InvalidValue, SrBackendFailure."""
    shared = SharedServices(services.reactor)
    try:
        backend = driver.open_sr(attrs.evolve(config, services=shared))
    except MigrateError:
        raise
    except Exception as failure:
        raise SrBackendFailure(f"opening SR {config.uuid}", f"{type(failure).__name__}: {failure}") from failure
    repository = Repository(config, backend, services, driver)
    shared.bind(repository)
    return repository
