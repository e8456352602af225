"""Values as xapi writes them: XML-RPC without white space, empty arrays and structs as empty elements, integers as
untagged text; JSON with floats that look like integers."""

from __future__ import annotations

import json
import xmlrpc.client
from collections.abc import Mapping
from typing import Any
from xml.sax.saxutils import escape


class Moment(str):
    """20260821T02:00:23Z"""


def value(item: Any) -> str:
    match item:
        case Moment():
            return f"<value><dateTime.iso8601>{item}</dateTime.iso8601></value>"
        case str():
            return f"<value>{escape(item, {chr(34): '&quot;'})}</value>"
        case bool():
            return f"<value><boolean>{int(item)}</boolean></value>"
        case int():
            return f"<value>{item}</value>"
        case float():
            return f"<value><double>{item:.16g}</double></value>"
        case Count(number=number):
            return f"<value><i4>{number}</i4></value>"
        case list():
            inside = "".join(map(value, item))
            return (
                f"<value><array><data>{inside}</data></array></value>"
                if item
                else "<value><array><data/></array></value>"
            )
        case dict():
            inside = "".join(f"<member><name>{escape(str(k))}</name>{value(v)}</member>" for k, v in item.items())
            return f"<value><struct>{inside}</struct></value>" if item else "<value><struct/></value>"
        case None:
            return "<value></value>"
    raise TypeError(type(item))


class Count:
    """A number of valid_ref_counts."""

    def __init__(self, number: int) -> None:
        self.number = number


_HEAD = '<?xml version="1.0"?><methodResponse><params><param>'
_TAIL = "</param></params></methodResponse>"


def _envelope(status: str, name: str, inside: Any) -> str:
    return (
        f"{_HEAD}<value><struct><member><name>Status</name><value>{status}</value></member>"
        f"<member><name>{name}</name>{value(inside)}</member></struct></value>{_TAIL}"
    )


class XmlCall:
    content_type = "text/xml"

    def __init__(self, body: bytes) -> None:
        params, method = xmlrpc.client.loads(body, use_builtin_types=True)
        self.method, self.params = str(method), list(params)

    def success(self, result: Any) -> bytes:
        if self.method == "system.listMethods":
            return f"{_HEAD}{value(result)}{_TAIL}".encode()
        return _envelope("Success", "Value", result).encode()

    def failure(self, description: list[str]) -> bytes:
        return _envelope("Failure", "ErrorDescription", description).encode()


class JsonCall:
    content_type = "application/json"

    def __init__(self, body: bytes) -> None:
        raw = json.loads(body)
        self.method, self.params = raw["method"], raw.get("params", [])
        self._id, self._second = raw.get("id"), raw.get("jsonrpc") == "2.0"

    def _dump(self, answer: Mapping[str, Any]) -> bytes:
        return json.dumps(answer, default=lambda one: one.number).encode()

    def success(self, result: Any) -> bytes:
        result = "" if result is None else result
        if self._second:
            return self._dump({"jsonrpc": "2.0", "result": result, "id": self._id})
        return self._dump({"result": result, "error": None, "id": self._id})

    def failure(self, description: list[str]) -> bytes:
        if self._second:
            error = {"code": 1, "message": description[0], "data": description[1:]}
            return self._dump({"jsonrpc": "2.0", "error": error, "id": self._id})
        return self._dump({"result": None, "error": description, "id": self._id})
