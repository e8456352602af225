"""host.*, network.* and what else clients ask of the host before they do anything."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from xapi_migrate.errors import OperationNotAllowed
from xapi_migrate.store.records import Records
from xapi_migrate.toolstack.this_host import free_memory
from xapi_migrate.xenapi.calls import CallContext
from xapi_migrate.xenapi.tasks import Tasks


class HostCalls:
    def __init__(self, records: Records, tasks: Tasks) -> None:
        self._records = records
        self._tasks = tasks

    def host_get_servertime(self, call: CallContext, host: str) -> datetime:
        return self._tasks.now()

    def host_compute_free_memory(self, call: CallContext, host: str) -> int:
        return free_memory()

    def host_set_license_params(self, call: CallContext, self_: str, value: dict[str, str]) -> None:
        raise OperationNotAllowed("There is no licence to change.")

    def network_create(self, call: CallContext, args: dict[str, Any]) -> str:
        return self._records.create("network", **args)

    def network_destroy(self, call: CallContext, self_: str) -> None:
        record = self._records.get("network", self_)
        if record["VIFs"] or record["PIFs"]:
            raise OperationNotAllowed(f"The network {self_} has VIFs or PIFs.")
        self._records.destroy("network", self_)
