"""event.*"""

from __future__ import annotations

from typing import Any

from xapi_migrate.xenapi.calls import CallContext
from xapi_migrate.xenapi.events import Events


class EventCalls:
    def __init__(self, events: Events) -> None:
        self._events = events

    async def event_from(self, call: CallContext, classes: list[str], token: str, timeout: float) -> dict[str, Any]:
        return await self._events.since(call.session, classes, token, timeout)

    def event_inject(self, call: CallContext, cls: str, ref: str) -> str:
        return self._events.inject(cls, ref)

    def event_get_current_id(self, call: CallContext) -> int:
        return self._events.current
