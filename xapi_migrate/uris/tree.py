"""The resource tree below /migrate and its one gate.

    /migrate/CAPABILITY            HEAD GET DELETE
    /migrate/CAPABILITY/metadata   PUT
    /migrate/CAPABILITY/disk/N     GET
    /migrate/CAPABILITY/memory     PUT
    /migrate/CAPABILITY/control    GET PUT

The gate sees a request when its headers are in and before any byte of its body is kept. It matches the path as it
came, undecoded: no form of it needs an escape, so `%`, `//`, `;`, `?` and a slash at the end lie outside of the
grammar. Whatever lies outside, and every capability that opens nothing, gets one and the same 404.
"""

from __future__ import annotations

import re
from enum import Enum
from typing import Any

import attrs
from twisted.web.iweb import IRequest
from twisted.web.resource import Resource

from ..migration.interfaces import IOffers, IReceiving
from . import control, disk, metadata, status
from .capability import PATTERN
from .reply import NOT_FOUND, Reply, not_allowed, revoked
from .verb import Verb

PREFIX = b"migrate"

_GRAMMAR = re.compile(
    rf"/migrate/(?P<capability>{PATTERN})"
    r"(?:/(?:(?P<word>metadata|memory|control)|(?P<disk>disk)/(?P<number>0|[1-9][0-9]{0,2})))?".encode()
)
LAST_DISK = 255

# what is still answered after the end
_AFTER_THE_END = {("base", "HEAD"), ("base", "DELETE"), ("control", "GET"), ("control", "PUT")}


class Streamed(Enum):
    """Stands where a Verb would for what is not collected."""

    MEMORY = "memory"


@attrs.frozen
class Admission:
    """A request that the gate let through: which migration, which verb, which disk."""

    receiving: IReceiving
    verb: Verb | Streamed
    number: int = 0


def below(path: bytes) -> bool:
    """Whether a request's path, as it came, belongs to this tree. The gate decides about every such path."""
    rest = path[1 : len(PREFIX) + 1]
    return path[:1] == b"/" and rest == PREFIX and path[len(PREFIX) + 1 : len(PREFIX) + 2] in (b"", b"/", b"?", b";")


class MigrationTree(Resource):
    """All migration URIs of this host. Requests reach it through `MigrationRequest`, which asks `admit`; what comes
    through ordinary traversal (an escaped spelling of /migrate, say) has not passed the gate and gets its 404."""

    isLeaf = True

    def __init__(self, offers: IOffers, metadata_limit: int, reactor: Any, memory_silence: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.reactor = reactor
        self.memory_silence = memory_silence
        self._offers = offers
        self._routes: dict[str, dict[str, Verb | Streamed]] = {
            "base": {"HEAD": Verb(status.head), "GET": Verb(status.get), "DELETE": Verb(status.delete)},
            "metadata": {"PUT": Verb(metadata.put, metadata_limit)},
            "disk": {"GET": Verb(disk.get)},
            "memory": {"PUT": Streamed.MEMORY},
            "control": {"GET": Verb(control.get), "PUT": Verb(control.put, control.BODY_LIMIT)},
        }

    def admit(self, method: bytes, path: bytes) -> Admission | Reply:
        """The gate: an admission, or the reply that refuses."""
        matched = _GRAMMAR.fullmatch(path)
        number = int(matched["number"] or 0) if matched else 0
        if matched is None or number > LAST_DISK:
            return NOT_FOUND
        receiving = self._offers.find(matched["capability"].decode())
        if receiving is None:
            return NOT_FOUND
        receiving.touch()
        route = (matched["word"] or matched["disk"] or b"base").decode()
        verb = self._routes[route].get(method.decode("latin-1"))
        if verb is None:
            return not_allowed(tuple(self._routes[route]))
        if receiving.revoked and (route, method.decode()) not in _AFTER_THE_END:
            return revoked(receiving)
        return Admission(receiving, verb, number)

    def render(self, request: IRequest) -> bytes:
        request.setResponseCode(NOT_FOUND.status)
        request.setHeader(b"Content-Type", NOT_FOUND.content_type.encode())
        request.setHeader(b"X-Content-Type-Options", b"nosniff")
        request.setHeader(b"Cache-Control", b"no-store")
        return NOT_FOUND.body
