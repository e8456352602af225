"""The XML form of a VM's metadata: one XML-RPC value, without prolog or envelope (`ova.xml`).

What comes in is hostile: no DTD, no entities, no network, bounded size, depth and number of elements.
"""

from __future__ import annotations

import io
import tarfile
from datetime import UTC, datetime
from typing import Any

from lxml import etree

from ..errors import ImportError_

ELEMENTS = 60_000
DEPTH = 40
SCALARS = {"string", "int", "i4", "i8", "boolean", "double", "dateTime.iso8601"}


def write_value(value: Any) -> bytes:
    """A value (str, bool, int, float, datetime, list, dict with str keys) as XML bytes."""
    return etree.tostring(_element(value), encoding="utf-8")


def read_value(document: bytes) -> Any:
    """The value of a document: bare, or inside the tar that some senders wrap it in. ImportError_."""
    if document[257:262] == b"ustar":
        document = _first_of_tar(document)
    parser = etree.XMLParser(
        resolve_entities=False, no_network=True, huge_tree=False, load_dtd=False, remove_comments=True, remove_pis=True
    )
    try:
        root = etree.fromstring(document, parser)
    except (etree.XMLSyntaxError, ValueError) as failure:
        raise ImportError_(f"it is not well-formed XML ({str(failure)[:100]})") from None
    about: Any = root.getroottree().docinfo
    if about.internalDTD is not None or about.doctype:
        raise ImportError_("it has a document type declaration, which is never accepted")
    count = 0
    for count, node in enumerate(root.iter(), 1):
        if count > ELEMENTS:
            raise ImportError_(f"it has more than {ELEMENTS} elements")
        if not isinstance(node.tag, str):
            raise ImportError_("it has an entity reference, which is never accepted")
    return _read(root, 0)


def _first_of_tar(document: bytes) -> bytes:
    try:
        with tarfile.open(fileobj=io.BytesIO(document), mode="r:") as archive:
            member = archive.next()
            file = archive.extractfile(member) if member and member.name == "ova.xml" and member.isfile() else None
            if file is None:
                raise ImportError_("the first file of its archive is not ova.xml")
            return file.read()
    except tarfile.TarError:
        raise ImportError_("its archive is damaged") from None


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
