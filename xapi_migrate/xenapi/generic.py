"""The calls that every class has, out of the data model: accessors of fields, records, look-ups."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from types import MappingProxyType
from typing import Any

from xapi_migrate.errors import FieldTypeError, MapDuplicateKey, UuidInvalid
from xapi_migrate.store.interfaces import IRecords, Record
from xapi_migrate.xenapi.calls import Call, CallContext
from xapi_migrate.xenapi.datamodel import DataModel, Message, ModelClass
from xapi_migrate.xenapi.kept import Kept
from xapi_migrate.xenapi.query import parse_query
from xapi_migrate.xenapi.types import Kind

SECRET = frozenset({"session"})
"""Classes whose objects are found by nobody who does not know their reference."""

PLAIN: dict[str, tuple[str, ...]] = {
    "VM": (
        "other_config", "platform", "blocked_operations", "VCPUs_max", "VCPUs_at_startup", "memory_static_max",
        "memory_static_min", "memory_dynamic_max", "memory_dynamic_min", "order", "start_delay", "shutdown_delay",
        "actions_after_crash", "HVM_boot_policy", "has_vendor_device", "domain_type", "is_default_template",
    ),
    "VDI": ("name_label", "name_description", "sharable", "read_only", "on_boot"),
    "SR": ("name_label", "name_description", "shared"),
    "VBD": ("mode",),
}  # fmt: skip
"""Fields whose accessors the data model describes one by one, though they do no more than the others."""

Run = Callable[..., Any]
Check = Callable[[str, Any], None]
"""Raises if the object of this ref may not have this value in a field."""


def _without_internal(record: Record) -> Record:
    return MappingProxyType({name: value for name, value in record.items() if name[0] != "_"})


_visible = Kept(_without_internal)


def visible(record: Record) -> Record:
    """A record as clients see it: without what is internal."""
    return _visible(record)


class GenericCalls:
    """Looks at a message's name and class, and makes what carries it out, if it is one of these."""

    def __init__(self, model: DataModel, records: IRecords) -> None:
        self._model = model
        self._records = records
        self.checks: dict[tuple[str, str], Check] = {}
        """What has to be looked at before clients change a field: (class, field) -> check."""

    def all(self) -> Iterator[Call]:
        """Every generic call of the data model."""
        for cls in self._model.classes.values():
            for message in cls.messages.values():
                run = self._object(cls, message) or self._accessor(cls, message)
                if run is not None:
                    yield Call(message, run)

    def _object(self, cls: ModelClass, message: Message) -> Run | None:
        name = cls.name
        made: dict[str, Run] = {
            "get_record": lambda call, ref: visible(self._records.get(name, ref)),
            "get_all": lambda call: self._refs(name),
            "get_all_records": lambda call: {r: visible(self._records.get(name, r)) for r in self._refs(name)},
            "get_by_uuid": lambda call, uuid: self._by_uuid(name, uuid),
            "get_by_name_label": lambda call, label: self._records.find(name, name_label=label),
            "get_all_where": lambda call, expr: [ref for ref, _ in self._where(name, expr)],
            "get_all_records_where": lambda call, expr: dict(self._where(name, expr)),
        }
        return made.get(message.name) if message.kind == "object" else None

    def _refs(self, cls: str) -> list[str]:
        return [] if cls in SECRET else self._records.refs(cls)

    def _by_uuid(self, cls: str, uuid: str) -> str:
        if cls in SECRET:
            raise UuidInvalid(cls, uuid)
        return self._records.by_uuid(cls, uuid)

    def _where(self, cls: str, expression: str) -> Iterator[tuple[str, Record]]:
        holds = parse_query(expression)
        for ref in self._refs(cls):
            record = self._records.get(cls, ref)
            if holds(record):
                yield ref, visible(record)

    def _accessor(self, cls: ModelClass, message: Message) -> Run | None:
        """get_ of all fields; the others of those that clients set."""
        changers: dict[str, Run] = {
            "set_": self._set,
            "add_to_": self._add_to_map,
            "remove_from_": self._remove_from_map,
            "add_": self._add_to_set,
            "remove_": self._remove_from_set,
        }
        read = cls.fields.get(message.name.removeprefix("get_")) if message.name.startswith("get_") else None
        if read is not None and len(message.params) == 1:
            return partial(self._get, cls.name, read.name)
        for prefix, run in changers.items():
            field = cls.fields.get(message.name.removeprefix(prefix)) if message.name.startswith(prefix) else None
            if field is None or (message.kind != "field" and field.name not in PLAIN.get(cls.name, ())):
                continue
            of_map = prefix in ("add_to_", "remove_from_")
            if prefix == "set_" or of_map == (field.type.kind is Kind.MAP):
                return partial(run, cls.name, field.name)
        return None

    def _get(self, cls: str, field: str, call: CallContext, ref: str) -> Any:
        return self._records.get(cls, ref)[field]

    def _change(self, cls: str, field: str, ref: str, value: Any) -> None:
        check = self.checks.get((cls, field))
        if check is not None:
            check(ref, value)
        self._records.update(cls, ref, **{field: value})

    def _set(self, cls: str, field: str, call: CallContext, ref: str, value: Any) -> None:
        self._change(cls, field, ref, value)

    def _add_to_map(self, cls: str, field: str, call: CallContext, ref: str, key: Any, value: Any) -> None:
        record = self._records.get(cls, ref)
        if key in record[field]:
            raise MapDuplicateKey(cls, field, record["uuid"], str(key))
        self._change(cls, field, ref, {**record[field], key: value})

    def _remove_from_map(self, cls: str, field: str, call: CallContext, ref: str, key: Any) -> None:
        known = self._records.get(cls, ref)[field]
        self._change(cls, field, ref, {k: v for k, v in known.items() if k != key})

    def _add_to_set(self, cls: str, field: str, call: CallContext, ref: str, value: Any) -> None:
        known = self._records.get(cls, ref)[field]
        if not isinstance(known, list):
            raise FieldTypeError(field)
        if value not in known:
            self._change(cls, field, ref, [*known, value])

    def _remove_from_set(self, cls: str, field: str, call: CallContext, ref: str, value: Any) -> None:
        known = self._records.get(cls, ref)[field]
        self._change(cls, field, ref, [item for item in known if item != value])
