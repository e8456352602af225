"""One disk's way to another SR, under its VM."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
from twisted.internet import task
from twisted.logger import Logger

from xapi_migrate.errors import CopyFailed, HandleInvalid, MigrateError
from xapi_migrate.sm.interfaces import ISR, IMovesImages, MoveState
from xapi_migrate.store.records import Records
from xapi_migrate.toolstack.storage import Storage
from xapi_migrate.toolstack.undertaking import TurnedBack

POLL_SECONDS = 0.2
_KEPT = (
    "name_label", "name_description", "type", "sharable", "read_only", "other_config", "xenstore_data", "on_boot",
    "tags", "is_tools_iso",
)  # fmt: skip
"""What of a VDI's record goes with it."""


@attrs.frozen
class Plan:
    """One disk: its VM, its VDI's uuid and SR, the fresh VDI's uuid and SR (SRs by their uuids)."""

    task: str
    vm: str
    vdi: str
    sr: str
    to: str
    to_sr: str


class MotionWork:
    """A Kind of undertaking."""

    log = Logger()
    call = "VDI.pool_migrate"
    undone = "the disk is where it was."

    def __init__(self, records: Records, storage: Storage, clock: Any) -> None:
        self._records = records
        self._storage = storage
        self._clock = clock

    async def copy(self, plan: Plan, size: int, progress: Callable[[float], None]) -> None:
        """Before the decision: a fresh VDI of `size` bytes, and the mirror into it until both images are equal.
        `progress` is told 0..1. CopyFailed, SrFull, SrBackendFailure."""
        vdi = self._records.get("VDI", self._ref("VDI", plan.vdi))
        fields = {name: vdi[name] for name in _KEPT}
        await self._storage.create_vdi(self._ref("SR", plan.to_sr), plan.to, size, **fields)
        mover, other = self._sr(plan.sr), self._storage.sr(plan.to_sr)
        await mover.move_begin(plan.vdi, other, plan.to)
        while True:
            now = await mover.move_status(plan.vdi, other, plan.to)
            if now.state is MoveState.READY:
                await mover.move_settle(plan.vdi, other, plan.to)
                return
            if now.state is not MoveState.COPYING:
                raise CopyFailed(plan.vdi, now.error or "its mirror ended")
            progress(now.copied / max(1, now.total))
            await task.deferLater(self._clock, POLL_SECONDS)

    async def finish(self, plan: Plan) -> str:
        """The new image is the disk: pivot, records, and the end of the old VDI. The new VDI's ref."""
        try:
            await self._sr(plan.sr).move_pivot(plan.vdi, self._storage.sr(plan.to_sr), plan.to)
        except CopyFailed as failure:
            # the process is there and has the old image: an error of the new one ended the mirror
            raise TurnedBack(failure) from failure
        to = self._ref("VDI", plan.to)
        for old in self._records.find("VDI", uuid=plan.vdi):
            for vbd in list(self._records.get("VDI", old)["VBDs"]):
                self._records.update("VBD", vbd, VDI=to)
            for vm in self._records.find("VM", suspend_VDI=old):
                self._records.update("VM", vm, suspend_VDI=to)
            # the old image may go only when no restart can lead back to it
            await self._records.flush()
            try:
                await self._storage.destroy_vdi(old)
            except MigrateError as why:
                self.log.warn(
                    "VDI {vdi} has moved to SR {sr}, and what was left of it stays: {why}",
                    vdi=plan.vdi, sr=plan.to_sr, why=why,
                )  # fmt: skip
        return to

    async def undo(self, plan: Plan) -> None:
        """The VM has its old disk; nothing is left of the new one."""
        await self._sr(plan.sr).move_cancel(plan.vdi, self._storage.sr(plan.to_sr), plan.to)
        known = self._records.find("VDI", uuid=plan.to)
        if known:
            await self._storage.destroy_vdi(known[0])
        else:
            await self._storage.sr(plan.to_sr).vdi_destroy(plan.to)

    def _ref(self, cls: str, uuid: str) -> str:
        """HandleInvalid."""
        found = self._records.find(cls, uuid=uuid)
        if not found:
            raise HandleInvalid(cls, uuid)
        return found[0]

    def _sr(self, uuid: str) -> Any:
        """An IMovesImages."""
        sr: ISR = self._storage.sr(uuid)
        return IMovesImages(sr)
