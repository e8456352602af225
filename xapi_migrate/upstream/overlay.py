"""What becomes of each request: ours, or the upstream's."""

from __future__ import annotations

from twisted.logger import Logger

from ..xenapi.tasks import description
from . import peek
from .address import UpstreamAddress
from .front import Mine, Passed, Reply
from .messages import RequestHead
from .peek import Wire, wire_of
from .pool import Pool
from .refusals import UpstreamSilent

_NOT_DONE = "Nothing has been done."
_PERHAPS_DONE = "Whether it has done what it was asked is not known: look before you ask again."
_READING = (".get_", "event.from", "system.")


class Overlay:
    """`limit`: a longer call is not looked into, in bytes."""

    log = Logger()

    def __init__(self, address: UpstreamAddress, pool: Pool, limit: int) -> None:
        self.pool = pool
        self.local_only = address.local
        self._address = address
        self._limit = limit

    def holds_call(self, head: RequestHead) -> bool:
        if head.method != b"POST" or head.length is None or head.length > self._limit:
            return False
        return wire_of(head.path) is not None

    def decide(self, head: RequestHead, body: bytes, origin: str) -> Mine | Passed:
        form = wire_of(head.path) if body else None
        if form is None:
            return Passed(head.method in (b"GET", b"HEAD", b"OPTIONS"))
        return Passed(all(any(word in name for word in _READING) for name in peek.names(form, body)))

    def unanswered(self, head: RequestHead, body: bytes, reason: str, tried: bool) -> Reply:
        error = UpstreamSilent(str(self._address), reason, _PERHAPS_DONE if tried else _NOT_DONE)
        self.log.warn("{error}", error=str(error))
        form = wire_of(head.path) if body else None
        call = peek.parse(form, body) if form is not None else None
        if call is None:
            return Reply(b"502 Bad Gateway", b"text/plain; charset=utf-8", f"{error}\n".encode())
        if call.wire is Wire.XML and call.method == "system.listMethods":
            # its answers have no place for an error
            return Reply(b"502 Bad Gateway", b"text/plain; charset=utf-8", f"{error}\n".encode())
        return Reply(b"200 OK", call.content_type, call.failure(description(error)))
