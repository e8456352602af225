"""What joins the members: calls are carried to the one whose they are, offers are made from member to member."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from twisted.internet import defer

from xapi_migrate.errors import MessageMethodUnknown
from xapi_migrate.pool.member_resource import Answerer
from xapi_migrate.pool.members import Members
from xapi_migrate.pool.routing import Routing
from xapi_migrate.refusals import HostOffline
from xapi_migrate.store.interfaces import NULL
from xapi_migrate.store.records import Records
from xapi_migrate.together import started
from xapi_migrate.xenapi.datamodel import Message
from xapi_migrate.xenapi.dispatch import Dispatcher

MOST_HOPS = 3
SETTLE_SECONDS = 3.0
"""A database that is away does not keep the answer to a call for longer."""

Receive = Callable[[str, dict[str, str], str], Awaitable[list[str]]]
"""The engine's VM.receive."""


class Pool:
    """The dispatcher's `pool`. `receive` makes an offer of this host."""

    def __init__(
        self, records: Records, reactor: Any, dispatcher: Dispatcher, members: Members, routing: Routing,
        receive: Receive,
    ) -> None:  # fmt: skip
        self._records = records
        self._reactor = reactor
        self._dispatcher = dispatcher
        self._members = members
        self._routing = routing
        self._receive = receive

    # -- what the dispatcher asks ----------------------------------------------------------------

    def member(self, message: Message, values: Sequence[Any]) -> str:
        """The member that the call belongs to; "" if it is this one."""
        return self._routing.member(message, values)

    async def call(
        self, host: str, message: Message, values: Sequence[Any], user: str, origin: str, background: bool, hops: int
    ) -> Any:
        """The result of a call that another member carries out, for the same user. HostOffline; what it refuses."""
        if hops > MOST_HOPS:
            raise HostOffline(host)
        told = [param.type.to_json(value) for param, value in zip(message.params, values, strict=True)]
        await self.settle()  # what the caller has made just now is there to be seen
        value = await self._members.ask(host, "call", {
            "cls": message.cls, "name": message.name, "values": told, "user": user, "origin": origin,
            "background": background, "hops": hops,
        })  # fmt: skip
        await self._records.refresh()
        return value if background or value is None else message.result.from_json(value)

    async def settle(self) -> None:
        """What was changed here so far is in the database, so that every member can see it; unless that is away."""
        written = started(self._records.flush())
        try:
            await written.addTimeout(SETTLE_SECONDS, self._reactor)
        except defer.TimeoutError:
            pass

    async def refresh(self) -> None:
        """What other members have committed is known here; unless the database is away."""
        await self._records.refresh()

    async def offer(self, host: str, user: str) -> list[str]:
        """The URIs of an offer that another member makes for a VM of this pool."""
        return [str(uri) for uri in await self._members.ask(host, "offer", {"user": user})]

    # -- what other members ask --------------------------------------------------------------------

    def answers(self) -> dict[str, Answerer]:
        return {"hello": self._members.hello, "call": self._carry, "offer": self._make_offer}

    async def _carry(self, told: Mapping[str, Any]) -> Any:
        message = self._records.model.message(str(told["cls"]), str(told["name"]))
        if message is None:
            raise MessageMethodUnknown(f"{told['cls']}.{told['name']}")
        await self._records.refresh()
        values = [param.type.from_json(value) for param, value in zip(message.params, told["values"], strict=True)]
        background = bool(told["background"])
        value = await self._dispatcher.run(
            message, values, "", str(told["user"]), str(told["origin"]), background, int(told["hops"])
        )
        return value if background or value is None else message.result.to_json(value)

    async def _make_offer(self, told: Mapping[str, Any]) -> list[str]:
        return await self._receive(NULL, {}, str(told.get("user", "")))
