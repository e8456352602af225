"""The types of XenAPI's data model: what a value of each looks like in Python, its default, its database form.

Python forms: string and enum str; int; float; bool; datetime aware, UTC; reference str; set list; map and
record dict.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from datetime import UTC, datetime
from enum import Enum
from functools import lru_cache
from typing import Any

import attrs

NULL = "OpaqueRef:NULL"
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
LARGEST = 2**63 - 1
"""XenAPI's integers are 64 bits, signed."""


class Kind(Enum):
    VOID = "void"
    STRING = "string"
    INT = "int"
    FLOAT = "float"
    BOOL = "bool"
    DATETIME = "datetime"
    ENUM = "enum"
    REF = "ref"
    RECORD = "record"
    SET = "set"
    MAP = "map"


_SIMPLE = {kind.value: kind for kind in (Kind.VOID, Kind.STRING, Kind.INT, Kind.FLOAT, Kind.BOOL, Kind.DATETIME)}
_DEFAULTS: dict[Kind, Any] = {
    Kind.VOID: "", Kind.STRING: "", Kind.INT: 0, Kind.FLOAT: 0.0, Kind.BOOL: False, Kind.DATETIME: EPOCH,
    Kind.ENUM: "", Kind.REF: NULL,
}  # fmt: skip


@attrs.frozen
class Type:
    """One type. `name` is the enum's or the class's; `item` of a set or of a map's values; `key` of a map."""

    kind: Kind
    name: str = ""
    item: Type | None = None
    key: Type | None = None

    def default(self) -> Any:
        """The value of a field that nobody has set."""
        if self.kind is Kind.SET:
            return []
        if self.kind in (Kind.MAP, Kind.RECORD):
            return {}
        return _DEFAULTS[self.kind]

    def holds(self, value: Any) -> bool:
        """Whether `value` is one of this type, in its Python form."""
        match self.kind:
            case Kind.INT:
                return type(value) is int and -LARGEST - 1 <= value <= LARGEST
            case Kind.FLOAT:
                return type(value) in (int, float) and math.isfinite(value)  # JSON writes no others
            case Kind.BOOL:
                return type(value) is bool
            case Kind.DATETIME:
                return isinstance(value, datetime) and value.tzinfo is not None
            case Kind.SET:
                assert self.item is not None
                return isinstance(value, list) and all(map(self.item.holds, value))
            case Kind.MAP:
                assert self.item is not None and self.key is not None
                return (
                    isinstance(value, dict)
                    and all(map(self.key.holds, value))
                    and all(map(self.item.holds, value.values()))
                )
            case Kind.RECORD:
                return isinstance(value, dict)
            case _:
                return isinstance(value, str)

    def references(self, value: Any) -> Iterator[tuple[str, str]]:
        """(class, ref) of each reference in a value of this type, null ones left out."""
        if self.kind is Kind.REF:
            if value and value != NULL:
                yield self.name, value
        elif self.kind is Kind.SET and self.item is not None:
            for item in value:
                yield from self.item.references(item)
        elif self.kind is Kind.MAP and self.item is not None and self.key is not None:
            for key, item in value.items():
                yield from self.key.references(key)
                yield from self.item.references(item)

    def replace(self, value: Any, cls: str, old: str, new: str) -> Any:
        """`value` with references to `old` of class `cls` made `new`; NULL takes them out of sets and maps."""
        if self.kind is Kind.REF:
            return new if self.name == cls and value == old else value
        if self.kind is Kind.SET and self.item is not None:
            swapped = [self.item.replace(item, cls, old, new) for item in value]
            return [now for item, now in zip(value, swapped) if now != NULL or item == NULL]
        if self.kind is Kind.MAP and self.item is not None and self.key is not None:
            pairs = [
                (k, v, self.key.replace(k, cls, old, new), self.item.replace(v, cls, old, new))
                for k, v in value.items()
            ]
            return {nk: nv for k, v, nk, nv in pairs if not (new == NULL and (nk, nv) != (k, v))}
        return value

    def classes(self) -> frozenset[str]:
        """The classes that values of this type can refer to."""
        if self.kind is Kind.REF:
            return frozenset((self.name,))
        return frozenset().union(*(part.classes() for part in (self.item, self.key) if part is not None))

    def to_json(self, value: Any) -> Any:
        """The value as JSON can hold it."""
        if self.kind is Kind.DATETIME:
            return value.isoformat()
        if self.kind is Kind.SET and self.item is not None:
            return [self.item.to_json(item) for item in value]
        if self.kind is Kind.MAP and self.item is not None:
            return {str(key): self.item.to_json(item) for key, item in value.items()}
        return value

    def from_json(self, value: Any) -> Any:
        """The inverse of `to_json`; the default if it is not of this type (any more)."""
        try:
            if self.kind is Kind.DATETIME:
                value = datetime.fromisoformat(value)
            elif self.kind is Kind.SET and self.item is not None:
                value = [self.item.from_json(item) for item in value]
            elif self.kind is Kind.MAP and self.item is not None and self.key is not None:
                number = self.key.kind is Kind.INT
                value = {int(key) if number else key: self.item.from_json(item) for key, item in value.items()}
        except (TypeError, ValueError, AttributeError):
            return self.default()
        return value if self.holds(value) else self.default()


@lru_cache(maxsize=1024)
def parse_type(text: str) -> Type:
    """The type that the data model writes as "string", "VM ref set", "(string -> enum vm_operations) map" ..."""
    if text in _SIMPLE:
        return Type(_SIMPLE[text])
    if text.endswith(" set"):
        return Type(Kind.SET, item=parse_type(text.removesuffix(" set")))
    if text.startswith("(") and text.endswith(") map"):
        key, _, item = text[1:-5].partition(" -> ")
        return Type(Kind.MAP, item=parse_type(item), key=parse_type(key))
    if text.startswith("enum "):
        return Type(Kind.ENUM, text.removeprefix("enum "))
    if text.endswith(" ref"):
        return Type(Kind.REF, text.removesuffix(" ref"))
    if text.endswith(" record"):
        return Type(Kind.RECORD, text.removesuffix(" record"))
    raise ValueError(f"{text!r} is no type of the data model")
