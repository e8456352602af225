"""One directory of image files. File calls run in threads, for NFS may be slow; qemu-img in a child process."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

from twisted.internet import threads
from zope.interface import implementer

from sm_file.images import SUFFIX, builds_on_another, format_of, info_of, make_sparse
from xapi_migrate.errors import InvalidValue, SrBackendFailure, SrFull, VdiMissing
from xapi_migrate.processes.in_thread import in_thread
from xapi_migrate.refusals import SrOperationNotSupported
from xapi_migrate.sm.interfaces import ImageFormat, ImageLocation, ISRBackend, SRStat, VDIInfo
from xapi_migrate.sm.optional import ISharedServices

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_DRAFT = ".new"
_FORGOTTEN = 3600.0
"""Seconds after which a draft is not one that another host is just making."""
_NONCE = re.compile(r"[0-9a-f-]{1,64}")


@implementer(ISRBackend)
class FileBackend:
    """The files are the only state: nothing is kept in memory, so several hosts may share the directory."""

    def __init__(
        self, services: ISharedServices, uuid: str, location: Path, format: ImageFormat, size_limit: int
    ) -> None:
        self._services = services
        self._uuid = uuid
        self._location = location
        self._format = format
        self._limit = size_limit

    async def attach(self) -> None:
        if not await threads.deferToThread(os.access, self._location, os.W_OK | os.X_OK):
            raise SrBackendFailure(f"attaching SR {self._uuid}", f"{self._location} is no directory one can write to")
        await in_thread(self._remove_drafts)

    async def detach(self) -> None:
        pass

    async def stat(self) -> SRStat:
        return await threads.deferToThread(self._stat)

    async def scan(self) -> list[VDIInfo]:
        return await threads.deferToThread(self._scan)

    async def vdi_create(self, uuid: str, virtual_size: int) -> VDIInfo:
        if not _UUID.fullmatch(uuid):
            raise InvalidValue("uuid", uuid)
        size = -(-virtual_size // 512) * 512
        present = await threads.deferToThread(self._find, uuid)
        if present is not None:
            info: VDIInfo = await threads.deferToThread(info_of, present)
            if info.virtual_size != size:
                raise InvalidValue("virtual_size", str(virtual_size))
            return info  # a repeat
        await self._check_room(size)
        path = self._location / f"{uuid}{SUFFIX[self._format]}"
        draft = path.with_suffix(_DRAFT)
        try:
            if self._format is ImageFormat.RAW:
                await in_thread(make_sparse, draft, size)
            else:
                # without force_size a VHD is as large as a geometry of cylinders, heads and sectors
                extra = ("-o", "subformat=dynamic,force_size=on") if self._format is ImageFormat.VHD else ()
                await self._qemu_img("create", "-q", "-f", self._format.value, *extra, str(draft), str(size))
            await in_thread(draft.rename, path)
        finally:
            await in_thread(draft.unlink, missing_ok=True)
        return VDIInfo(uuid, size)

    async def vdi_destroy(self, uuid: str) -> None:
        path = await threads.deferToThread(self._find, uuid)
        if path is not None:
            await threads.deferToThread(path.unlink, missing_ok=True)

    async def vdi_resize(self, uuid: str, virtual_size: int) -> VDIInfo:
        path = await threads.deferToThread(self._find, uuid)
        if path is None:
            raise VdiMissing(self._uuid, uuid)
        format = format_of(path)
        if format is ImageFormat.VHD:  # qemu-img cannot
            raise SrOperationNotSupported(self._uuid, "VDI.resize of a VHD")
        before: VDIInfo = await threads.deferToThread(info_of, path)
        if before.virtual_size != virtual_size:
            await self._check_room(virtual_size - before.virtual_size)
            await self._qemu_img("resize", "-q", "-f", format.value, str(path), str(virtual_size))
        after: VDIInfo = await threads.deferToThread(info_of, path)
        return after

    async def vdi_location(self, uuid: str) -> ImageLocation:
        path = await threads.deferToThread(self._find, uuid)
        if path is None:
            raise VdiMissing(self._uuid, uuid)
        if await threads.deferToThread(builds_on_another, path):
            raise SrBackendFailure(f"VDI {uuid}", f"the image {path} builds on another")
        return ImageLocation(path, format_of(path))

    async def nonce_write(self, name: str, value: str) -> None:
        await threads.deferToThread(self._write_nonce, self._nonce(name), value)

    async def nonce_read(self, name: str) -> str:
        text: str = await threads.deferToThread(_read_text, self._nonce(name))
        return text

    # -- in threads

    def _remove_drafts(self) -> None:
        """Of images that a killed daemon was making."""
        for draft in self._location.glob(f"*{_DRAFT}"):
            try:
                if _UUID.fullmatch(draft.stem) and time.time() - draft.stat().st_mtime > _FORGOTTEN:
                    draft.unlink(missing_ok=True)
            except OSError:
                continue  # another host was quicker, or may do what this one may not

    def _stat(self) -> SRStat:
        found = self._scan()
        if self._limit:
            used = sum(info.virtual_size for info in found)
            return SRStat(self._limit, max(0, self._limit - used), used, reserves=True)
        there = os.statvfs(self._location)
        used = sum(info.used for info in found)
        return SRStat(there.f_blocks * there.f_frsize, there.f_bavail * there.f_frsize, used)

    def _scan(self) -> list[VDIInfo]:
        found = []
        for path in sorted(self._location.iterdir()):
            if path.suffix in SUFFIX.values() and _UUID.fullmatch(path.stem):
                try:
                    found.append(info_of(path))
                except (OSError, ValueError):
                    continue  # gone meanwhile, or no image
        return found

    def _find(self, uuid: str) -> Path | None:
        if not _UUID.fullmatch(uuid):
            return None
        paths = (self._location / f"{uuid}{suffix}" for suffix in SUFFIX.values())
        return next((path for path in paths if path.exists()), None)

    def _nonce(self, name: str) -> Path:
        if not _NONCE.fullmatch(name):
            raise InvalidValue("nonce", name)
        return self._location / "nonces" / name

    def _write_nonce(self, path: Path, value: str) -> None:
        if value:
            path.parent.mkdir(exist_ok=True)
            draft = path.with_suffix(_DRAFT)
            draft.write_text(value)
            draft.replace(path)
        else:
            path.unlink(missing_ok=True)

    async def _check_room(self, size: int) -> None:
        free = (await self.stat()).free
        if size > free:
            raise SrFull(self._uuid, size, free)

    async def _qemu_img(self, *arguments: str) -> None:
        await self._services.run(("qemu-img", *arguments))


def _read_text(path: Path) -> str:
    try:
        return path.read_text()
    except FileNotFoundError:
        return ""
