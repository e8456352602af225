"""What was made of a record, kept as long as the record is asked for. A record is never changed, only replaced, so what
was made of it stays true; it is found again by the very object."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Kept(Generic[T]):
    """`make` is called for each record that is not among the last `most`."""

    def __init__(self, make: Callable[[Mapping[Any, Any]], T], most: int = 2048) -> None:
        self._make = make
        self._most = most
        self._made: dict[int, tuple[Mapping[Any, Any], T]] = {}

    def __call__(self, record: Mapping[Any, Any]) -> T:
        kept = self._made.get(id(record))
        if kept is not None and kept[0] is record:
            return kept[1]
        made = self._make(record)
        while len(self._made) >= self._most:
            del self._made[next(iter(self._made))]
        self._made[id(record)] = (record, made)
        return made
