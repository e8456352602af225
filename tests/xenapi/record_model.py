"""What the records are, told in the simplest way: forward fields in a dictionary, reverse sets looked up each time."""

from __future__ import annotations

import copy
from typing import Any

import attrs

from xapi_migrate.store.interfaces import NULL
from xapi_migrate.xenapi.datamodel import DataModel, Field

Object = tuple[str, str]
"""(class, ref)"""


def forget(value: Any, ref: str, new: str) -> Any:
    """`value` with `new` wherever it names `ref`; NULL takes what names it out of sets and maps."""
    if isinstance(value, list):
        items = [forget(item, ref, new) for item in value]
        return [item for item, old in zip(items, value, strict=True) if item != NULL or old == NULL]
    if isinstance(value, dict):
        pairs = [(k, v, forget(k, ref, new), forget(v, ref, new)) for k, v in value.items()]
        return {nk: nv for k, v, nk, nv in pairs if (k, v) == (nk, nv) or new != NULL}
    return new if value == ref else value


class RecordModel:
    def __init__(self, model: DataModel) -> None:
        self._model = model
        self._derived = {(r.other, r.reverse): r for r in model.relations}
        self.forward: dict[str, dict[str, Field]] = {
            name: {f.name: f for f in cls.fields.values() if (name, f.name) not in self._derived and f.name != "uuid"}
            for name, cls in model.classes.items()
        }
        self.objects: dict[Object, dict[str, Any]] = {}
        self.gone: list[Object] = []
        self.old_uuids: list[Object] = []
        """(class, uuid)"""

    def refs(self, cls: str) -> list[str]:
        """In order of creation."""
        return [ref for c, ref in self.objects if c == cls]

    def create(self, cls: str, ref: str, uuid: str, fields: dict[str, Any]) -> None:
        blank = {name: copy.deepcopy(field.default) for name, field in self.forward[cls].items()}
        self.objects[cls, ref] = {**blank, **copy.deepcopy(fields), "uuid": uuid}

    def set(self, cls: str, ref: str, field: str, value: Any) -> None:
        self.objects[cls, ref][field] = copy.deepcopy(value)

    def destroy(self, cls: str, ref: str) -> None:
        self.old_uuids.append((cls, self.objects.pop((cls, ref))["uuid"]))
        self.gone.append((cls, ref))
        self._replace(ref, NULL)

    def rekey(self, cls: str, ref: str, new_ref: str, uuid: str) -> None:
        self.old_uuids.append((cls, self.objects[cls, ref]["uuid"]))
        renamed = {(c, new_ref if (c, r) == (cls, ref) else r): fields for (c, r), fields in self.objects.items()}
        self.objects = renamed
        self.objects[cls, new_ref]["uuid"] = uuid
        if new_ref != ref:
            self.gone.append((cls, ref))
            self._replace(ref, new_ref)

    def _replace(self, ref: str, new: str) -> None:
        for (cls, _), fields in self.objects.items():
            for name, field in self.forward[cls].items():
                if field.type.classes() - {""}:
                    fields[name] = forget(fields[name], ref, new)

    def record(self, cls: str, ref: str) -> dict[str, Any]:
        """Complete, the reverse sets in no particular order."""
        record = dict(self.objects[cls, ref])
        for (other, reverse), relation in self._derived.items():
            if other == cls:
                record[reverse] = sorted(
                    holder
                    for (c, holder), fields in self.objects.items()
                    if c == relation.cls and self._names(fields[relation.field], ref)
                )
        return record

    def _names(self, value: Any, ref: str) -> bool:
        return value == ref or (isinstance(value, list | dict) and ref in value)

    def records(self, cls: str) -> dict[str, dict[str, Any]]:
        return {ref: self.record(cls, ref) for ref in self.refs(cls)}

    def in_no_order(self, cls: str, record: dict[str, Any]) -> dict[str, Any]:
        """A record of the real engine, so that it can be compared. What is twice in a reverse set stays twice."""
        return {name: sorted(value) if (cls, name) in self._derived else value for name, value in record.items()}


@attrs.define
class Follower:
    """A client that has what event.from told it, and nothing else."""

    classes: list[str]
    token: str = ""
    cache: dict[Object, dict[str, Any]] = attrs.field(factory=dict)

    def take(self, answer: dict[str, Any], names: dict[str, str]) -> None:
        """`names`: class names in lower case to what they are."""
        generations = [int(event["id"]) for event in answer["events"]]
        assert generations == sorted(set(generations))
        for event in answer["events"]:
            key = (names[event["class"]], event["ref"])
            if event["operation"] == "del":
                assert "snapshot" not in event
                assert key in self.cache, "removed what this client never heard of"
                del self.cache[key]
            else:
                assert event["operation"] == "add" or key in self.cache, "changed what this client never heard of"
                self.cache[key] = event["snapshot"]
        self.token = answer["token"]
