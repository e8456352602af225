"""VM.receive and VM.migrate (steps 1.2 and 1.4): the engine's calls as clients see them."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Protocol

from xapi_migrate.store.interfaces import IRecords
from xapi_migrate.xenapi.calls import CallContext
from xapi_migrate.xenapi.tasks import Task


class MigrationEngine(Protocol):
    """What these calls need of the engine."""

    def receive(self, sr: str, options: dict[str, str], user: str) -> Awaitable[list[str]]:
        """The offer's URIs."""

    def migrate(
        self, vm: str, uris: list[str], vdi_to_sr: dict[str, str], options: dict[str, str], task: Task
    ) -> Awaitable[str]:
        """The VM's ref when it has moved."""


class MigrationCalls:
    def __init__(self, records: IRecords, engine: MigrationEngine) -> None:
        self._records = records
        self._engine = engine

    async def VM_receive(self, call: CallContext, sr: str, options: dict[str, str]) -> list[str]:
        return await self._engine.receive(sr, options, call.user)

    async def VM_migrate(
        self, call: CallContext, vm: str, uris: list[str], vdi_sr_map: dict[str, str], options: dict[str, str]
    ) -> str:
        record = self._records.get("VM", vm)
        # by these two XenCenter shows the progress of a migration that another client began
        call.task.set_other("XenCenterMeddlingActionTitle", f"Migrating {record['name_label'] or record['uuid']}")
        call.task.set_other("applies_to", ",".join(filter(_real, (vm, record["resident_on"]))))
        return await self._engine.migrate(vm, uris, vdi_sr_map, options, call.task)


def _real(ref: str) -> bool:
    return ref != "OpaqueRef:NULL"
