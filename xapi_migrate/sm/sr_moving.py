"""An SR whose images are exchanged under a running domain (storage motion)."""

from __future__ import annotations

from twisted.internet import defer

from xapi_migrate.errors import CopyFailed, SrBackendFailure
from xapi_migrate.sm.datapath import Datapath
from xapi_migrate.sm.datapath_state import MOVE
from xapi_migrate.sm.gate import ImageNodes
from xapi_migrate.sm.interfaces import ISR, MoveStatus
from xapi_migrate.sm.move import ImageMove, tidy_up
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

    async def move_pivot(self, uuid: str, other: ISR | None, to: str) -> None:
        datapath = self._services.datapaths.get(uuid)
        if datapath is not None and MOVE in datapath.users:
            move = await self._move(datapath, other, to)
            try:
                await move.pivot()
            except SrBackendFailure:
                if not await self._died(datapath):
                    raise
        moved = self._services.datapaths.get(to)
        if moved is not None and MOVE in moved.users:
            await tidy_up(self._services.reactor, moved, ImageNodes(moved.of.turn - 1))
        await self._services.datapaths.images.detach(self.uuid, uuid)
        await self._services.datapaths.detach(to, MOVE)

    async def move_cancel(self, uuid: str, other: ISR | None, to: str) -> None:
        datapath = self._services.datapaths.get(uuid)
        if datapath is not None and MOVE in datapath.users:
            move = await self._move(datapath, other, to)
            try:
                await move.cancel()
            except (CopyFailed, SrBackendFailure):
                if not await self._died(datapath):
                    raise
        await self._services.datapaths.detach(uuid, MOVE)
        if other is not None:
            await self._services.datapaths.images.detach(other.uuid, to)

    async def _died(self, datapath: Datapath) -> bool:
        """Whether it is gone: the connection to a process ends a little before the process does."""
        ended = datapath.daemon.child.ended()
        try:
            await ended.addTimeout(1.0, self._services.reactor)
        except defer.TimeoutError:
            return False
        return True

    async def _move(self, datapath: Datapath, other: ISR | None, to: str) -> ImageMove:
        if other is None:
            raise SrBackendFailure(f"VDI {to}", "its SR is not attached to this host")
        if not isinstance(other, SRImages):
            raise SrBackendFailure(f"SR {other.uuid}", "its images cannot take the place of others")
        of = await other.datapath_of(to, datapath.of.read_only)
        services = self._services
        return ImageMove(services.reactor, services.datapaths, datapath, of, services.timeouts)
