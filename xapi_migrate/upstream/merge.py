"""The upstream's answers with ours put in: its own part stays as it came.

In XML what is ours is set between its bytes, at places that are found from the answer's end backwards: there stands
nothing but the answer's own tags, whatever names and texts of users it holds.
"""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from ..xenapi import wire
from ..xenapi.dispatch import LIST_METHODS
from .client import refusal
from .peek import Peeked, Wire

_END = rb"\s*</param>\s*</params>\s*</methodResponse>\s*$"
_ENVELOPE = rb"\s*</member>\s*</struct>\s*</value>" + _END
_ARRAY = rb"(?P<array></data>|<data\s*/>)\s*</array>\s*</value>"
_STRUCT = rb"(?P<struct></struct>|<struct\s*/>)\s*</value>"
_COUNT = rb"<member>\s*<name>\w+</name>\s*<value>(?:<i4>|<int>)?\d+(?:</i4>|</int>)?</value>\s*</member>\s*"
_LIST = re.compile(_ARRAY + _ENVELOPE)
_BARE = re.compile(_ARRAY + _END)
_MAP = re.compile(_STRUCT + _ENVELOPE)
_TEXT = rb"<value>(?:<string>)?(?P<token>[^<]{0,200})(?:</string>)?</value>"
_TOKEN = re.compile(_TEXT + _ENVELOPE)
_EVENTS = re.compile(
    _ARRAY + rb"\s*</member>\s*<member>\s*<name>valid_ref_counts</name>\s*<value>\s*"
    rb"(?P<counts><struct>\s*(?:" + _COUNT + rb")*</struct>|<struct\s*/>)\s*</value>\s*</member>\s*"
    rb"<member>\s*<name>token</name>\s*" + _TEXT + rb"\s*</member>\s*</struct>\s*</value>" + _ENVELOPE
)  # fmt: skip
_ONE_COUNT = re.compile(rb"<name>(\w+)</name>\s*<value>(?:<i4>|<int>)?(\d+)")
_SUCCEEDED = re.compile(rb"<name>Status</name>\s*<value>(?:<string>)?Success<")
_HEAD = 1000
_TAIL = 64 << 10
"""No more of an answer's end than this is looked at."""


class Unreadable(Exception):
    """The upstream's answer has not the form that it should have."""


class Answer(ABC):
    """One answer of the upstream to a call that succeeded. All raise Unreadable."""

    @abstractmethod
    def with_items(self, items: Sequence[Any]) -> bytes:
        """A list, with more items."""

    @abstractmethod
    def with_members(self, members: Mapping[str, Any]) -> bytes:
        """A map, with more members."""

    @abstractmethod
    def holds(self, item: str) -> bool:
        """Whether a list of names has this one."""

    @abstractmethod
    def token(self) -> str:
        """What event.inject answers."""

    @abstractmethod
    def with_token(self, token: str) -> bytes: ...

    @abstractmethod
    def events_token(self) -> str:
        """The token in what event.from answers."""

    @abstractmethod
    def counts(self) -> dict[str, int]:
        """The valid_ref_counts of what event.from answers."""

    @abstractmethod
    def with_events(self, events: Sequence[Any], counts: Mapping[str, int], token: str) -> bytes:
        """What event.from answers, with more events, these numbers of objects beside its own, and that token."""


def read(call: Peeked, body: bytes) -> Answer | None:
    """The answer to a call; None if it is an error (`refused` passes it on). Unreadable."""
    if call.wire is Wire.XML:
        bare = call.method == LIST_METHODS
        return XmlAnswer(body) if bare or _SUCCEEDED.search(body[:_HEAD]) else None
    answer = _json(body)
    return None if answer.get("error") is not None or "result" not in answer else JsonAnswer(call, answer["result"])


def refused(call: Peeked, body: bytes) -> bytes:
    """An answer that is an error, for who made the call."""
    if call.wire is Wire.XML:
        return body
    return call.failure(refusal(_json(body).get("error")).failure())


def _json(body: bytes) -> dict[str, Any]:
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        raise Unreadable("it is no JSON") from None
    if not isinstance(answer, dict):
        raise Unreadable("it is no answer")
    return answer


