"""One disk's way to another SR, under its VM."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
from twisted.internet import task
from twisted.logger import Logger

from xapi_migrate.domains.interfaces import DomainState, IDomainDriver
from xapi_migrate.errors import CopyFailed, HandleInvalid, SrNotAttached
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
    """One disk: its VM, its VDI's uuid and SR, the fresh VDI's uuid and SR (SRs by their uuids). `domain` the VM's, if
    it has one, and whether that `runs`."""

    task: str
    vm: str
    vdi: str
    sr: str
    to: str
    to_sr: str
    domain: str = ""
    runs: bool = False
    given_up: str = ""


class MotionWork:
    """A Kind of undertaking."""

    log = Logger()
    call, operation = "VDI.pool_migrate", "migrate_send"
    undone = "the disk is where it was."

    def __init__(self, records: Records, storage: Storage, domains: IDomainDriver, clock: Any) -> None:
        self._records = records
        self._storage = storage
        self._domains = domains
        self._clock = clock

    async def copy(self, plan: Plan, size: int, progress: Callable[[float], None]) -> None:
        """Before the decision: a fresh VDI of `size` bytes, and the mirror into it until both images are equal. Then
        the guest stands still, and both are flushed. `progress` is told 0..1. CopyFailed, SrFull, SrBackendFailure,
        DomainError."""
        vdi = self._records.get("VDI", self._ref("VDI", plan.vdi))
        fields = {name: vdi[name] for name in _KEPT}
        await self._storage.create_vdi(self._ref("SR", plan.to_sr), plan.to, size, **fields)
        await self._records.flush()  # whoever finishes this after a crash must find the record
        mover, other = self._sr(plan.sr), self._storage.sr(plan.to_sr)
        await mover.move_begin(plan.vdi, other, plan.to)
        while True:
            now = await mover.move_status(plan.vdi, other, plan.to)
            if now.state is MoveState.READY:
                break
            if now.state is not MoveState.COPYING:
                raise CopyFailed(plan.vdi, now.error or "its mirror ended")
            progress(now.copied / max(1, now.total))
            await task.deferLater(self._clock, POLL_SECONDS)
        # The most of it while the guest runs.
        await mover.move_settle(plan.vdi, other, plan.to)
        # From here until the pivot no flush may be answered: it would reach one image only.
        await self._hold(plan)
        await mover.move_settle(plan.vdi, other, plan.to)
        now = await mover.move_status(plan.vdi, other, plan.to)
        if now.state is not MoveState.READY:
            raise CopyFailed(plan.vdi, now.error or "its mirror ended")

    async def finish(self, plan: Plan) -> str:
        """The new image is the disk: pivot, and records. The new VDI's ref."""
        to = self._ref("VDI", plan.to)
        try:
            await self._sr(plan.sr).move_pivot(plan.vdi, self._other(plan), plan.to)
        except CopyFailed as failure:
            # the process is there and has the old image: an error of the new one ended the mirror
            raise TurnedBack(failure) from failure
        await self._release(plan)
        for old in self._records.find("VDI", uuid=plan.vdi):
            for vbd in list(self._records.get("VDI", old)["VBDs"]):
                self._records.update("VBD", vbd, VDI=to)
            for vm in self._records.find("VM", suspend_VDI=old):
                self._records.update("VM", vm, suspend_VDI=to)
        # the old image may go only when no restart can lead back to it
        await self._records.flush()
        return to

    async def undo(self, plan: Plan) -> None:
        """The VM has its old disk."""
        await self._release(plan)
        await self._sr(plan.sr).move_cancel(plan.vdi, self._other(plan), plan.to)

    async def clear(self, plan: Plan, decided: bool) -> None:
        """The image that is not the disk goes; the old one not before the SR of the new one is there."""
        if decided and self._records.find("SR", uuid=plan.to_sr):
            self._storage.sr(plan.to_sr)
        uuid, sr = (plan.vdi, plan.sr) if decided else (plan.to, plan.to_sr)
        try:
            for vdi in self._records.find("VDI", uuid=uuid):
                if self._records.get("VDI", vdi)["VBDs"] or self._records.find("VM", suspend_VDI=vdi):
                    self.log.warn("VDI {vdi} stays: a VM has it for its disk", vdi=uuid)
                else:
                    await self._storage.destroy_vdi(vdi)
                return
            if not decided:
                await self._storage.sr(sr).vdi_destroy(uuid)
        except HandleInvalid:
            pass  # its SR was forgotten

    async def withdraw(self, plan: Plan, decided: bool) -> None:
        """The VM has its old disk, and may have written to it."""
        if not decided:
            await self._sr(plan.sr).move_cancel(plan.vdi, self._other(plan), plan.to)

    # -- the guest

    async def _hold(self, plan: Plan) -> None:
        if plan.runs and await self._domains.state(plan.domain) is DomainState.RUNNING:
            await self._domains.pause(plan.domain)

    async def _release(self, plan: Plan) -> None:
        if plan.runs and await self._domains.state(plan.domain) is DomainState.PAUSED:
            await self._domains.unpause(plan.domain)

    # -- names

    def _ref(self, cls: str, uuid: str) -> str:
        """HandleInvalid."""
        found = self._records.find(cls, uuid=uuid)
        if not found:
            raise HandleInvalid(cls, uuid)
        return found[0]

    def _sr(self, uuid: str) -> Any:
        """An IMovesImages. SrNotAttached."""
        sr: ISR = self._storage.sr(uuid)
        return IMovesImages(sr)

    def _other(self, plan: Plan) -> ISR | None:
        """None: it is not attached."""
        try:
            return self._storage.sr(plan.to_sr)
        except (SrNotAttached, HandleInvalid):
            return None
