"""An SR whose images are exchanged under a running domain (storage motion)."""

from __future__ import annotations

from xapi_migrate.errors import SrBackendFailure
from xapi_migrate.sm.datapath import Datapath
from xapi_migrate.sm.datapath_state import MOVE
from xapi_migrate.sm.interfaces import ISR, MoveStatus
from xapi_migrate.sm.move import ImageMove
from xapi_migrate.sm.sr_images import SRImages


class MovesImages(SRImages):
    """IMovesImages."""

    async def move_begin(self, uuid: str, other: ISR, to: str) -> None:
        datapath = await self._attach(uuid, MOVE)
        try:
            await datapath.activate(MOVE)
            move = await self._move(datapath, other, to)
            await self._services.datapaths.images.attach(other.uuid, to)
            await move.begin()
        except BaseException:
            await self._services.datapaths.detach(uuid, MOVE)
            await self._services.datapaths.images.detach(other.uuid, to)
            raise

    async def move_status(self, uuid: str, other: ISR, to: str) -> MoveStatus:
        return await (await self._move(self._datapath(uuid), other, to)).status()

    async def move_settle(self, uuid: str, other: ISR, to: str) -> None:
        await (await self._move(self._datapath(uuid), other, to)).settle()

    async def move_pivot(self, uuid: str, other: ISR, to: str) -> None:
        datapath = self._services.datapaths.get(uuid)
        if datapath is not None and MOVE in datapath.users:
            await (await self._move(datapath, other, to)).pivot()
        await self._services.datapaths.images.detach(self.uuid, uuid)
        await self._services.datapaths.detach(to, MOVE)

    async def move_cancel(self, uuid: str, other: ISR, to: str) -> None:
        datapath = self._services.datapaths.get(uuid)
        if datapath is not None and MOVE in datapath.users:
            await (await self._move(datapath, other, to)).cancel()
        await self._services.datapaths.detach(uuid, MOVE)
        await self._services.datapaths.images.detach(other.uuid, to)

    async def _move(self, datapath: Datapath, other: ISR, to: str) -> ImageMove:
        if not isinstance(other, SRImages):
            raise SrBackendFailure(f"SR {other.uuid}", "its images cannot take the place of others")
        of = await other.datapath_of(to, datapath.of.read_only)
        services = self._services
        return ImageMove(services.reactor, services.datapaths, datapath, of, services.timeouts)