class XmlAnswer(Answer):
    def __init__(self, body: bytes) -> None:
        self._start = max(0, len(body) - _TAIL)
        self._body = body

    def _find(self, *patterns: re.Pattern[bytes]) -> re.Match[bytes]:
        for pattern in patterns:
            found = pattern.search(self._body, self._start)
            if found is not None:
                return found
        raise Unreadable("it does not end as it should")

    def _put(self, start: int, end: int, inside: bytes) -> bytes:
        return self._body[:start] + inside + self._body[end:]

    def with_items(self, items: Sequence[Any]) -> bytes:
        found = self._find(_LIST, _BARE)
        return self._put(*found.span("array"), _opened(found["array"], b"data", _values(items)))

    def with_members(self, members: Mapping[str, Any]) -> bytes:
        found = self._find(_MAP)
        inside = wire.value(dict(members)).encode().removeprefix(b"<value><struct>").removesuffix(b"</struct></value>")
        return self._put(*found.span("struct"), _opened(found["struct"], b"struct", inside))

    def holds(self, item: str) -> bool:
        return re.search(rb">\s*" + re.escape(item.encode()) + rb"\s*<", self._body) is not None

    def token(self) -> str:
        return str(self._find(_TOKEN)["token"].decode())

    def with_token(self, token: str) -> bytes:
        return self._put(*self._find(_TOKEN).span("token"), wire.escape(token).encode())

    def events_token(self) -> str:
        return str(self._find(_EVENTS)["token"].decode())

    def counts(self) -> dict[str, int]:
        return {name.decode(): int(number[:15]) for name, number in _ONE_COUNT.findall(self._find(_EVENTS)["counts"])}

    def with_events(self, events: Sequence[Any], counts: Mapping[str, int], token: str) -> bytes:
        found = self._find(_EVENTS)
        summed = wire.value({name: wire.PlainInt(n) for name, n in _sum(self.counts(), counts).items()}).encode()
        struct = summed.removeprefix(b"<value>").removesuffix(b"</value>")
        parts = [
            self._body[: found.start("array")],
            _opened(found["array"], b"data", _values(events)),
            self._body[found.end("array") : found.start("counts")],
            struct,
            self._body[found.end("counts") : found.start("token")],
            wire.escape(token).encode(),
            self._body[found.end("token") :],
        ]
        return b"".join(parts)


class JsonAnswer(Answer):
    def __init__(self, call: Peeked, result: Any) -> None:
        self._dump = call.success
        self._whole = result

    def _result(self, kind: type) -> Any:
        if not isinstance(self._whole, kind):
            raise Unreadable("it is of another kind")
        return self._whole

    def with_items(self, items: Sequence[Any]) -> bytes:
        return self._dump([*self._result(list), *items])

    def with_members(self, members: Mapping[str, Any]) -> bytes:
        return self._dump({**self._result(dict), **members})

    def holds(self, item: str) -> bool:
        return item in self._result(list)

    def token(self) -> str:
        return str(self._result(str)[:200])

    def with_token(self, token: str) -> bytes:
        return self._dump(token)

    def events_token(self) -> str:
        token = self._result(dict).get("token")
        if not isinstance(token, str) or len(token) > 200:
            raise Unreadable("it has no token")
        return token

    def counts(self) -> dict[str, int]:
        counts = self._result(dict).get("valid_ref_counts")
        if not isinstance(counts, dict):
            raise Unreadable("it has no valid_ref_counts")
        return {name: number for name, number in counts.items() if type(number) is int}

    def with_events(self, events: Sequence[Any], counts: Mapping[str, int], token: str) -> bytes:
        result = self._result(dict)
        known = result.get("events")
        if not isinstance(known, list):
            raise Unreadable("it has no events")
        summed = _sum(self.counts(), counts)
        return self._dump({**result, "events": [*known, *events], "valid_ref_counts": summed, "token": token})


def _values(items: Sequence[Any]) -> bytes:
    return "".join(map(wire.value, items)).encode()


def _opened(closing: bytes, tag: bytes, inside: bytes) -> bytes:
    """What stands in the place of an element's end, or of an empty element."""
    end = b"</" + tag + b">"
    return inside + end if closing == end else b"<" + tag + b">" + inside + end


def _sum(theirs: Mapping[str, int], ours: Mapping[str, int]) -> dict[str, int]:
    return {**theirs, **{name: theirs.get(name, 0) + number for name, number in ours.items()}}
