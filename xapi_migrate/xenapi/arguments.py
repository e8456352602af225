"""A call's parameters, from what the wire brought to what the data model says."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

from xapi_migrate.errors import FieldTypeError, HandleInvalid, InvalidValue, MessageParameterCountMismatch
from xapi_migrate.xenapi.datamodel import DataModel, Message, timestamp
from xapi_migrate.xenapi.types import LARGEST, NULL, Kind, Type

Exists = Callable[[str, str], bool]
"""Whether there is an object (class, ref)."""


class Arguments:
    """Counts, converts and resolves."""

    def __init__(self, model: DataModel, exists: Exists) -> None:
        self._model = model
        self._exists = exists

    def count(self, message: Message, received: Sequence[Any]) -> None:
        """MessageParameterCountMismatch. More than all is accepted where some have defaults, as xapi does."""
        required = sum(param.required for param in message.params)
        given = len(received) - message.session
        too_many = given > len(message.params) and required == len(message.params)
        if given < required or too_many:
            raise MessageParameterCountMismatch(message.full_name, required, max(0, given))

    def convert(self, message: Message, given: Sequence[Any]) -> list[Any]:
        """The parameters after the session, defaults filled in. FieldTypeError, InvalidValue, HandleInvalid."""
        values = []
        for number, param in enumerate(message.params):
            if number < len(given):
                value = self.value(param.type, given[number], param.name)
                self._resolve(param.type, value)
            else:
                value = param.default
            values.append(value)
        return values

    def value(self, type_: Type, raw: Any, name: str) -> Any:
        """One value in its Python form."""
        match type_.kind:
            case Kind.INT:
                return _integer(raw, name)
            case Kind.FLOAT:
                return _float(raw, name)
            case Kind.DATETIME:
                return _moment(raw, name)
            case Kind.SET if isinstance(raw, list) and type_.item is not None:
                return [self.value(type_.item, item, name) for item in raw]
            case Kind.MAP if isinstance(raw, dict) and type_.item is not None and type_.key is not None:
                return {
                    self.value(type_.key, key, name): self.value(type_.item, item, name) for key, item in raw.items()
                }
            case Kind.RECORD if isinstance(raw, dict):
                return self._record(type_.name, raw)
            case Kind.ENUM if isinstance(raw, str):
                known = self._model.enums.get(type_.name)
                if known and raw not in known:
                    raise InvalidValue(name, raw)
                return raw
            case Kind.REF if raw == "":
                return NULL
        if not type_.holds(raw):
            raise FieldTypeError(name)
        return raw

    def _record(self, cls: str, raw: Mapping[str, Any]) -> dict[str, Any]:
        """The fields that a client may give to `create`; a whole record is accepted, the rest of it ignored."""
        known = self._model.classes.get(cls)
        if known is None:
            return dict(raw)
        fields = {}
        for name, value in raw.items():
            field = known.fields.get(name)
            if field is not None and field.qualifier != "RO/runtime":
                fields[name] = self.value(field.type, value, name)
        return fields

    def _resolve(self, type_: Type, value: Any) -> None:
        """Each object named as itself, in a set or as a map's key exists. A map's values may be another pool's."""
        if type_.kind is Kind.REF:
            if value != NULL and type_.name in self._model.classes and not self._exists(type_.name, value):
                raise HandleInvalid(type_.name, value)
        elif type_.kind is Kind.SET and type_.item is not None:
            for item in value:
                self._resolve(type_.item, item)
        elif type_.kind is Kind.MAP and type_.key is not None:
            for key in value:
                self._resolve(type_.key, key)


def _integer(raw: Any, name: str) -> int:
    """XenAPI writes integers as decimal text; many clients send <int> all the same."""
    if type(raw) is str and 0 < len(raw) <= 20 and raw.isascii() and raw.removeprefix("-").isdecimal():
        raw = int(raw)
    if type(raw) is not int or not -LARGEST - 1 <= raw <= LARGEST:
        raise FieldTypeError(name)
    return raw


def _float(raw: Any, name: str) -> float:
    if type(raw) is str and len(raw) < 400:
        try:
            raw = float(raw)
        except ValueError:
            raise FieldTypeError(name) from None
    if type(raw) is int and abs(raw) > LARGEST or type(raw) not in (int, float) or not math.isfinite(raw):
        raise FieldTypeError(name)
    return float(raw)


def _moment(raw: Any, name: str) -> datetime:
    if isinstance(raw, str):
        try:
            raw = timestamp(raw)
        except ValueError:
            raise InvalidValue(name, raw[:50]) from None
    if not isinstance(raw, datetime):
        raise FieldTypeError(name)
    return raw
