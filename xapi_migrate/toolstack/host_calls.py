"""host.*, network.* and what else clients ask of the host before they do anything."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

from xapi_migrate.errors import OperationNotAllowed
from xapi_migrate.store.records import Records
from xapi_migrate.toolstack.networks import Networks
from xapi_migrate.xenapi.calls import CallContext
from xapi_migrate.xenapi.tasks import Tasks


class HostCalls:
    """Of a pool of one host. `free_memory`: its hypervisor's, in bytes."""

    def __init__(self, records: Records, networks: Networks, tasks: Tasks, free_memory: Callable[[], int]) -> None:
        self._free_memory = free_memory
        self._records = records
        self._networks = networks
        self._tasks = tasks

    def host_get_servertime(self, call: CallContext, host: str) -> datetime:
        return self._tasks.now()

    def host_compute_free_memory(self, call: CallContext, host: str) -> int:
        return self._free_memory()

    def host_set_license_params(self, call: CallContext, self_: str, value: dict[str, str]) -> None:
        raise OperationNotAllowed("There is no licence to change.")

    def host_get_server_localtime(self, call: CallContext, host: str) -> datetime:
        return self._tasks.now()

    def host_compute_memory_overhead(self, call: CallContext, host: str) -> int:
        return 0

    def host_has_extension(self, call: CallContext, host: str, name: str) -> bool:
        return False

    def host_get_data_sources(self, call: CallContext, host: str) -> list[Any]:
        return []

    # -- pool, role -------------------------------------------------------------------------------

    def pool_is_slave(self, call: CallContext, host: str) -> bool:
        return False

    def pool_get_license_state(self, call: CallContext, self_: str) -> dict[str, str]:
        return {"edition": "free", "expiry": "never"}

    def role_get_permissions(self, call: CallContext, self_: str) -> list[str]:
        self._records.get("role", self_)
        return []

    def role_get_permissions_name_label(self, call: CallContext, self_: str) -> list[str]:
        return self.role_get_permissions(call, self_)

    # -- network ----------------------------------------------------------------------------------

    async def network_create(self, call: CallContext, args: dict[str, Any]) -> str:
        return await self._networks.create(**args)

    async def network_destroy(self, call: CallContext, self_: str) -> None:
        await self._networks.destroy(self_)
