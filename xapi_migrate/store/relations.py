"""Which fields mirror which: kept once, in the forward direction; the reverse sets are derived."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from xapi_migrate.xenapi.datamodel import DataModel, Relation
from xapi_migrate.xenapi.types import Type


class Relations:
    """Answers about the data model's references, worked out once."""

    def __init__(self, model: DataModel) -> None:
        self.derived = frozenset((r.other, r.reverse) for r in model.relations)
        """Fields that nobody sets: they follow."""
        self._forward: dict[str, list[Relation]] = {name: [] for name in model.classes}
        for relation in model.relations:
            self._forward[relation.cls].append(relation)
        self._types: dict[str, dict[str, Type]] = {
            name: {f.name: f.type for f in cls.fields.values()} for name, cls in model.classes.items()
        }
        self._mentions: dict[str, list[tuple[str, str, Type]]] = {target: [] for target in model.classes}
        for name, fields in self._types.items():
            for field, type_ in fields.items():
                for target in type_.classes():
                    if target in self._mentions and (name, field) not in self.derived:
                        self._mentions[target].append((name, field, type_))

    def fields(self, cls: str) -> dict[str, Type]:
        """Field name -> type."""
        return self._types[cls]

    def known(self, cls: str) -> bool:
        return cls in self._types

    def mentions(self, cls: str) -> list[tuple[str, str, Type]]:
        """(class, field, type) of all forward fields that can refer to objects of `cls`."""
        return self._mentions[cls]

    def targets(self, cls: str, record: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
        """(other class, other ref, reverse field) for each object in whose reverse set this record belongs."""
        for relation in self._forward[cls]:
            for other, ref in self._types[cls][relation.field].references(record[relation.field]):
                if other == relation.other:
                    yield other, ref, relation.reverse
