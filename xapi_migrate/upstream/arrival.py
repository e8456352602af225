"""A VM that is received for the upstream: what was made of it there, and what has to become of that.

What is made at the upstream bears a mark, the migration's id: VDIs from VDI.create on, the VM from its import on. A
file here says for which SRs and with whose session, written before the first of them is made. So whatever was made is
found again, also where the answer was lost.

Until COMMIT the VM is a template, because no toolstack starts one, and an import takes that over in one step
(blocked_operations it does not). Soon after it is locked by blocked_operations as well.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
from twisted.logger import Logger

from ..errors import MigrateError, OperationNotAllowed, RemoteError
from .client import UpstreamClient
from .lease import BLOCKED
from .notes import Notes
from .reading import MARK, OURS

HIDDEN = "HideFromXenCenter"
RECEIVING, IMPORTING, ARRIVED, GIVEN_UP = "receiving", "importing", "arrived", "given up"
IMPORT_SECONDS = 600.0
"""An import that has not ended after so long will not: its request never came."""

log = Logger()


@attrs.define
class Arrival:
    """`id` is the migration's, `uuid` the VM's. `state`: receiving (VDIs are made), importing (the VM may be there),
    arrived (COMMIT is written), given up. `blocked`: the operations that its owner has blocked. `rehearsal`: the task
    of the import that is only tried. `task`: that of the import, begun at the second `begun` of the host's clock. `vm`:
    its ref at the upstream, once that is known."""

    id: str
    uuid: str
    session: str = attrs.field(repr=False)
    srs: list[str]
    blocked: dict[str, str]
    state: str = RECEIVING
    task: str = ""
    begun: float = 0.0
    vm: str = ""
    rehearsal: str = ""

    @property
    def reason(self) -> str:
        return f"{OURS} it is being received from another host ({self.id})"


class Arrivals:
    """All of them; their files are in `folder`."""

    def __init__(self, client: UpstreamClient, folder: Path, clock: Any) -> None:
        self._client = client
        self._clock = clock
        self._notes = Notes(folder, Arrival)
        self._settling: set[str] = set()
        self._sessions: dict[str, str] = {}
        """By ids: the session of who came while another's was being tried."""
        self.waiting: dict[str, str] = {}
        """By the ids of those that the upstream was to be told of and could not be yet: why."""
        self.known = self._notes.known
        self.load = self._notes.load
        self.save = self._notes.save
        self.unreadable = self._notes.leftovers

    async def lock(self, arrival: Arrival) -> None:
        """Find the VM that was imported and lock it. UpstreamSilent, RemoteError."""
        found = await self._find(arrival, arrival.session)
        if found is None:
            raise RemoteError(["IMPORT_ERROR", "no VM"], f"VM {arrival.uuid} is not there after its import")
        arrival.vm = found[0]
        await self.save(arrival)
        locked = dict.fromkeys(BLOCKED, arrival.reason)
        await self._client.call("VM.set_blocked_operations", arrival.session, arrival.vm, locked)

    async def settle(self, arrival: Arrival, session: str = "") -> bool:
        """Hand the VM to its owner, or remove all of it; by `session`, or that of VM.receive. False: it could not be
        done yet, or is just being done: where that fails it is tried again by this session. Never anything for a VM of
        which nothing is decided."""
        if arrival.state not in (ARRIVED, GIVEN_UP):
            return False
        if arrival.id in self._settling:
            self._sessions[arrival.id] = session
            return False
        why = await self._try(arrival, session or arrival.session)
        while why and (next_one := self._sessions.pop(arrival.id, "")):
            why = await self._try(arrival, next_one)
        self._sessions.pop(arrival.id, None)
        if why:
            self.waiting[arrival.id] = why
            log.warn("The toolstack's VM {vm} waits: {why}", vm=arrival.uuid, why=why)
        return not why

    async def _try(self, arrival: Arrival, session: str) -> str:
        """`conclude`; why it could not be done, "" if it was."""
        try:
            await self.conclude(arrival, session)
        except RemoteError as refusal:
            return refusal.failure()[0]  # not its whole text: it may name the session
        except (MigrateError, OSError) as failure:
            return str(failure)
        return ""

    async def conclude(self, arrival: Arrival, session: str) -> None:
        """Hand the VM to its owner, or remove all of it: only where that is decided. RemoteError, UpstreamSilent,
        OSError, OperationNotAllowed: it could not be done yet."""
        assert arrival.state in (ARRIVED, GIVEN_UP), arrival.id
        if arrival.id in self._settling:
            raise OperationNotAllowed(f"The toolstack is just being told what becomes of VM {arrival.uuid}.")
        self._settling.add(arrival.id)
        try:
            if arrival.state == ARRIVED:
                await self._hand_over(arrival, session)
            else:
                await self._remove(arrival, session)
            await self._notes.forget(arrival)
            self.waiting.pop(arrival.id, None)
        finally:
            self._settling.discard(arrival.id)

    async def there(self, arrival: Arrival, session: str) -> list[str]:
        """What was made of it at the upstream and is there now, for people. RemoteError, UpstreamSilent."""
        found = await self._find(arrival, session)
        vdis = [vdi for sr in arrival.srs for vdi in await self._vdis(arrival, session, sr)]
        vms = [] if found is None else [f"the {'template' if found[1].get('is_a_template') else 'VM'} {arrival.uuid}"]
        return vms + [f"VDI {await self._client.call('VDI.get_uuid', session, vdi)!s:.60}" for vdi in vdis]

    async def settle_all(self, session: str = "") -> None:
        """Whatever can be settled now."""
        for arrival in list(self.known.values()):
            await self.settle(arrival, session)

    async def _hand_over(self, arrival: Arrival, session: str) -> None:
        """The mark goes last: as long as it is there, all this may be repeated."""
        found = await self._find(arrival, session)
        if found is None:
            log.info("The toolstack's VM {vm} is its owner's", vm=arrival.uuid)
            return
        vm, record = found
        for sr in arrival.srs:
            for vdi in await self._vdis(arrival, session, sr):
                await self._client.tolerant("VDI.remove_from_other_config", session, vdi, MARK)
        if record.get("is_a_template"):
            await self._client.call("VM.set_is_a_template", session, vm, False)
        blocked = record.get("blocked_operations") or {}
        others = {operation: why for operation, why in blocked.items() if why != arrival.reason}
        if others != blocked:
            await self._client.call("VM.set_blocked_operations", session, vm, {**arrival.blocked, **others})
        for key in (HIDDEN, MARK):
            await self._client.call("VM.remove_from_other_config", session, vm, key)

    async def _remove(self, arrival: Arrival, session: str) -> None:
        """OperationNotAllowed while the import may still be under way."""
        if arrival.rehearsal:
            await self._client.tolerant("task.destroy", session, arrival.rehearsal)
        if not await self._import_is_over(arrival, session):
            raise OperationNotAllowed(
                f"The toolstack may still be importing VM {arrival.uuid}: its task is pending. After"
                f" {IMPORT_SECONDS / 60:.0f} minutes it is not waited for any more."
            )
        found = await self._find(arrival, session)
        if found is not None:
            await self._destroy(arrival, session, found[0])
        for sr in arrival.srs:
            for vdi in await self._vdis(arrival, session, sr):
                await self._client.tolerant("VDI.destroy", session, vdi)

    async def _destroy(self, arrival: Arrival, session: str, vm: str) -> None:
        """Nobody starts it meanwhile. One that is Suspended is Halted before, which takes its image along, and for
        which it may have to be no template."""
        locked = {one: arrival.reason for one in BLOCKED if one not in ("destroy", "hard_shutdown")}
        await self._client.tolerant("VM.set_blocked_operations", session, vm, locked)
        try:
            await self._client.tolerant("VM.destroy", session, vm)
        except RemoteError as refusal:
            if refusal.failure()[0] != "VM_BAD_POWER_STATE":
                raise
            await self._client.call("VM.set_is_a_template", session, vm, False)
            await self._client.call("VM.hard_shutdown", session, vm)
            await self._client.tolerant("VM.destroy", session, vm)

    async def _import_is_over(self, arrival: Arrival, session: str) -> bool:
        if not arrival.task:
            return True
        try:
            status = await self._client.call("task.get_status", session, arrival.task)
        except RemoteError as refusal:
            if refusal.failure()[0] == "HANDLE_INVALID":
                return True
            raise
        if status == "pending" and self._clock.seconds() < arrival.begun + IMPORT_SECONDS:
            return False
        await self._client.tolerant("task.destroy", session, arrival.task)
        return True

    async def _find(self, arrival: Arrival, session: str) -> tuple[str, dict[str, Any]] | None:
        """The VM's ref and record, if it is there and the one that this migration has brought."""
        try:
            vm = await self._client.call("VM.get_by_uuid", session, arrival.uuid)
            record = await self._client.call("VM.get_record", session, vm)
        except RemoteError as refusal:
            if refusal.failure()[0] in ("UUID_INVALID", "HANDLE_INVALID"):
                return None
            raise
        if not isinstance(record, dict):
            return None
        marked = (record.get("other_config") or {}).get(MARK) == arrival.id
        locked = arrival.reason in (record.get("blocked_operations") or {}).values()
        return (str(vm), record) if marked or locked else None

    async def _vdis(self, arrival: Arrival, session: str, sr: str) -> list[str]:
        """Those in an SR that bear this mark."""
        found = await self._client.call("VDI.get_all_records_where", session, f'field "SR" = "{sr}"')
        records = found.items() if isinstance(found, dict) else ()
        return [
            vdi for vdi, one in records
            if isinstance(one, dict) and one.get("SR") == sr and (one.get("other_config") or {}).get(MARK) == arrival.id
        ]  # fmt: skip
