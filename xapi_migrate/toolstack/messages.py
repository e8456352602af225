"""Messages to administrators: what happened to an object that nobody called for. And the calls that read them."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from xapi_migrate.store.interfaces import Record
from xapi_migrate.store.records import Records
from xapi_migrate.xenapi.calls import CallContext
from xapi_migrate.xenapi.generic import visible
from xapi_migrate.xenapi.query import parse_query
from xapi_migrate.xenapi.tasks import Tasks

KEPT = 1000
"""Older ones go."""


class Messages:
    """message.*"""

    def __init__(self, records: Records, tasks: Tasks) -> None:
        self._records = records
        self._tasks = tasks

    def tell(self, name: str, priority: int, cls: str, uuid: str, body: str) -> str:
        """A new message about the object `cls` with this uuid; its ref. `priority`: 1 is the most urgent, 5 the
        least."""
        for ref in self._oldest_first()[: 1 - KEPT]:
            self._records.destroy("message", ref)
        return self._records.create(
            "message", name=name, priority=priority, cls=cls, obj_uuid=uuid, body=body, timestamp=self._tasks.now()
        )

    def _oldest_first(self) -> list[str]:
        return sorted(
            self._records.refs("message"), key=lambda ref: str(self._records.get("message", ref)["timestamp"])
        )

    def _all(self) -> dict[str, Record]:
        return {ref: visible(self._records.get("message", ref)) for ref in reversed(self._oldest_first())}

    def message_destroy(self, call: CallContext, self_: str) -> None:
        self._records.get("message", self_)
        self._records.destroy("message", self_)

    def message_get_all(self, call: CallContext) -> list[str]:
        return list(self._all())

    def message_get_record(self, call: CallContext, self_: str) -> Record:
        return visible(self._records.get("message", self_))

    def message_get_by_uuid(self, call: CallContext, uuid: str) -> str:
        return self._records.by_uuid("message", uuid)

    def message_get_all_records(self, call: CallContext) -> dict[str, Any]:
        return self._all()

    def message_get_all_records_where(self, call: CallContext, expr: str) -> dict[str, Any]:
        holds = parse_query(expr)
        return {ref: record for ref, record in self._all().items() if holds(record)}

    def message_get(self, call: CallContext, cls: str, obj_uuid: str, since: datetime) -> dict[str, Any]:
        about = (cls, obj_uuid)
        found = self.message_get_since(call, since)
        return {ref: record for ref, record in found.items() if (record["cls"], record["obj_uuid"]) == about}

    def message_get_since(self, call: CallContext, since: datetime) -> dict[str, Any]:
        return {ref: record for ref, record in self._all().items() if record["timestamp"] >= since}
