"""Which call a body holds, without paying for it where it does not matter."""

from __future__ import annotations

import re
from collections.abc import Container
from enum import Enum
from typing import Any

import attrs

from ..errors import InvalidValue
from ..xenapi import jsonrpc, wire
from ..xenapi.endpoint import JSON_PATHS, XML_PATHS
from ..xenapi.wire import Malformed

_XML_NAME = re.compile(rb"<methodName>\s*([\w.:]{1,200})\s*</methodName>")
_JSON_NAME = re.compile(rb'"method"\s*:\s*"([\w.:]{1,200})"')


class Wire(Enum):
    XML = "XML-RPC"
    JSON = "JSON-RPC"


@attrs.frozen
class Peeked:
    """A call as a client wrote it. `json`: what an answer in JSON has to say of it."""

    wire: Wire
    method: str
    params: list[Any]
    json: jsonrpc.JsonCall | None = None

    def success(self, result: Any) -> bytes:
        if self.json is not None:
            return jsonrpc.success(self.json, result)
        return wire.success(result)

    def failure(self, description: list[str]) -> bytes:
        if self.json is not None:
            return jsonrpc.failure(self.json, description)
        return wire.failure(description)

    @property
    def content_type(self) -> bytes:
        return wire.CONTENT_TYPE if self.wire is Wire.XML else jsonrpc.CONTENT_TYPE


def wire_of(path: bytes) -> Wire | None:
    """How calls are written that are sent to a path; None if it takes none."""
    name = path[1:]
    if name in JSON_PATHS:
        return Wire.JSON
    return Wire.XML if name in XML_PATHS else None


def names(form: Wire, body: bytes) -> list[str]:
    """What looks like a method's name. A name that is written in another way is not ours to find: whoever hides a call
    from this server sends it to the upstream, which judges it for itself."""
    found = (_XML_NAME if form is Wire.XML else _JSON_NAME).findall(body)
    return [name.decode("ascii", "replace") for name in found]


def peek(form: Wire, body: bytes, wanted: Container[str]) -> Peeked | None:
    """The call, if it is one of those; else None, also where the body is no call that can be read."""
    if not any(name in wanted for name in names(form, body)):
        return None
    call = parse(form, body)
    return call if call is not None and call.method in wanted else None


def parse(form: Wire, body: bytes) -> Peeked | None:
    """The call whatever it is; None if the body is none that can be read."""
    try:
        if form is Wire.JSON:
            json = jsonrpc.parse_call(body)
            return Peeked(form, json.method, json.params, json)
        method, params = wire.parse_call(body)
    except (Malformed, InvalidValue):
        return None
    return Peeked(form, method, params)
