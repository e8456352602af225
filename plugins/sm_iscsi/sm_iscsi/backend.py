"""One SR: a set of LUNs of one target. The first has the catalogue, each other is a VDI or free."""

from __future__ import annotations

import json
import re
import sys
import time
from typing import Any

import attrs
from zope.interface import implementer

from sm_iscsi.catalogue import Catalogue
from sm_iscsi.unready import Unready
from xapi_migrate.errors import InvalidValue, SrBackendFailure, SrFull, VdiMissing
from xapi_migrate.sm.interfaces import ImageNode, ISRBackend, SRStat, VDIInfo
from xapi_migrate.sm.optional import ISharedServices

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_PATIENCE = 30.0
_AT_ONCE = 1 << 30
"""Bytes that one command of qemu-io may write."""


@attrs.frozen
class Target:
    """Where the LUNs are; `portal` is ADDRESS:PORT."""

    portal: str
    target: str
    initiator: str
    username: str = ""
    password: str = attrs.field(default="", repr=False)

    def node(self, lun: int) -> dict[str, Any]:
        """A LUN as a block node of QEMU, without its secret."""
        options: dict[str, Any] = {
            "driver": "iscsi",
            "transport": "tcp",
            "portal": self.portal,
            "target": self.target,
            "lun": lun,
            "initiator-name": self.initiator,
        }
        return {**options, "user": self.username} if self.username else options


@implementer(ISRBackend)
class ISCSIBackend:
    """All state is on the target, so any number of hosts may have the SR."""

    def __init__(self, services: ISharedServices, uuid: str, target: Target, catalogue: int, luns: list[int]) -> None:
        self._services = services
        self._uuid = uuid
        self._target = target
        self._catalogue = catalogue
        self._luns = luns
        self._capacities: dict[int, int] = {}
        self._unready = Unready()

    async def attach(self) -> None:
        told = await self._ask("attaching it", {"do": "capacities", "luns": [self._catalogue, *self._luns]})
        capacities = {int(lun): capacity for lun, capacity in told["capacities"].items()}
        capacities.pop(self._catalogue)
        self._capacities = capacities
        if (await self._read()).turn == 0:
            await self._change("begin")

    async def detach(self) -> None:
        pass

    async def stat(self) -> SRStat:
        free = sum((await self._read()).free(self._capacities).values())
        total = sum(self._capacities.values())
        return SRStat(total, free, total - free, reserves=True)

    async def scan(self) -> list[VDIInfo]:
        table = await self._read()
        return [self._info(table, uuid) for uuid, entry in table.vdis.items() if entry.ready]

    async def vdi_create(self, uuid: str, virtual_size: int) -> VDIInfo:
        if not _UUID.fullmatch(uuid):
            raise InvalidValue("uuid", uuid)
        size = -(-virtual_size // 512) * 512
        table = await self._change("claim", uuid, size, self._capacities, time.time(), self._unready.stale())
        if not table.vdis[uuid].ready:
            try:
                await self._zero(table.vdis[uuid].lun, 0, size)
                table = await self._change("finish", uuid, size)
                self._entry(table, uuid)  # another host may have given it up
            except BaseException:
                await self._change("release", uuid)
                raise
        return self._info(table, uuid)

    async def vdi_destroy(self, uuid: str) -> None:
        if uuid in (await self._read()).vdis:
            await self._change("release", uuid)

    async def vdi_resize(self, uuid: str, virtual_size: int) -> VDIInfo:
        table = await self._read()
        entry = self._entry(table, uuid)
        capacity = self._capacities.get(entry.lun, 0)
        if virtual_size > capacity:
            raise SrFull(self._uuid, virtual_size, capacity)
        if virtual_size != entry.size:
            await self._zero(entry.lun, entry.size, virtual_size - entry.size)
            table = await self._change("finish", uuid, virtual_size)
        return self._info(table, uuid)

    async def vdi_location(self, uuid: str) -> ImageNode:
        entry = self._entry(await self._read(), uuid)
        secrets = {"password-secret": self._target.password} if self._target.username else {}
        return ImageNode(self._target.node(entry.lun), size=entry.size, secrets=secrets)

    async def nonce_write(self, name: str, value: str) -> None:
        await self._change("leave", name, value)

    async def nonce_read(self, name: str) -> str:
        return (await self._read()).nonces.get(name, "")

    # -- parts

    def _entry(self, table: Catalogue, uuid: str) -> Any:
        entry = table.vdis.get(uuid)
        if entry is None or not entry.ready:
            raise VdiMissing(self._uuid, uuid)
        return entry

    def _info(self, table: Catalogue, uuid: str) -> VDIInfo:
        entry = table.vdis[uuid]
        return VDIInfo(uuid, entry.size, self._capacities.get(entry.lun, entry.size))

    async def _zero(self, lun: int, offset: int, length: int) -> None:
        """By QEMU, which knows what a target can: it unmaps where what is unmapped reads as zeroes, else writes."""
        node = self._target.node(lun)
        secret: tuple[str, ...] = ()
        if self._target.username:
            node["password-secret"] = "account"
            secret = ("--object", "secret,id=account,file=/dev/stdin")
        options = ",".join(f"{key}={value}" for key, value in node.items())
        commands: list[str] = []
        for at in range(offset, offset + length, _AT_ONCE):
            commands += ("-c", f"write -q -z -u {at} {min(_AT_ONCE, offset + length - at)}")
        await self._services.run(
            ("qemu-io", *secret, "--image-opts", options, *commands, "-c", "flush"), self._target.password.encode()
        )

    async def _read(self) -> Catalogue:
        return self._unready.seen((await self._ask("reading its catalogue", {"do": "read"}))["catalogue"])

    async def _change(self, call: str, *arguments: Any) -> Catalogue:
        told = await self._ask("changing its catalogue", {"do": "change", "call": call, "with": arguments})
        if "full" in told:
            raise SrFull(self._uuid, arguments[1], told["full"])
        if "taken" in told:
            raise InvalidValue("virtual_size", f"{arguments[1]}: the VDI is there, with {told['taken']} bytes")
        return self._unready.seen(told["catalogue"])

    async def _ask(self, what: str, request: dict[str, Any]) -> dict[str, Any]:
        asked = {
            **request, "session": attrs.asdict(self._target), "catalogue": self._catalogue, "patience": _PATIENCE,
        }  # fmt: skip
        said = await self._services.run((sys.executable, "-m", "sm_iscsi.lun_io"), json.dumps(asked).encode())
        told: dict[str, Any] = json.loads(said)
        what = f"SR {self._uuid} ({what})"
        if "error" in told:
            raise SrBackendFailure(what, told["error"])
        if "foreign" in told:
            raise SrBackendFailure(what, f"LUN {self._catalogue} holds something else: it has to be all zeroes")
        return told
