"""What becomes of each request: ours, or the upstream's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet import defer
from twisted.logger import Logger

from ..xenapi.dispatch import LIST_METHODS
from ..xenapi.tasks import description
from . import peek
from .address import UpstreamAddress
from .calls import NEW_CALLS, OURS, WANTED, OverlayCalls
from .extension_program import PATH as EXTENSION
from .front import Mine, Passed, Reply
from .messages import RequestHead
from .peek import Wire, wire_of
from .pool import Pool
from .refusals import UpstreamSilent

_NOT_OURS = Reply(b"400 Bad Request", b"text/plain", b"This is no call of ours, or too long.\n", True)
_READING = (".get_", "event.from", "system.")
_WAITING = frozenset({"event.from", "event.next"})


class Overlay:
    """`limit`: a longer call is not looked into, in bytes. `calls`: those that are not the upstream's alone; `closes`
    ends what they left waiting."""

    log = Logger()

    def __init__(
        self, address: UpstreamAddress, pool: Pool, limit: int, calls: OverlayCalls, closes: Callable[[], None]
    ) -> None:
        self.pool = pool
        self.local_only = address.local
        self._address = address
        self._limit = limit
        self.calls = calls
        self._closes = closes

    def close(self) -> None:
        """Let all connections to the upstream go."""
        self._closes()
        self.pool.close()

    def holds_call(self, head: RequestHead) -> bool:
        if head.method != b"POST" or head.length is None or head.length > self._limit:
            return False
        return head.path == EXTENSION or wire_of(head.path) is not None

    def knows(self, session: Any) -> bool:
        return self.calls.knows(session)

    def decide(self, head: RequestHead, body: bytes, origin: str) -> Mine | Passed:
        if head.path == EXTENSION:
            return self._from_extension(body, origin)
        form = wire_of(head.path) if body else None
        if form is None:
            return Passed(head.method in (b"GET", b"HEAD", b"OPTIONS"))
        call = peek.peek(form, body, WANTED)
        if call is not None:
            return self.calls.decide(call, head.path, body, origin)
        names = peek.names(form, body)
        reading = bool(names) and all(any(word in name for word in _READING) for name in names)
        return Passed(reading, waits=any(name in _WAITING for name in names))

    def _from_extension(self, body: bytes, origin: str) -> Mine:
        """A call that xapi hands to us: nothing of it goes back there as it is. `body` is "" if it was too long."""
        call = peek.parse(Wire.XML, body) if body else None
        if call is None or OURS.get(call.method) not in NEW_CALLS:
            return Mine(defer.succeed(_NOT_OURS))
        decided = self.calls.decide(call, b"/RPC2", body, origin)
        assert isinstance(decided, Mine)
        return decided

    def unanswered(self, head: RequestHead, body: bytes, reason: str, tried: bool) -> Reply:
        error = UpstreamSilent.after(str(self._address), reason, tried)
        self.log.warn("{error}", error=str(error))
        form = wire_of(head.path) if body else None
        call = peek.parse(form, body) if form is not None else None
        if call is None or (call.wire is Wire.XML and call.method == LIST_METHODS):
            return Reply(b"502 Bad Gateway", b"text/plain; charset=utf-8", f"{error}\n".encode())
        return Reply(b"200 OK", call.content_type, call.failure(description(error)))
