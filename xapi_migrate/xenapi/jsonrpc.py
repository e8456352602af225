"""JSON-RPC 1.0 and 2.0, the other way to write the same calls."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import attrs

from xapi_migrate.xenapi.wire import MAX_DEPTH, MAX_ELEMENTS, Malformed, check_text, iso8601

CONTENT_TYPE = b"application/json"


@attrs.frozen
class JsonCall:
    """One call; `version` "2.0", or "" for 1.0; `id` is given back as it came."""

    method: str
    params: list[Any]
    id: Any = None
    version: str = ""


def parse_call(body: bytes) -> JsonCall:
    """Malformed; InvalidValue for text that is not fit."""
    call = read_call(body)
    check_call(call)
    return call


def read_call(body: bytes) -> JsonCall:
    """A call that can be answered, whatever is in it: `check_call` comes next. Malformed."""
    if body.count(b"[") + body.count(b"{") > MAX_ELEMENTS:  # before they cost anything
        raise Malformed(f"more than {MAX_ELEMENTS} elements")
    try:
        raw = json.loads(body.decode(), parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise Malformed("the body is not JSON") from None
    if not isinstance(raw, dict) or not isinstance(raw.get("method"), str):
        raise Malformed("the body is not a call")
    params, given = raw.get("params", []), raw.get("id")
    if not isinstance(params, list):
        raise Malformed("params is not a list")
    if not isinstance(given, str | int | float | None) or isinstance(given, float) and not math.isfinite(given):
        raise Malformed("id is neither text nor a number")
    return JsonCall(raw["method"], params, given, "2.0" if str(raw.get("jsonrpc", "")) == "2.0" else "")


def check_call(call: JsonCall) -> None:
    """Malformed, InvalidValue."""
    check_text(call.method)
    _check(call.params)


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _check(params: list[Any]) -> None:
    """The limits that XML-RPC has too."""
    waiting: list[tuple[Any, int]] = [(params, 0)]
    count = 0
    while waiting:
        item, depth = waiting.pop()
        count += len(item) if isinstance(item, list | dict) else 0
        if depth > MAX_DEPTH:
            raise Malformed(f"deeper than {MAX_DEPTH}")
        if count > MAX_ELEMENTS:
            raise Malformed(f"more than {MAX_ELEMENTS} elements")
        if isinstance(item, str):
            check_text(item)
        elif isinstance(item, float) and not math.isfinite(item):  # 1e999, which no answer could hold
            raise Malformed("a number is too large")
        elif isinstance(item, list):
            waiting += [(inner, depth + 1) for inner in item]
        elif isinstance(item, dict):
            for key in item:
                check_text(key)
            waiting += [(inner, depth + 1) for inner in item.values()]


def _plain(item: Any) -> Any:
    if isinstance(item, datetime):
        return iso8601(item)
    if isinstance(item, Mapping):
        return dict(item)
    if isinstance(item, set | frozenset):
        return list(item)
    raise TypeError(f"{type(item).__name__} cannot be answered")


def dump(answer: dict[str, Any]) -> bytes:
    """An answer's bytes."""
    return json.dumps(answer, default=_plain, separators=(",", ":")).encode()


def success(call: JsonCall, result: Any) -> bytes:
    result = "" if result is None else result
    if call.version:
        return dump({"jsonrpc": "2.0", "result": result, "id": call.id})
    return dump({"result": result, "error": None, "id": call.id})


def failure(call: JsonCall, description: list[str]) -> bytes:
    if call.version:
        error = {"code": 1, "message": description[0], "data": description[1:]}
        return dump({"jsonrpc": "2.0", "error": error, "id": call.id})
    return dump({"result": None, "error": description, "id": call.id})
