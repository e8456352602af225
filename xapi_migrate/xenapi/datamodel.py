"""XenAPI's classes, fields, messages and enums, read from the data file that is shipped with the package."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from importlib import resources
from typing import Any

import attrs

from xapi_migrate.xenapi.types import Kind, Type, parse_type


@attrs.frozen
class Field:
    """A field of a class. `qualifier`: RW (clients set it), RO/constructor (given at create), RO/runtime."""

    name: str
    type: Type
    qualifier: str
    default: Any


@attrs.frozen
class Param:
    """A parameter after the session; `default` counts only if it is not required."""

    name: str
    type: Type
    required: bool = True
    default: Any = None


@attrs.frozen
class Message:
    """A call. `kind`: object (the same for every class), field (accessor), custom. `label`: what its task is called."""

    cls: str
    name: str
    params: tuple[Param, ...]
    result: Type
    session: bool = True
    is_async: bool = False
    kind: str = "custom"
    label: str = ""

    @property
    def full_name(self) -> str:
        return f"{self.cls}.{self.name}"


@attrs.frozen
class ModelClass:
    """A class: its fields and messages by name."""

    name: str
    fields: Mapping[str, Field]
    messages: Mapping[str, Message]


@attrs.frozen
class Relation:
    """The field of one class that is kept equal to the reverse of a field of another: `cls.field` is a reference to
    `other` (or a set of them), and `other.reverse` is the set of all `cls` that refer to it."""

    cls: str
    field: str
    other: str
    reverse: str


@attrs.frozen
class DataModel:
    """All of it. `enums`: name -> values."""

    api_version: tuple[int, int]
    classes: Mapping[str, ModelClass]
    enums: Mapping[str, tuple[str, ...]]
    relations: tuple[Relation, ...]

    def message(self, cls: str, name: str) -> Message | None:
        known = self.classes.get(cls)
        return known.messages.get(name) if known else None


def timestamp(text: str) -> datetime:
    """XenAPI's 20110405T10:11:12Z, and ISO 8601 as Python knows it. ValueError."""
    moment = datetime.fromisoformat(text)
    try:
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except OverflowError:
        raise ValueError(f"{text} is outside the calendar") from None


def _default(type_: Type, enums: Mapping[str, tuple[str, ...]], raw: Any) -> Any:
    if raw is None:
        return enums.get(type_.name, ("",))[0] if type_.kind is Kind.ENUM else type_.default()
    if type_.kind is Kind.DATETIME:
        return timestamp(raw)
    if type_.kind is Kind.INT:
        return int(raw)
    if type_.kind is Kind.SET and type_.item is not None and type_.item.kind is Kind.INT:
        return [int(item) for item in raw]
    value = float(raw) if type_.kind is Kind.FLOAT else raw
    return value if type_.holds(value) else _default(type_, enums, None)


def _class(name: str, raw: Mapping[str, Any], enums: Mapping[str, tuple[str, ...]]) -> ModelClass:
    fields = {}
    for field, text, qualifier, default in raw["fields"]:
        type_ = parse_type(text)
        fields[field] = Field(field, type_, qualifier, _default(type_, enums, default))
    messages = {}
    for message, spec in raw["messages"].items():
        params = []
        for param, text, required, default in spec["params"]:
            type_ = parse_type(text)
            params.append(Param(param, type_, required, None if required else _default(type_, enums, default)))
        messages[message] = Message(
            name, message, tuple(params), parse_type(spec["result"]), spec["session"], spec["async"], spec["kind"]
        )
    return ModelClass(name, fields, messages)


def _relations(pairs: list[Any], classes: Mapping[str, ModelClass]) -> tuple[Relation, ...]:
    """Those whose two fields are both known and mean each other."""
    found = []
    for (cls, field), (other, reverse) in pairs:
        if (cls, field) == (other, reverse) or cls not in classes or other not in classes:
            continue
        forward, backward = classes[cls].fields.get(field), classes[other].fields.get(reverse)
        if forward and backward and other in forward.type.classes() and cls in backward.type.classes():
            found.append(Relation(cls, field, other, reverse))
    return tuple(found)


@cache
def shipped() -> DataModel:
    """The data model as shipped, without calls of our own (own_calls adds those)."""
    raw = json.loads(resources.files("xapi_migrate.xenapi").joinpath("datamodel.json").read_text())
    enums = {name: tuple(values) for name, values in raw["enums"].items()}
    classes = {name: _class(name, spec, enums) for name, spec in raw["classes"].items()}
    major, minor = raw["api_version"].split(".")
    return DataModel((int(major), int(minor)), classes, enums, _relations(raw["relations"], classes))
