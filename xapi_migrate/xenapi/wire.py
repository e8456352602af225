"""XML-RPC as XenAPI's clients speak it: bodies from strangers in, compact answers out.

A body is refused before it costs anything: a DTD, depth, number of elements and integers are bounded here, its size by
the endpoint. Answers have no white space, strings untagged, integers as untagged decimal text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from functools import lru_cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Any
from xml.etree.ElementTree import ParseError

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring

from xapi_migrate.errors import InvalidValue
from xapi_migrate.xenapi.datamodel import timestamp
from xapi_migrate.xenapi.kept import Kept

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

MAX_DEPTH = 64
MAX_ELEMENTS = 20_000
MAX_PARAMS = 100
_BESIDE = 100
"""Of a document: its own elements, comments and instructions."""
_LONGEST_KEPT = 64
CONTENT_TYPE = b"text/xml"

_SPACE = " \t\r\n"
_UNFIT = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What XML cannot hold: control characters, surrogates and the two non-characters."""
_INTEGER = re.compile(r"[+-]?[0-9]{1,19}", re.ASCII).fullmatch
"""Python knows more forms: other scripts' digits, and 1_000."""
_REFERENCE = re.compile(rb"&#(?:x([0-9a-fA-F]+)|([0-9]+));")
_SPECIAL = re.compile('[&<>"\\x00-\\x08\\x0b-\\x1f\ud800-\udfff\ufffe\uffff]').search
"""Finds out quickly that a text can go out as it is."""
_ESCAPES = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "\r": "&#13;"})


class Malformed(Exception):
    """The body is no XML-RPC call; the text says why, without a word of it."""


class PlainInt(int):
    """An integer that goes out as <i4> instead of text."""


def check_text(text: str) -> str:
    """InvalidValue unless every character can be sent back in an answer."""
    if _UNFIT.search(text):
        raise InvalidValue("Invalid UTF-8 string in parameter", _UNFIT.sub("?", text)[:100])
    return text


def fit(text: str) -> str:
    """The text without what XML cannot hold."""
    return _UNFIT.sub("", text)


def parse_call(body: bytes) -> tuple[str, list[Any]]:
    """The method's name and its parameters. Malformed; InvalidValue for text that is not fit."""
    try:
        text = check_text(body.decode())
    except UnicodeDecodeError:
        raise InvalidValue("Invalid UTF-8 string in parameter", "") from None
    for found in _REFERENCE.finditer(body):
        _check_reference(found)
    root = _tree(text)
    if root.tag != "methodCall":
        raise Malformed("the document is not a methodCall")
    return _Reader().call(root)


def _check_reference(found: re.Match[bytes]) -> None:
    digits = found[1] or found[2]
    number = int(digits, 16 if found[1] else 10) if len(digits) < 9 else 0
    if not 0 < number < 0x110000 or _UNFIT.match(chr(number)):
        raise InvalidValue("Invalid UTF-8 string in parameter", found[0].decode()[:20])


def _tree(text: str) -> Element:
    """The document's elements. Every parser is a new one: one that is kept keeps all names that it has ever seen."""
    if text.count("<") > 2 * MAX_ELEMENTS + _BESIDE:  # before they cost anything
        raise Malformed(f"more than {MAX_ELEMENTS} elements")
    try:
        return fromstring(text, forbid_dtd=True)
    except DefusedXmlException:
        raise Malformed("a document type declaration") from None
    except (ParseError, ValueError):
        raise Malformed("the document is not well-formed") from None


class _Reader:
    """Elements to values, counting them."""

    def __init__(self) -> None:
        self._seen = 0

    def call(self, root: Element) -> tuple[str, list[Any]]:
        method, params = None, []
        for child in root:
            if child.tag == "methodName":
                method = (child.text or "").strip(_SPACE)
            elif child.tag == "params":
                if len(child) > MAX_PARAMS:
                    raise Malformed(f"more than {MAX_PARAMS} parameters")
                params = [self._value(self._only(param, "value"), 1) for param in self._each(child, "param")]
            else:
                raise Malformed("an element that a methodCall does not have")
        if not method:
            raise Malformed("no methodName")
        return method, params

    def _each(self, parent: Element, tag: str) -> list[Element]:
        self._seen += len(parent)
        if self._seen > MAX_ELEMENTS:
            raise Malformed(f"more than {MAX_ELEMENTS} elements")
        children = list(parent)
        if any(child.tag != tag for child in children):
            raise Malformed(f"a {parent.tag} may have {tag} elements only")
        return children

    def _only(self, parent: Element, tag: str) -> Element:
        children = self._each(parent, tag)
        if len(children) != 1:
            raise Malformed(f"a {parent.tag} has one {tag}")
        return children[0]

    def _value(self, element: Element, depth: int) -> Any:
        self._seen += 1
        if depth > MAX_DEPTH:
            raise Malformed(f"deeper than {MAX_DEPTH}")
        count = len(element)
        if count == 0:
            return element.text or ""
        if count > 1:
            raise Malformed("a value holds one thing")
        inner = element[0]
        if inner.tag == "array":
            return [self._value(item, depth + 1) for item in self._each(self._only(inner, "data"), "value")]
        if inner.tag == "struct":
            return dict(self._member(member, depth) for member in self._each(inner, "member"))
        if len(inner):
            raise Malformed(f"a {inner.tag} holds text only")
        return _scalar(str(inner.tag), inner.text or "")

    def _member(self, member: Element, depth: int) -> tuple[str, Any]:
        children = list(member)
        if [child.tag for child in children] != ["name", "value"] or len(children[0]):
            raise Malformed("a member has a name and a value")
        self._seen += 2
        return children[0].text or "", self._value(children[1], depth + 1)


