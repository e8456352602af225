"""event.*"""

from __future__ import annotations

from typing import Any

import attrs

from xapi_migrate.errors import EventsLost, SessionNotRegistered
from xapi_migrate.store.interfaces import Change
from xapi_migrate.store.records import Records
from xapi_migrate.xenapi.calls import CallContext
from xapi_migrate.xenapi.events import Events, Subscription
from xapi_migrate.xenapi.sessions import kept


@attrs.define
class _Registration:
    """What a session that uses the old calls is told of: `seen` is the number of the last change it knows."""

    classes: set[str]
    seen: int


class EventCalls:
    """event.register and event.next are the old way, by which the server remembers what a session has seen; event.from
    the new one, by which the client does."""

    def __init__(self, events: Events, records: Records) -> None:
        self._events = events
        self._records = records
        self._registered: dict[str, _Registration] = {}
        records.subscribe(self._note)

    def _note(self, change: Change) -> None:
        if change.cls == "session" and change.operation == "del":
            self._registered.pop(change.ref, None)

    async def event_from(self, call: CallContext, classes: list[str], token: str, timeout: float) -> dict[str, Any]:
        return await self._events.since(call.session, classes, token, timeout)

    def event_inject(self, call: CallContext, cls: str, ref: str) -> str:
        return self._events.inject(cls, ref)

    def event_get_current_id(self, call: CallContext) -> int:
        return self._events.current

    def event_register(self, call: CallContext, classes: list[str]) -> None:
        """From now on the session is told of these classes."""
        Subscription(classes, self._records.model)
        known = self._registered.setdefault(kept(call.session), _Registration(set(), self._events.current))
        known.classes.update(name.lower() for name in classes)

    def event_unregister(self, call: CallContext, classes: list[str]) -> None:
        known = self._registered.get(kept(call.session))
        if known is None:
            return
        known.classes.difference_update(name.lower() for name in classes)
        if not known.classes or "*" in classes:
            del self._registered[kept(call.session)]

    async def event_next(self, call: CallContext) -> list[dict[str, Any]]:
        """Waits for as long as it takes; there is always something in the answer."""
        known = self._registered.get(kept(call.session))
        if known is None:
            raise SessionNotRegistered(call.session)
        try:
            events = await self._events.next(call.session, sorted(known.classes), known.seen)
        except EventsLost:
            known.seen = self._events.current
            raise
        known.seen = self._events.current
        return events
