"""One directory of image files. Slow file calls run in threads, qemu-img in a child process."""

from __future__ import annotations

import os
import re
from pathlib import Path

from twisted.internet import threads
from twisted.internet.utils import getProcessOutputAndValue
from zope.interface import implementer

from xapi_migrate.errors import InvalidValue, SrBackendFailure, SrFull, VdiMissing
from xapi_migrate.sm.interfaces import ImageFormat, ImageLocation, ISRBackend, SRStat, VDIInfo

SUFFIX = {ImageFormat.RAW: ".raw", ImageFormat.QCOW2: ".qcow2"}
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_NONCE = re.compile(r"[0-9a-f-]{1,64}")
_QCOW2_MAGIC = b"QFI\xfb"


@implementer(ISRBackend)
class FileBackend:
    """The files are the only state: nothing is kept in memory, so several hosts may share the directory."""

    def __init__(self, uuid: str, location: Path, format: ImageFormat, size_limit: int) -> None:
        self._uuid = uuid
        self._location = location
        self._format = format
        self._limit = size_limit

    async def attach(self) -> None:
        if not await threads.deferToThread(os.access, self._location, os.W_OK | os.X_OK):
            raise SrBackendFailure(f"attaching SR {self._uuid}", f"{self._location} is no directory one can write to")

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
            info: VDIInfo = await threads.deferToThread(_info, present)
            if info.virtual_size != size:
                raise InvalidValue("virtual_size", str(virtual_size))
            return info  # a repeat
        free = (await self.stat()).free
        if size > free:
            raise SrFull(self._uuid, size, free)
        path = self._location / f"{uuid}{SUFFIX[self._format]}"
        draft = path.with_suffix(".new")
        try:
            if self._format is ImageFormat.RAW:
                await threads.deferToThread(_make_sparse, draft, size)
            else:
                await self._qemu_img("create", "-q", "-f", self._format.value, str(draft), str(size))
            await threads.deferToThread(draft.rename, path)
        finally:
            await threads.deferToThread(draft.unlink, missing_ok=True)
        return VDIInfo(uuid, size)

    async def vdi_destroy(self, uuid: str) -> None:
        path = await threads.deferToThread(self._find, uuid)
        if path is not None:
            await threads.deferToThread(path.unlink, missing_ok=True)

    async def vdi_location(self, uuid: str) -> ImageLocation:
        path = await threads.deferToThread(self._find, uuid)
        if path is None:
            raise VdiMissing(self._uuid, uuid)
        return ImageLocation(path, _format_of(path))

    async def nonce_write(self, name: str, value: str) -> None:
        await threads.deferToThread(self._write_nonce, self._nonce(name), value)

    async def nonce_read(self, name: str) -> str:
        text: str = await threads.deferToThread(_read_text, self._nonce(name))
        return text

    # -- in threads

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
                    found.append(_info(path))
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
            draft = path.with_suffix(".new")
            draft.write_text(value)
            draft.replace(path)
        else:
            path.unlink(missing_ok=True)

    async def _qemu_img(self, *arguments: str) -> None:
        out, err, code = await getProcessOutputAndValue("qemu-img", arguments, os.environ)
        if code:
            reason = (err or out).decode("utf-8", "replace").strip()
            raise SrBackendFailure(f"SR {self._uuid} (qemu-img {arguments[0]})", reason or f"exit code {code}")


def _format_of(path: Path) -> ImageFormat:
    return next(format for format, suffix in SUFFIX.items() if suffix == path.suffix)


def _info(path: Path) -> VDIInfo:
    """Size from the file itself: raw is as long as it is, qcow2 says it in its header (ValueError if it has none)."""
    there = path.stat()
    size = there.st_size
    if _format_of(path) is ImageFormat.QCOW2:
        with path.open("rb") as file:
            header = file.read(32)
        if header[:4] != _QCOW2_MAGIC:
            raise ValueError(f"{path} is not qcow2")
        size = int.from_bytes(header[24:32], "big")
    return VDIInfo(path.stem, size, there.st_blocks * 512, not os.access(path, os.W_OK))


def _make_sparse(path: Path, size: int) -> None:
    with path.open("wb") as file:
        file.truncate(size)


def _read_text(path: Path) -> str:
    try:
        return path.read_text()
    except FileNotFoundError:
        return ""