def _scalar(tag: str, text: str) -> Any:
    if tag == "string":
        return text
    text = text.strip(_SPACE)
    try:
        if tag in ("int", "i4", "i8"):
            if not _INTEGER(text):
                raise ValueError
            return int(text)
        if tag == "boolean":
            return {"1": True, "0": False, "true": True, "false": False}[text]
        if tag == "double":
            if len(text) > 400:
                raise ValueError
            return float(text)
        if tag == "dateTime.iso8601":
            return timestamp(text)
        if tag == "nil":
            return None
    except (ValueError, KeyError):
        raise InvalidValue(tag, text[:50]) from None
    raise Malformed("a type that XML-RPC does not have")


# -- answers ------------------------------------------------------------------------------------

_HEAD = '<?xml version="1.0"?><methodResponse><params><param>'
_TAIL = "</param></params></methodResponse>"
_STATUS = "<value><struct><member><name>Status</name><value>{}</value></member><member><name>{}</name>"
_SUCCESS = _HEAD + _STATUS.format("Success", "Value")
_FAILURE = _HEAD + _STATUS.format("Failure", "ErrorDescription")
_END = "</member></struct></value>" + _TAIL


def iso8601(moment: datetime) -> str:
    """20260821T02:00:23Z"""
    return moment.astimezone(UTC).strftime("%Y%m%dT%H:%M:%SZ")


def escape(text: str) -> str:
    """Text inside an element; what XML cannot hold is left out."""
    return fit(text).translate(_ESCAPES) if _SPECIAL(text) else text


def _text(item: str) -> str:
    return f"<value>{escape(item)}</value>"


def _boolean(item: bool) -> str:
    return "<value><boolean>1</boolean></value>" if item else "<value><boolean>0</boolean></value>"


def _plain_integer(item: int) -> str:
    return f"<value><i4>{int(item)}</i4></value>"


def _integer(item: int) -> str:
    return f"<value>{item}</value>"


def _double(item: float) -> str:
    return f"<value><double>{item:.16g}</double></value>"


def _moment(item: datetime) -> str:
    return f"<value><dateTime.iso8601>{iso8601(item)}</dateTime.iso8601></value>"


def _array(items: Iterable[Any]) -> str:
    return f"<value><array><data>{''.join(map(value, items))}</data></array></value>"


def _tagged(name: Any) -> str:
    return f"<member><name>{escape(str(name))}</name>"


_known_name = lru_cache(maxsize=4096)(_tagged)


def _name(name: Any) -> str:
    """Those of records are the same again and again; what a stranger has sent may be long, and is not kept."""
    return _known_name(name) if len(str(name)) <= _LONGEST_KEPT else _tagged(name)


def _struct(item: Mapping[Any, Any]) -> str:
    members = "".join([f"{_name(name)}{value(inner)}</member>" for name, inner in item.items()])
    return f"<value><struct>{members}</struct></value>"


_record = Kept(_struct)

_FORMS: dict[type, Callable[[Any], str]] = {
    str: _text, bool: _boolean, int: _integer, float: _double, PlainInt: _plain_integer, datetime: _moment,
    list: _array, tuple: _array, set: _array, frozenset: _array, dict: _struct, MappingProxyType: _record,
    type(None): lambda item: "<value></value>",
}  # fmt: skip


def value(item: Any) -> str:
    """One <value>. TypeError for what XML-RPC has no form for."""
    form = _FORMS.get(type(item))
    if form is None:
        raise TypeError(f"{type(item).__name__} cannot be answered")
    return form(item)


def call(method: str, params: Iterable[Any]) -> bytes:
    """A call's body."""
    inside = "".join(f"<param>{value(param)}</param>" for param in params)
    named = f"<methodName>{escape(method)}</methodName>"
    return f'<?xml version="1.0"?><methodCall>{named}<params>{inside}</params></methodCall>'.encode()


def success(result: Any) -> bytes:
    return f"{_SUCCESS}{value(result)}{_END}".encode()


def bare(result: Any) -> bytes:
    """What system.listMethods answers: no envelope."""
    return f"{_HEAD}{value(result)}{_TAIL}".encode()


def failure(description: list[str]) -> bytes:
    return f"{_FAILURE}{value([str(item) for item in description])}{_END}".encode()
