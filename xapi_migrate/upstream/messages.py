"""The heads of HTTP/1 messages and where their bodies end: as much as a relay has to know, read strictly.

Where two readers could disagree about the end of a message, a request of one client could be taken for another's. So
what is ambiguous is no message: lengths that differ, a length beside an encoding, folded lines, bare line ends.
"""

from __future__ import annotations

import re
from typing import Protocol

import attrs

HEAD_LIMIT = 64 << 10
_LINE_LIMIT = 4 << 10
_TRAILER_LINES = 100
_FIELD = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([\t\x20-\x7e\x80-\xff]*)")
_REQUEST = re.compile(rb"([A-Z]{1,20}) ([\x21-\x7e\x80-\xff]+) HTTP/1\.([01])")
_STATUS = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9]{2})(?: [\t\x20-\x7e\x80-\xff]*)?")
_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[\t\x20-\x7e\x80-\xff]*)?\r\n")
_LOOKED_AT = frozenset({b"content-length", b"transfer-encoding", b"connection", b"expect"})


class BadMessage(Exception):
    """It is no HTTP, or could be read in two ways; the text says why."""


class Body(Protocol):
    """Follows a body to its end."""

    ended: bool

    def take(self, data: bytes) -> tuple[bytes, bytes]:
        """What of `data` belongs to the body, as it came, and what comes after it. BadMessage."""


class Sized:
    def __init__(self, length: int) -> None:
        self.length = length
        self.ended = length == 0

    def take(self, data: bytes) -> tuple[bytes, bytes]:
        if len(data) < self.length:
            self.length -= len(data)
            return data, b""
        mine, rest = data[: self.length], data[self.length :]
        self.length, self.ended = 0, True
        return mine, rest


class Endless:
    """To the end of the connection."""

    ended = False

    def take(self, data: bytes) -> tuple[bytes, bytes]:
        return data, b""


class Chunked:
    """`content`, if given, receives what the chunks hold."""

    def __init__(self, content: bytearray | None = None) -> None:
        self.ended = False
        self._content = content
        self._line = b""
        self._left = 0
        self._next = self._size
        self._trailers = 0

    def take(self, data: bytes) -> tuple[bytes, bytes]:
        at = 0
        while at < len(data) and not self.ended:
            if self._left:
                step = min(self._left, len(data) - at)
                if self._content is not None:
                    self._content += data[at : at + step]
                self._left -= step
                at += step
                continue
            end = data.find(b"\n", at) + 1 or len(data)
            self._line += data[at:end]
            at = end
            if len(self._line) > _LINE_LIMIT:
                raise BadMessage("a line of a chunked body is too long")
            if self._line.endswith(b"\n"):
                line, self._line = self._line, b""
                self._next(line)
        return data[:at], data[at:]

    def _size(self, line: bytes) -> None:
        matched = _SIZE.fullmatch(line)
        if matched is None:
            raise BadMessage("a chunk without a size")
        self._left = int(matched[1], 16)
        self._next = self._after if self._left else self._trailer

    def _after(self, line: bytes) -> None:
        if line != b"\r\n":
            raise BadMessage("a chunk is longer than it says")
        self._next = self._size

    def _trailer(self, line: bytes) -> None:
        self._trailers += 1
        if line == b"\r\n":
            self.ended = True
        elif self._trailers > _TRAILER_LINES or not line.endswith(b"\r\n") or not _FIELD.fullmatch(line[:-2]):
            raise BadMessage("a trailer that is none")


@attrs.frozen
class RequestHead:
    """`raw` with the empty line at its end. `length` of the body, None: chunked, or none said (`framed` False: its end
    would be that of the connection, in HTTP a request has no body then)."""

    raw: bytes
    method: bytes
    target: bytes
    version: int
    length: int | None
    framed: bool
    persistent: bool
    expects: bool

    @property
    def path(self) -> bytes:
        """Of the target, without a query and without what clients write before it when they think of a proxy."""
        path = self.target.partition(b"?")[0]
        if path.lower().startswith((b"http://", b"https://")):
            path = b"/" + path.split(b"//", 1)[1].partition(b"/")[2]
        return path

    def body(self) -> Body:
        if not self.framed:
            return Sized(0)
        return Chunked() if self.length is None else Sized(self.length)

    def without_expectation(self) -> bytes:
        """`raw` but for the header that asks for 100 Continue."""
        return re.sub(rb"(?im)^expect:[^\r\n]*\r\n", b"", self.raw)


