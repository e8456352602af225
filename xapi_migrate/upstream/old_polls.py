"""event.register and event.next at both: the upstream and this side each remember what a session has seen.

What event.next has answered the upstream will not tell again. So its waiting call is never cut while its client is
there: it is kept for the client's next one, and if it is lost, the client hears that events are.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import attrs
from twisted.internet import defer
from twisted.python.failure import Failure

from ..errors import EventsLost
from ..together import started
from ..xenapi.events import Events
from . import merge
from .client import UpstreamClient
from .peek import Peeked, Wire
from .polls import drop, first, ours_of
from .pool import Kind

MOST = 2000
"""Sessions that are told of our tasks; one more, and the oldest is told of the upstream's events alone."""


@attrs.define
class _Told:
    """`seen`: the number of the last change that the session knows. `theirs`: the upstream's waiting call, while the
    client does not wait."""

    classes: set[str]
    seen: int
    theirs: defer.Deferred[bytes] | None = None


class OldPolls:
    """Of all sessions that use these calls for our tasks."""

    def __init__(self, client: UpstreamClient, events: Events) -> None:
        self._client = client
        self._events = events
        self._told: OrderedDict[str, _Told] = OrderedDict()

    def knows(self, session: Any) -> bool:
        """Whether it is told of our tasks by event.next."""
        return isinstance(session, str) and session in self._told

    async def subscribe(self, call: Peeked, path: bytes, body: bytes) -> bytes:
        """event.register and event.unregister: what the upstream answers. The session has been vouched for."""
        said = await self._client.send(path, call.content_type, body, False)
        session, classes = call.params[0], call.params[1] if len(call.params) == 2 else []
        if merge.read(call, said) is None or not isinstance(classes, list):
            return said
        names = [name for name in classes if isinstance(name, str)]
        if call.method == "event.register":
            self._register(session, ours_of(names))
        elif self.knows(session):
            told = self._told[session]
            told.classes.difference_update(told.classes if "*" in names else ours_of(names))
            if not told.classes:
                self.forget(session)
        return said

    def _register(self, session: str, ours: list[str]) -> None:
        if not ours:
            return
        self._told.setdefault(session, _Told(set(), self._events.current)).classes.update(ours)
        while len(self._told) > MOST:
            self.forget(next(iter(self._told)))

    async def next(self, call: Peeked, path: bytes, body: bytes) -> bytes:
        """event.next of a session that `knows`. MigrateError, merge.Unreadable."""
        session = call.params[0]
        told = self._told[session]
        kept, told.theirs = told.theirs, None
        theirs = kept or self._ask(call, path, body)
        own = started(self._events.next(session, sorted(told.classes), told.seen))
        await first(theirs, own)
        if kept is not None and kept.called and isinstance(kept.result, Failure):
            drop(kept)
            drop(own)
            raise EventsLost  # it may have answered somebody who was not there
        if not theirs.called:
            self._keep(session, told, theirs)
            return call.success(await self._ours(told, own))
        answer = merge.read(call, said := await theirs)
        if answer is None or not own.called:
            drop(own)
            # a kept one answers another call, whose id JSON has to say
            return said if kept is None or answer is None or call.wire is Wire.XML else answer.with_items([])
        return answer.with_items(await self._ours(told, own))

    def _ask(self, call: Peeked, path: bytes, body: bytes) -> defer.Deferred[bytes]:
        if self._client.crowded(Kind.POLL):
            waiting = (told.theirs for told in self._told.values() if told.theirs and not told.theirs.called)
            for oldest in waiting:
                oldest.cancel()  # it has failed then: what it would have said is lost for its session
                break
        return started(self._client.send(path, call.content_type, body, False, None, Kind.POLL))

    async def _ours(self, told: _Told, own: defer.Deferred[list[dict[str, Any]]]) -> list[dict[str, Any]]:
        try:
            return await own
        finally:
            told.seen = self._events.current

    def _keep(self, session: str, told: _Told, theirs: defer.Deferred[bytes]) -> None:
        if self._told.get(session) is not told or told.theirs is not None:
            drop(theirs)  # the session has ended, or waits more than once
        else:
            told.theirs = theirs

    def forget(self, session: str) -> None:
        """It has ended, or wants no more."""
        told = self._told.pop(session, None)
        if told is not None and told.theirs is not None:
            drop(told.theirs)

    def stop(self) -> None:
        for session in list(self._told):
            self.forget(session)
