"""The XML form of a VM's metadata: one XML-RPC value, without prolog or envelope (`ova.xml`).

What comes in is hostile: no DTD, no entities, no network, bounded size, depth and number of elements.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any

from lxml import etree

from ..errors import ImportError_

ELEMENTS = 60_000
DEPTH = 40
SCALARS = {"string", "int", "i4", "i8", "boolean", "double", "dateTime.iso8601"}
_NAMES = "|".join(map(re.escape, sorted({"value", "struct", "member", "name", "array", "data", "nil", *SCALARS})))
_KNOWN = re.compile(rf"(?>[^<]++|</?(?:{_NAMES})\s*+/?>|<!--(?>.*?-->)|<\?xml\s[^>]*+>)*+".encode(), re.DOTALL)
"""Text, tags without attributes, comments, and the line that some documents begin with; in one pass."""
_OCTAL = re.compile(rb"[0-7]{1,11}")
_BLOCK = 512
_BESIDE = 100
"""Of a document: comments and instructions."""


def write_value(value: Any) -> bytes:
    """A value (str, bool, int, float, datetime, list, dict with str keys) as XML bytes."""
    return etree.tostring(_element(value), encoding="utf-8")


def read_value(document: bytes) -> Any:
    """The value of a document: bare, or inside the tar that some senders wrap it in. ImportError_."""
    if document[257:262] == b"ustar":
        document = _first_of_tar(document)
    _look_over(document)
    parser = etree.XMLParser(
        encoding="utf-8", resolve_entities=False, no_network=True, huge_tree=False, load_dtd=False,
        remove_comments=True, remove_pis=True,
    )  # fmt: skip
    try:
        root = etree.fromstring(document, parser)
    except (etree.XMLSyntaxError, ValueError) as failure:
        raise ImportError_(f"it is not well-formed XML ({str(failure)[:100]})") from None
    count = 0
    for count, node in enumerate(root.iter(), 1):
        if count > ELEMENTS:
            raise ImportError_(f"it has more than {ELEMENTS} elements")
        if not isinstance(node.tag, str):
            raise ImportError_("it has an entity reference, which is never accepted")
    return _read(root, 0)


def _look_over(document: bytes) -> None:
    """ImportError_ for what no metadata has, before a parser sees it: libxml2 keeps each name of an element or an
    attribute for as long as the process lives."""
    if document.count(b"<") > 2 * ELEMENTS + _BESIDE:
        raise ImportError_(f"it has more than {ELEMENTS} elements")
    known = _KNOWN.match(document)
    at = known.end() if known else 0
    if at == len(document):
        return
    if document[at:].startswith(b"<!DOCTYPE"):
        raise ImportError_("it has a document type declaration, which is never accepted")
    raise ImportError_(f"it has, at byte {at}, something that is no part of an XML-RPC value")


def _first_of_tar(document: bytes) -> bytes:
    """By hand: a general reader obeys extensions of the format, which let a few bytes stand for gigabytes."""
    header = document[:_BLOCK]
    name, kind = header[:100].split(b"\0", 1)[0], header[156:157]
    if name not in (b"ova.xml", b"./ova.xml") or kind not in (b"0", b"\0"):
        raise ImportError_("the first file of its archive is not ova.xml")
    summed = sum(header) - sum(header[148:156]) + 8 * ord(" ")
    size = _octal(header[124:136])
    if len(header) < _BLOCK or _octal(header[148:156]) != summed or size is None or size > len(document) - _BLOCK:
        raise ImportError_("its archive is damaged")
    return document[_BLOCK : _BLOCK + size]


def _octal(field: bytes) -> int | None:
    digits = field.strip(b" \0")
    return int(digits, 8) if _OCTAL.fullmatch(digits) else None


def _element(value: Any) -> Any:
    node = etree.Element("value")
    if isinstance(value, bool):
        etree.SubElement(node, "boolean").text = str(int(value))
    elif isinstance(value, int):
        node.text = str(value)
    elif isinstance(value, float):
        etree.SubElement(node, "double").text = f"{value:.16g}"
    elif isinstance(value, datetime):
        etree.SubElement(node, "dateTime.iso8601").text = value.astimezone(UTC).strftime("%Y%m%dT%H:%M:%SZ")
    elif isinstance(value, str):
        node.text = "".join(c for c in value if c >= " " or c in "\t\n\r")
    elif isinstance(value, dict):
        struct = etree.SubElement(node, "struct")
        for key, item in value.items():
            member = etree.SubElement(struct, "member")
            etree.SubElement(member, "name").text = str(key)
            member.append(_element(item))
    else:
        data = etree.SubElement(etree.SubElement(node, "array"), "data")
        for item in value:
            data.append(_element(item))
    return node


def _read(node: Any, depth: int) -> Any:
    if depth > DEPTH:
        raise ImportError_(f"it is nested more than {DEPTH} deep")
    if node.tag != "value":
        raise ImportError_(f"it has a <{str(node.tag)[:20]}> where a <value> belongs")
    if len(node) == 0:
        return node.text or ""
    child = node[0]
    if child.tag in SCALARS:
        text = child.text or ""
        return text.strip() == "1" if child.tag == "boolean" else text
    if child.tag == "struct":
        return {m.findtext("name") or "": _read(m[-1], depth + 1) for m in child if m.tag == "member" and len(m)}
    if child.tag == "array" and len(child):
        return [_read(item, depth + 1) for item in child[0]]
    if child.tag == "array":
        return []
    raise ImportError_(f"it has a value of the unknown type {str(child.tag)[:20]}")