@attrs.frozen
class ResponseHead:
    """`length` of the body if it is said; `chunked`; else to the end of the connection."""

    status: int
    length: int | None
    chunked: bool
    persistent: bool

    @property
    def interim(self) -> bool:
        return self.status < 200 and self.status != 101

    def body(self, method: bytes, content: bytearray | None = None) -> Body:
        """Of the answer to a request with this method."""
        if self.status == 101 or (method == b"CONNECT" and self.status < 300):
            return Endless()
        if method == b"HEAD" or self.status < 200 or self.status in (204, 304):
            return Sized(0)
        if self.chunked:
            return Chunked(content)
        return Endless() if self.length is None else Sized(self.length)


def find_head(data: bytes | bytearray) -> int:
    """The number of bytes of the head at the start of `data`; 0: it is not all there. BadMessage if it is too long."""
    end = data.find(b"\r\n\r\n")
    if end < 0 and len(data) > HEAD_LIMIT or end > HEAD_LIMIT:
        raise BadMessage(f"a head of more than {HEAD_LIMIT} bytes")
    return end + 4 if end >= 0 else 0


def request_head(raw: bytes) -> RequestHead:
    """BadMessage."""
    first, fields = _lines(raw)
    matched = _REQUEST.fullmatch(first)
    if matched is None:
        raise BadMessage("no request line of HTTP/1")
    version = int(matched[3])
    length, encodings = _length(fields), fields.get(b"transfer-encoding", [])
    if encodings and (length is not None or version == 0 or [one.lower() for one in encodings] != [b"chunked"]):
        raise BadMessage("a transfer encoding that cannot be followed")
    return RequestHead(
        raw, matched[1], matched[2], version, length, length is not None or bool(encodings),
        _persistent(version, fields), bool(fields.get(b"expect")),
    )  # fmt: skip


def response_head(raw: bytes) -> ResponseHead:
    """BadMessage."""
    first, fields = _lines(raw)
    matched = _STATUS.fullmatch(first)
    if matched is None:
        raise BadMessage("no status line of HTTP/1")
    version, length = int(matched[1]), _length(fields)
    encodings = [one.lower() for one in fields.get(b"transfer-encoding", [])]
    if encodings and length is not None:
        raise BadMessage("a length beside a transfer encoding")
    chunked = encodings == [b"chunked"]
    framed = chunked or (length is not None and not encodings)
    return ResponseHead(int(matched[2]), length, chunked, framed and _persistent(version, fields))


def _lines(raw: bytes) -> tuple[bytes, dict[bytes, list[bytes]]]:
    first, *lines = raw[:-4].split(b"\r\n")
    fields: dict[bytes, list[bytes]] = {}
    for line in lines:
        matched = _FIELD.fullmatch(line)
        if matched is None:
            raise BadMessage("a header that is none")
        name = matched[1].lower()
        if name in _LOOKED_AT:
            fields.setdefault(name, []).append(matched[2].strip(b" \t"))
    return first, fields


def _length(fields: dict[bytes, list[bytes]]) -> int | None:
    said = fields.get(b"content-length")
    if not said:
        return None
    if len(set(said)) > 1 or not re.fullmatch(rb"[0-9]{1,18}", said[0]):
        raise BadMessage("a length that is none")
    return int(said[0])


def _persistent(version: int, fields: dict[bytes, list[bytes]]) -> bool:
    words = {word.strip().lower() for value in fields.get(b"connection", []) for word in value.split(b",")}
    return b"close" not in words if version else b"keep-alive" in words
