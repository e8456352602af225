"""One volume group. LVM's metadata is the only state: what is a VDI, and how large, its tags say.

    lvcreate, tagged as a draft --> zeroes are written over it --> tagged with its size: a VDI

A logical volume is made of whole extents, the size that was asked for is kept beside it; it is active only while a
datapath of this host uses it.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from twisted.internet import threads
from twisted.logger import Logger
from zope.interface import implementer

from sm_lvm.commands import LIMIT, run
from sm_lvm.reports import FORMAT, GROUP_FIELDS, VOLUME_FIELDS, Group, Volume, read_group, read_volumes
from xapi_migrate.errors import InvalidValue, SrBackendFailure, SrFull, VdiMissing
from xapi_migrate.sm.flushing import flush
from xapi_migrate.sm.interfaces import IAttachesVDIs, ImageFormat, ImageLocation, ISRBackend, SRStat, VDIInfo

SIZE = "xapi_migrate.size="
DRAFT = "xapi_migrate.draft="
NONCE = "xapi_migrate.nonce/"
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_NONCE = re.compile(r"[0-9a-f-]{1,64}")
_STEP = 128 << 20
_SLOWEST = 4 << 20
"""Bytes per second of zeroes below which a disk is taken for dead."""


@implementer(ISRBackend, IAttachesVDIs)
class LVMBackend:
    """`pool` "": a VDI takes its whole size from the group; else it is a thin volume of that pool."""

    log = Logger()

    def __init__(self, uuid: str, group: str, pool: str) -> None:
        self._uuid = uuid
        self._name = group
        self._pool = pool

    # -- the SR

    async def attach(self) -> None:
        missing = (await self._group()).missing
        if missing:
            reason = f"{missing} of the physical volumes of {self._name} are missing"
            raise SrBackendFailure(f"attaching SR {self._uuid}", reason)
        if self._pool:
            await self._find_pool()

    async def detach(self) -> None:
        pass

    async def stat(self) -> SRStat:
        return await self._stat(await self._group())

    async def _stat(self, group: Group) -> SRStat:
        if not self._pool:
            return SRStat(group.size, group.free, group.size - group.free)
        # what the pool has promised counts, not what is written by now: a guest never meets a full pool
        pool = await self._find_pool()
        promised = sum(volume.size for volume in await self._volumes() if volume.pool == self._pool)
        return SRStat(pool.size, max(0, pool.size - promised), min(pool.size, promised))

    async def scan(self) -> list[VDIInfo]:
        return [info for volume in await self._volumes() if (info := _vdi(volume)) is not None]

    # -- VDIs

    async def vdi_create(self, uuid: str, virtual_size: int) -> VDIInfo:
        size = -(-virtual_size // 512) * 512
        if not _UUID.fullmatch(uuid):
            raise InvalidValue("uuid", uuid)
        present = await self._find(uuid)
        if present is not None and (info := _vdi(present)) is not None:
            if info.virtual_size != size:
                raise InvalidValue("virtual_size", str(virtual_size))
            return info  # a repeat
        if present is not None:
            if present.tagged(DRAFT) is None:
                raise SrBackendFailure(f"SR {self._uuid}", f"{self._name}/{uuid} is there and is no VDI")
            await self._remove(uuid)
        if size <= 0:
            raise InvalidValue("virtual_size", str(virtual_size))
        group = await self._group()
        free = (await self._stat(group)).free
        if -(-size // group.extent) * group.extent > free:
            raise SrFull(self._uuid, size, free)
        try:
            await self._make(uuid, size)
        except BaseException:
            try:
                if await self._find(uuid) is not None:
                    await self._remove(uuid)
            except SrBackendFailure as failure:  # the first failure is the one to tell
                self.log.warn("{failure}", failure=str(failure))
            raise
        return VDIInfo(uuid, size)

    async def vdi_destroy(self, uuid: str) -> None:
        if await self._ours(uuid) is not None:
            await self._remove(uuid)

    async def vdi_location(self, uuid: str) -> ImageLocation:
        volume = await self._ours(uuid)
        info = None if volume is None else _vdi(volume)
        if volume is None or info is None:
            raise VdiMissing(self._uuid, uuid)
        limit = 0 if info.virtual_size == volume.size else info.virtual_size
        return ImageLocation(Path(volume.path), ImageFormat.RAW, limit)

    async def vdi_attach(self, uuid: str) -> None:
        await self.vdi_location(uuid)
        await self._activate(uuid)

    async def vdi_detach(self, uuid: str) -> None:
        volume = await self._ours(uuid)
        if volume is not None and volume.active:
            await self._deactivate(uuid)

    async def vdi_keep(self, uuids: list[str]) -> None:
        here = _this_host()
        for volume in await self._volumes():
            try:
                if volume.tagged(DRAFT) == here:
                    await self._remove(volume.name)  # its creation was cut off
                elif _vdi(volume) is not None and volume.active and volume.name not in uuids:
                    await self._deactivate(volume.name)
            except SrBackendFailure as failure:  # somebody has it open; that is no reason to do without the SR
                self.log.warn("{failure}", failure=str(failure))

    # -- nonces: tags of the group, a value as hexadecimal digits

    async def nonce_write(self, name: str, value: str) -> None:
        prefix = _nonce(name)
        old = [tag for tag in (await self._group()).tags if tag.startswith(prefix)]
        new = [prefix + value.encode().hex()] if value else []
        if old != new:
            change = [f"--deltag={tag}" for tag in old if tag not in new] + [f"--addtag={tag}" for tag in new]
            await self._lvm("vgchange", *change, self._name)

    async def nonce_read(self, name: str) -> str:
        prefix = _nonce(name)
        for tag in (await self._group()).tags:
            if tag.startswith(prefix):
                return bytes.fromhex(tag.removeprefix(prefix)).decode()
        return ""

    # -- parts

    async def _make(self, uuid: str, size: int) -> None:
        made, done = ("--name", uuid, "--activate", "n"), SIZE + str(size)
        if self._pool:  # a thin volume reads as zeroes
            thin = ("--type", "thin", "--thinpool", self._pool, "--virtualsize", f"{size}b")
            await self._lvm("lvcreate", "--yes", *made, *thin, "--addtag", done, self._name)
            return
        draft = DRAFT + _this_host()
        thick = ("--type", "linear", "--size", f"{size}b", "--zero", "n", "--wipesignatures", "n")
        await self._lvm("lvcreate", "--yes", *made, *thick, "--addtag", draft, self._name)
        await self._zero(uuid)
        await self._lvm("lvchange", "--deltag", draft, "--addtag", done, f"{self._name}/{uuid}")

    async def _zero(self, uuid: str) -> None:
        """Write zeroes over what others left on these extents. A discard would not do: what is read afterwards
        is not defined."""
        volume = await self._find(uuid)
        if volume is None:
            raise VdiMissing(self._uuid, uuid)
        await self._activate(uuid)
        try:
            limit = LIMIT + volume.size / _SLOWEST
            await run(self._uuid, "blkdiscard", "--zeroout", "--step", str(_STEP), volume.path, limit=limit)
            await threads.deferToThread(flush, Path(volume.path))
        finally:
            await self._deactivate(uuid)

    async def _activate(self, uuid: str) -> None:
        # shared, where a lock daemon guards the group: both hosts of a migration have it for a while, and only one of
        # them opens it. LVM takes it for a plain "y" elsewhere. Thin volumes can be active on one host only.
        await self._lvm("lvchange", "--activate", "ey" if self._pool else "sy", f"{self._name}/{uuid}")

    async def _deactivate(self, uuid: str) -> None:
        await self._lvm("lvchange", "--activate", "n", f"{self._name}/{uuid}")

    async def _remove(self, uuid: str) -> None:
        await self._lvm("lvremove", "--yes", f"{self._name}/{uuid}")

    async def _ours(self, uuid: str) -> Volume | None:
        """A VDI or the draft of one."""
        volume = await self._find(uuid)
        return volume if volume is not None and (volume.tagged(SIZE) or volume.tagged(DRAFT)) else None

    async def _find(self, uuid: str) -> Volume | None:
        if not _UUID.fullmatch(uuid):
            return None
        return next((volume for volume in await self._volumes() if volume.name == uuid), None)

    async def _find_pool(self) -> Volume:
        pool = next((volume for volume in await self._volumes() if volume.name == self._pool), None)
        if pool is None:
            raise SrBackendFailure(f"SR {self._uuid}", f"{self._name} has no thin pool {self._pool}")
        if not pool.zeroes:
            reason = f"the thin pool {self._pool} gives out blocks with old content; lvchange --zero y is needed"
            raise SrBackendFailure(f"SR {self._uuid}", reason)
        return pool

    async def _volumes(self) -> list[Volume]:
        answer = await self._lvm("lvs", *FORMAT, "--options", VOLUME_FIELDS, self._name)
        try:
            return read_volumes(answer)
        except ValueError as failure:
            raise self._not_understood("lvs", failure) from failure

    async def _group(self) -> Group:
        answer = await self._lvm("vgs", *FORMAT, "--options", GROUP_FIELDS, self._name)
        try:
            return read_group(answer)
        except ValueError as failure:
            raise self._not_understood("vgs", failure) from failure

    def _not_understood(self, command: str, failure: ValueError) -> SrBackendFailure:
        return SrBackendFailure(f"SR {self._uuid} (lvm {command})", f"its answer is not understood: {failure}")

    async def _lvm(self, command: str, *arguments: str) -> str:
        return await run(self._uuid, "lvm", command, *arguments)


def _vdi(volume: Volume) -> VDIInfo | None:
    """None for a volume that is none, or not yet."""
    size = volume.tagged(SIZE) or ""
    if not _UUID.fullmatch(volume.name) or not size.isdecimal() or not 0 < int(size) <= volume.size:
        return None
    return VDIInfo(volume.name, int(size), volume.used)


def _nonce(name: str) -> str:
    if not _NONCE.fullmatch(name):
        raise InvalidValue("nonce", name)
    return f"{NONCE}{name}="


def _this_host() -> str:
    """This host in a tag, which may have few characters only."""
    return re.sub(r"[^A-Za-z0-9_.-]", "_", os.uname().nodename)
