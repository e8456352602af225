"""A conversation byte by byte: what a client library would hide."""

from __future__ import annotations

import json
import socket
from typing import Any

import attrs
from lxml import etree

LIMIT = 60.0
"""Seconds that any answer may take."""


@attrs.frozen
class Answer:
    """`headers` by name in lower case, as they came."""

    line: str
    headers: dict[str, str]
    body: bytes

    @property
    def status(self) -> int:
        return int(self.line.split()[1])

    @property
    def text(self) -> str:
        return self.body.decode()

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    def value(self) -> str:
        """The XML of what a successful call answers."""
        head = (
            '<?xml version="1.0"?><methodResponse><params><param><value><struct><member><name>Status</name>'
            "<value>Success</value></member><member><name>Value</name>"
        )
        tail = "</member></struct></value></param></params></methodResponse>"
        assert self.text.startswith(head) and self.text.endswith(tail), self.text[:300]
        return self.text[len(head) : -len(tail)]

    def error(self) -> list[str]:
        """The ErrorDescription of one that is refused."""
        head = (
            '<?xml version="1.0"?><methodResponse><params><param><value><struct><member><name>Status</name>'
            "<value>Failure</value></member><member><name>ErrorDescription</name><value><array><data>"
        )
        tail = "</data></array></value></member></struct></value></param></params></methodResponse>"
        assert self.text.startswith(head) and self.text.endswith(tail), self.text[:300]
        assert (self.status, self.headers["content-type"]) == (200, "text/xml")
        root = etree.fromstring(self.body)
        return [value.text or "" for value in root.findall(".//data/value")]


class Conversation:
    """One connection."""

    def __init__(self, address: tuple[str, int] | str) -> None:
        family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
        self.socket = socket.socket(family)
        self.socket.settimeout(LIMIT)
        self.socket.connect(address)
        self._unread = b""

    def __enter__(self) -> Conversation:
        return self

    def __exit__(self, *exception: object) -> None:
        self.socket.close()

    def say(self, *pieces: bytes | str) -> None:
        self.socket.sendall(b"".join(piece if isinstance(piece, bytes) else piece.encode() for piece in pieces))

    def _more(self) -> bool:
        piece = self.socket.recv(65536)
        self._unread += piece
        return bool(piece)

    def head(self) -> tuple[str, dict[str, str]]:
        """Status line and headers."""
        while b"\r\n\r\n" not in self._unread:
            assert self._more(), f"closed in the middle of {self._unread!r}"
        raw, _, self._unread = self._unread.partition(b"\r\n\r\n")
        line, *lines = raw.decode("ascii").split("\r\n")
        pairs = [one.split(": ", 1) for one in lines]
        headers = {name.lower(): value for name, value in pairs}
        assert len(headers) == len(pairs), "a header came twice"
        return line, headers

    def answer(self, body: bool = True) -> Answer:
        """The next answer; `body` False: to a HEAD."""
        line, headers = self.head()
        length = int(headers["content-length"]) if body else 0
        while len(self._unread) < length:
            assert self._more(), "closed in the middle of the body"
        whole, self._unread = self._unread[:length], self._unread[length:]
        return Answer(line, headers, whole)

    def ended(self) -> bool:
        """Whether the server has closed, with nothing more to say."""
        return not self._unread and not self._more()


def post(body: bytes | str, path: str = "/", version: str = "1.1", **headers: str) -> bytes:
    """A request. A header with an underscore in its name is one with a hyphen."""
    raw = body if isinstance(body, bytes) else body.encode()
    given = {"Host": "x", "Content-Length": str(len(raw)), **{n.replace("_", "-"): v for n, v in headers.items()}}
    head = "".join(f"{name}: {value}\r\n" for name, value in given.items())
    return f"POST {path} HTTP/{version}\r\n{head}\r\n".encode() + raw


def xml(method: str, *values: str) -> str:
    """A call; values are the inside of <value>."""
    params = "".join(f"<param><value>{value}</value></param>" for value in values)
    return f"<?xml version='1.0'?><methodCall><methodName>{method}</methodName><params>{params}</params></methodCall>"


def struct(**members: str) -> str:
    inside = "".join(f"<member><name>{name}</name><value>{value}</value></member>" for name, value in members.items())
    return f"<struct>{inside}</struct>"
