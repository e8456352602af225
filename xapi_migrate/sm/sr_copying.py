"""An SR at the sender: its VDIs are copied into the receiver's (steps 3.1 to 4.5)."""

from __future__ import annotations

import secrets
from typing import Any

from twisted.internet.defer import DeferredLock

from xapi_migrate.errors import CopyFailed, HandleInvalid, MigrateError, VdiInUse
from xapi_migrate.sm.copy import CANCELLED, Copy, reason
from xapi_migrate.sm.copy_account import CopyOf
from xapi_migrate.sm.datapath_state import COPY
from xapi_migrate.sm.interfaces import CopyState, CopyStatus, ISMDriver, SameDiskProof, SRConfig, TargetUrl
from xapi_migrate.sm.optional import ICopyTask
from xapi_migrate.sm.same_disk import read_identity
from xapi_migrate.sm.services import SMServices
from xapi_migrate.sm.sr_images import SRImages


class CopiesImages(SRImages):
    """The part of ISR that is about copies: `vdi_copy` and `copy_*`."""

    def __init__(self, config: SRConfig, backend: Any, services: SMServices, driver: ISMDriver | None = None) -> None:
        super().__init__(config, backend, services, driver)
        self._own_copies: dict[str, tuple[str, ICopyTask]] = {}
        """Those that the backend makes by itself: the VDI and the copy, by ref."""
        self._answering = DeferredLock()

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
        except (MigrateError, OSError) as failure:
            if not copy.over:
                copy.end_at_once(CopyStatus(CopyState.FAILED, error=reason(failure)))
        except BaseException:
            # cancelled before it had begun: there is nobody else who would end it
            if not copy.over:
                copy.end_at_once(CopyStatus(CopyState.FAILED, error=CANCELLED))
            raise
        return copy

    async def copy_state(self, ref: str) -> CopyStatus:
        if ref in self._own_copies:
            return self._backend.copy_status(*self._own_copies[ref])
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

    async def _finish_own_copies(self, uuid: str) -> None:
        """No domain writes to the VDI any more: the backend's own copies of it end."""
        for vdi, own in self._own_copies.values():
            if vdi == uuid:
                await self._backend.within(f"finishing the copy of VDI {uuid}", own.finish)

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
        await self._answer(proof)
        size = (await self._info(vdi)).virtual_size
        return CopyStatus(CopyState.FINISHED, size, size, same_disk=True)

    async def _answer(self, proof: SameDiskProof) -> None:
        """Once for all disks of the migration, which look at the same time."""
        await self._answering.acquire()
        try:
            if await self._backend.nonce_read(proof.seen) != proof.value:
                await self._backend.nonce_write(proof.seen, proof.value)
        finally:
            self._answering.release()
