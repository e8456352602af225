"""The SM API of one attached SR, made out of a storage backend and the host's shared services.

A backend that has `vdi_get_url`, `vdi_close_url` or `vdi_copy` of its own (`sm/optional.py`) is asked first.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import attrs
from twisted.internet import threads
from twisted.logger import Logger
from zope.interface import implementer

from xapi_migrate.errors import (
    CopyFailed,
    HandleInvalid,
    InvalidValue,
    MigrateError,
    SrBackendFailure,
    SrNotAttached,
    VdiInUse,
    VdiMissing,
)
from xapi_migrate.sm.copy import Copy, CopyOf
from xapi_migrate.sm.datapath import COPY, DOMAIN, MOVE, TARGET, Datapath, DatapathOf
from xapi_migrate.sm.datapaths import ImageCalls
from xapi_migrate.sm.guarded import GuardedBackend
from xapi_migrate.sm.interfaces import (
    ISR,
    Attachment,
    CopyState,
    CopyStatus,
    ImageNode,
    IMovesImages,
    IShowsImages,
    ISMDriver,
    MoveStatus,
    Purpose,
    SameDiskProof,
    SRConfig,
    SRStat,
    TargetUrl,
    VDIInfo,
)
from xapi_migrate.sm.iscsi_target import migration_id
from xapi_migrate.sm.move import ImageMove
from xapi_migrate.sm.optional import ICopyTask
from xapi_migrate.sm.same_disk import read_identity
from xapi_migrate.sm.services import SMServices
from xapi_migrate.sm.shared import SharedServices


@implementer(ISR, IMovesImages, IShowsImages)
class Repository:
    """One SR on this host."""

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
            services.datapaths.images_of(self.uuid, ImageCalls(self._backend.vdi_attach, self._image_detach))
        self._own_urls: set[tuple[str, str]] = set()
        """(migration, VDI) that the backend serves itself. Not kept over a restart: the migration is then aborted."""
        self._own_copies: dict[str, tuple[str, ICopyTask]] = {}
        """Those that the backend makes by itself: the VDI and the copy, by ref."""

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

    async def scan(self) -> list[VDIInfo]:
        self._require_attached()
        found = await self._backend.scan()
        self._sizes = {info.uuid: info for info in found}
        return found

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

    async def vdi_attach(self, uuid: str, purpose: Purpose, read_only: bool = False) -> Attachment:
        return (await self._attach(uuid, purpose.value, read_only)).attachment

    async def vdi_activate(self, uuid: str, purpose: Purpose = Purpose.DOMAIN) -> None:
        await self._services.datapaths.revived(uuid)
        await self._datapath(uuid).activate(purpose.value)

    async def vdi_deactivate(self, uuid: str, purpose: Purpose = Purpose.DOMAIN) -> None:
        await self._services.datapaths.revived(uuid)
        datapath = self._services.datapaths.get(uuid)
        if datapath is None:
            return
        copy = self._services.copies.of_vdi(uuid) if purpose is Purpose.DOMAIN else None
        if copy is None:
            await datapath.deactivate(purpose.value)
            for vdi, own in self._own_copies.values():
                if vdi == uuid and purpose is Purpose.DOMAIN:
                    await self._backend.within(f"finishing the copy of VDI {uuid}", own.finish)
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

    # -- the receiving side of a copy

    async def vdi_get_url(self, uuid: str, migration: str, address: str, secure: bool = False) -> TargetUrl:
        own = await self._backend.vdi_get_url(uuid, migration, address, secure)
        if own is None:
            return await self.serve(uuid, migration, address, secure)
        self._own_urls.add((migration, uuid))
        return own

    async def serve(self, uuid: str, migration: str, address: str, secure: bool) -> TargetUrl:
        """The shared services' vdi_get_url."""
        await self._services.behind.done(uuid)
        datapath = await self._attach(uuid, TARGET)
        try:
            await datapath.activate(TARGET)
            serve = self._serve(secure)
            if datapath.of.keeps_discarded:
                serve = partial(self._services.nbd.add, holes=False)
            url = await serve(migration, uuid, datapath.view, address, scsi_id=uuid)
            if datapath.of.node is None:  # what has no file here may be on storage that hangs
                self._services.flushing.begin(uuid, Path(datapath.of.path))
            return url
        except BaseException:
            await self._services.datapaths.detach(uuid, TARGET)
            raise

    async def vdi_dummy_url(
        self, uuid: str, virtual_size: int, migration: str, address: str, secure: bool = False
    ) -> TargetUrl:
        self._require_attached()
        path = self._dummy(migration, uuid)
        await threads.deferToThread(_make_sparse, path, virtual_size)
        try:
            return await self._serve(secure)(migration, uuid, path, address, scsi_id=self.uuid, read_only=True)
        except BaseException:
            path.unlink(missing_ok=True)
            raise

    async def vdi_close_url(self, uuid: str, migration: str) -> None:
        await self._backend.vdi_close_url(uuid, migration)
        self._own_urls.discard((migration, uuid))
        await self.end_serving(uuid, migration)

    async def end_serving(self, uuid: str, migration: str) -> None:
        """The shared services' vdi_close_url."""
        services = self._services
        services.flushing.end(uuid)
        await services.iscsi.close_lun(migration, uuid)
        await services.nbd.close(migration, uuid)
        self._dummy(migration, uuid).unlink(missing_ok=True)
        await services.behind.done(uuid)

        async def tidy() -> None:
            try:
                await services.datapaths.detach(uuid, TARGET)  # whether or not the target can be removed
            finally:
                await services.iscsi.tidy(migration)

        datapath = services.datapaths.get(uuid)
        if datapath is not None and DOMAIN in datapath.users:
            # A guest may be waiting for this disk, and nothing writes to it any more.
            await datapath.end_view()
            services.behind.later(uuid, tidy)
        else:
            await tidy()

    async def vdi_is_served(self, uuid: str, migration: str) -> bool:
        if (migration, uuid) in self._own_urls:
            return True
        services = self._services
        if not (services.iscsi.serves(migration, uuid) or services.nbd.serves(migration, uuid)):
            return False
        if self._dummy(migration, uuid).exists():
            return True
        datapath = services.datapaths.get(uuid)
        return datapath is not None and TARGET in datapath.users

    async def same_disk_proof(self, migration: str) -> SameDiskProof:
        proof = SameDiskProof(migration_id(migration), secrets.token_hex(16))
        await self._backend.nonce_write(proof.name, proof.value)
        return proof

    async def forget_proof(self, migration: str) -> None:
        await self._backend.nonce_write(migration_id(migration), "")

    # -- the sending side

    async def vdi_copy(
        self, uuid: str, url: TargetUrl, ref: str, proof: SameDiskProof | None, force_copy: bool = False
    ) -> None:
        if ref in self._own_copies:
            return
        own = await self._backend.vdi_copy(uuid, url, ref, proof, force_copy)
        if own is None:
            await self.begin_copy(uuid, url, ref, proof, force_copy)
        elif not isinstance(own, Copy):  # a shared one that it asked for is known already
            self._own_copies[ref] = (uuid, own)

    async def begin_copy(
        self, uuid: str, url: TargetUrl, ref: str, proof: SameDiskProof | None, force_copy: bool
    ) -> Copy:
        """The shared services' vdi_copy."""
        copies = self._services.copies
        try:
            return copies.get(ref)
        except HandleInvalid:
            pass
        await copies.tidied(uuid)
        if copies.of_vdi(uuid) is not None:
            raise VdiInUse(uuid, "another copy")
        await self._info(uuid)
        copy = copies.new(CopyOf(ref, self.uuid, uuid))
        try:
            status = await self._same_disk(copy, url, proof, force_copy)
            if status is not None:
                copy.end_at_once(status)
            else:
                await self._begin(copy, url)
        except MigrateError as failure:
            if not copy.over:
                copy.end_at_once(CopyStatus(CopyState.FAILED, error=str(failure)))
        except BaseException:
            # cancelled before it had begun: there is nobody else who would end it
            if not copy.over:
                copy.end_at_once(CopyStatus(CopyState.FAILED, error="cancelled"))
            raise
        return copy

    async def copy_state(self, ref: str) -> CopyStatus:
        if ref in self._own_copies:
            return self._own_copies[ref][1].status
        return self._services.copies.get(ref).status

    async def copy_replace(self, ref: str, url: TargetUrl) -> None:
        if ref in self._own_copies:
            vdi, own = self._own_copies[ref]
            await self._backend.within(f"redirecting the copy of VDI {vdi}", own.replace, url)
        else:
            await self._services.copies.get(ref).replace(url)

    async def copy_finish(self, ref: str) -> None:
        if ref in self._own_copies:
            vdi, own = self._own_copies[ref]
            await self._backend.within(f"finishing the copy of VDI {vdi}", own.finish)
            return
        copy = self._services.copies.get(ref)
        await copy.finish()
        await copy.tidied()  # no guest is waiting

    async def copy_cancel(self, ref: str) -> None:
        vdi, own = self._own_copies.get(ref, ("", None))
        if own is not None:
            await self._backend.within(f"cancelling the copy of VDI {vdi}", own.cancel)
            self._own_copies.pop(ref, None)
        await self._services.copies.forget(ref)

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

    # -- storage motion

    async def move_begin(self, uuid: str, other: ISR, to: str) -> None:
        datapath = await self._attach(uuid, MOVE)
        try:
            await datapath.activate(MOVE)
            move = await self._move(datapath, other, to)
            await self._services.datapaths.image_attach(other.uuid, to)
            await move.begin()
        except BaseException:
            await self._services.datapaths.detach(uuid, MOVE)
            await self._services.datapaths.image_detach(other.uuid, to)
            raise

    async def move_status(self, uuid: str, other: ISR, to: str) -> MoveStatus:
        return await (await self._move(self._datapath(uuid), other, to)).status()

    async def move_settle(self, uuid: str, other: ISR, to: str) -> None:
        await (await self._move(self._datapath(uuid), other, to)).settle()

    async def move_pivot(self, uuid: str, other: ISR, to: str) -> None:
        datapath = self._services.datapaths.get(uuid)
        if datapath is not None and MOVE in datapath.users:
            await (await self._move(datapath, other, to)).pivot()
        await self._services.datapaths.image_detach(self.uuid, uuid)
        await self._services.datapaths.detach(to, MOVE)

    async def move_cancel(self, uuid: str, other: ISR, to: str) -> None:
        datapath = self._services.datapaths.get(uuid)
        if datapath is not None and MOVE in datapath.users:
            await (await self._move(datapath, other, to)).cancel()
        await self._services.datapaths.detach(uuid, MOVE)
        await self._services.datapaths.image_detach(other.uuid, to)

    async def _move(self, datapath: Datapath, other: ISR, to: str) -> ImageMove:
        if not isinstance(other, Repository):
            raise SrBackendFailure(f"SR {other.uuid}", "its images cannot take the place of others")
        of = await other.datapath_of(to, datapath.of.read_only)
        services = self._services
        return ImageMove(services.reactor, services.datapaths, datapath, of, services.timeouts)

    # -- parts

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

    async def _image_detach(self, uuid: str) -> None:
        try:
            await self._backend.vdi_detach(uuid)
        except MigrateError as failure:  # nobody uses it any more: nothing that waits for this is at stake
            self.log.warn("VDI {vdi} stays attached to its storage: {reason}", vdi=uuid, reason=str(failure))

    def _serve(self, secure: bool) -> Callable[..., Awaitable[TargetUrl]]:
        return self._services.nbd.add if secure else self._services.iscsi.add_lun

    async def _begin(self, copy: Copy, url: TargetUrl) -> None:
        datapath = await self._attach(copy.of.vdi, COPY)
        try:
            await datapath.activate(COPY)
        except BaseException:
            await self._services.datapaths.detach(copy.of.vdi, COPY)
            raise
        await copy.begin(datapath, url)

    async def _same_disk(
        self, copy: Copy, url: TargetUrl, proof: SameDiskProof | None, force_copy: bool
    ) -> CopyStatus | None:
        """The copy's end when there is nothing to copy into, None when it is to be copied. CopyFailed."""
        vdi = copy.of.vdi
        try:
            lun = await read_identity(self._services.reactor, copy.folder, vdi, url, self._services.timeouts)
        except ValueError as failure:
            raise CopyFailed(vdi, str(failure)) from failure
        if lun.serial != vdi:
            return None
        # A LUN with the serial of this very VDI is one that the receiver found: read-only, nothing to copy into.
        if force_copy or proof is None:
            raise CopyFailed(vdi, "the other host has a VDI of this uuid and offers nothing to copy into")
        if self.uuid not in lun.ids:
            raise CopyFailed(
                vdi, "the other host has a VDI of this uuid in another SR: is its storage a clone of this?"
            )
        found = await self._backend.nonce_read(proof.name)
        if not secrets.compare_digest(found.encode(), proof.value.encode()):
            raise CopyFailed(
                vdi,
                f"the other host has SR {self.uuid} too, but what it left there cannot be read here: "
                "the two are clones, not the same storage",
            )
        size = (await self._info(vdi)).virtual_size
        return CopyStatus(CopyState.FINISHED, size, size, same_disk=True)

    async def _attach(self, uuid: str, user: str, read_only: bool = False) -> Datapath:
        return await self._services.datapaths.attach(await self.datapath_of(uuid, read_only), user)

    async def _tidied(self, uuid: str) -> None:
        """What was put off for this VDI while a guest waited is done."""
        await self._services.behind.done(uuid)
        await self._services.copies.tidied(uuid)

    def _datapath(self, uuid: str) -> Datapath:
        datapath = self._services.datapaths.get(uuid)
        if datapath is None:
            raise SrBackendFailure(f"VDI {uuid}", "it is not attached")
        return datapath

    async def _info(self, uuid: str) -> VDIInfo:
        if uuid not in self._sizes:
            await self.scan()
        if uuid not in self._sizes:
            raise VdiMissing(self.uuid, uuid)
        return self._sizes[uuid]

    def _dummy(self, migration: str, uuid: str) -> Path:
        return self._services.state_dir / "tgt" / f"dummy-{migration_id(migration)}-{uuid}"

    def _require_attached(self) -> None:
        if not self._attached:
            raise SrNotAttached(self.uuid)


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


def _make_sparse(path: Path, size: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with path.open("wb") as file:
        file.truncate(size)
