"""The calls that the overlay answers itself, or together with the upstream; all others it passes on."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import attrs
from twisted.internet import defer
from twisted.logger import Logger

from ..errors import InternalError, MigrateError
from ..store.interfaces import IRecords, Record
from ..toolstack.destination import OFFER
from ..toolstack.plugin_calls import PLUGIN
from ..xenapi.dispatch import LIST_METHODS, Dispatcher
from ..xenapi.tasks import description
from . import merge
from .client import UpstreamClient
from .front import Mine, Passed, Reply
from .identity import Caller, Identity
from .old_polls import OldPolls
from .peek import Peeked, Wire
from .polls import Polls, Wish
from .refusals import NotPermitted

NEW_CALLS = ("VM.receive", "VM.migrate")
"""Those that the upstream does not know."""
PERMISSIONS = {
    "VM.receive": "host.migrate_receive", "VM.migrate": "vm.migrate_send", "VM.migrate_send": "vm.migrate_send",
    "VM.assert_can_migrate": "vm.migrate_send", "host.call_plugin": "host.call_plugin",
}  # fmt: skip
"""Calls that are carried out here, and the permission of the upstream's that stands for each: that of its own call of
this kind."""
_LOGOUTS = frozenset({"session.logout", "session.local_logout"})
_LISTS = frozenset({"task.get_all", "task.get_all_where", "task.get_by_name_label"})
_MAPS = frozenset({"task.get_all_records", "task.get_all_records_where"})


@attrs.frozen
class Names:
    """Of the calls that are to be looked into."""

    fixed: frozenset[str]

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and (name in self.fixed or name.startswith(("task.", "Async.task.")))


def _spellings(name: str) -> tuple[str, str, str]:
    return name, name.replace(".", "_", 1), f"Async.{name}"


OURS = {spelling: name for name in PERMISSIONS for spelling in _spellings(name)}
_REGISTRATIONS = frozenset({"event.register", "event.unregister"})
_EVENTS = frozenset({"event.from", "event.inject", "event.next", *_REGISTRATIONS})
WANTED = Names(frozenset({*OURS, *_LOGOUTS, *_EVENTS, LIST_METHODS}))


class OverlayCalls:
    """`dispatcher` carries out our own calls and those of our own tasks, which are in `records`."""

    log = Logger()

    def __init__(
        self, client: UpstreamClient, identity: Identity, polls: Polls, old_polls: OldPolls, dispatcher: Dispatcher,
        records: IRecords,
    ) -> None:  # fmt: skip
        self._client = client
        self._identity = identity
        self._polls = polls
        self._old_polls = old_polls
        self._dispatcher = dispatcher
        self._records = records

    def decide(self, call: Peeked, path: bytes, body: bytes, origin: str) -> Mine | Passed:
        """What becomes of one of the WANTED calls."""
        name = call.method
        session = call.params[0] if call.params else None
        if name in _LOGOUTS:
            self.ended(session)
            # once more when it has happened: somebody may have asked about the session meanwhile
            return Passed(after=lambda: self.ended(session))
        if name == LIST_METHODS:
            return self._mine(call, self._merged(call, path, body, self._more_methods))
        if name == "event.inject":
            return self._mine(call, self._injected(call, path, body))
        if name == "event.from":
            wish = Wish.of(call, path)
            return Passed(True) if wish is None else self._mine(call, self._events(wish), abandon=True)
        if name in _REGISTRATIONS:
            return self._mine(call, self._vouched(call, self._old_polls.subscribe(call, path, body)))
        if name == "event.next":
            if not self._old_polls.knows(session):
                return Passed(waits=True)
            return self._mine(call, self._vouched(call, self._old_polls.next(call, path, body)), abandon=True)
        if name in OURS:
            if OURS[name] in NEW_CALLS:
                return self._mine(call, self._own(call, origin))
            if OURS[name] == "host.call_plugin":
                ours = len(call.params) > 2 and call.params[2] == PLUGIN
                return self._mine(call, self._own_if_here(call, path, body, origin)) if ours else Passed()
            if not _to_one_of_ours(call.params):
                return Passed()
            return self._mine(call, self._own_if_halted(call, path, body, origin))
        return self._task(call, path, body, origin)

    def knows(self, session: Any) -> bool:
        """Whether the upstream has vouched for this session, and not taken that back as far as is known."""
        return self._identity.knows(session)

    def ended(self, session: Any) -> None:
        """A session has ended, or will in a moment: ours with it."""
        self._identity.forget(session)
        if isinstance(session, str):
            self._polls.forget(session)
            self._old_polls.forget(session)

    # -- our own ---------------------------------------------------------------------------------

    async def _own(self, call: Peeked, origin: str) -> bytes:
        caller = await self._caller(call)
        caller.must_be_permitted(PERMISSIONS[OURS[call.method]])
        return call.success(await self._dispatcher.call(call.method, call.params, origin))

    async def _own_if_halted(self, call: Peeked, path: bytes, body: bytes, origin: str) -> bytes:
        """A VM that runs is moved by the upstream, if it can do that."""
        session, vm = call.params[:2]
        if await self._client.call("VM.get_power_state", session, vm) in ("Halted", "Suspended"):
            return await self._own(call, origin)
        return await self._client.send(path, call.content_type, body, False, None)

    async def _own_if_here(self, call: Peeked, path: bytes, body: bytes, origin: str) -> bytes:
        """Beside another host of the upstream's pool is another daemon, or none."""
        session, host = call.params[:2]
        if await self._client.call("session.get_this_host", session, session) == host:
            return await self._own(call, origin)
        return await self._client.send(path, call.content_type, body, False, None)

    async def _caller(self, call: Peeked) -> Caller:
        return await self._identity.check(call.params[0] if call.params else None)

    # -- tasks -----------------------------------------------------------------------------------

    def _task(self, call: Peeked, path: bytes, body: bytes, origin: str) -> Mine | Passed:
        name = call.method
        if name in _LISTS:
            return self._mine(call, self._with_tasks(call, path, body, origin, _with_items))
        if name in _MAPS:
            return self._mine(call, self._with_tasks(call, path, body, origin, _with_members))
        known = self._our_task(name, call.params)
        reading = ".get_" in name
        return Passed(reading) if known is None else self._mine(call, self._of_ours(call, known, origin))

    def _our_task(self, name: str, params: list[Any]) -> Record | None:
        wanted = params[1] if len(params) > 1 else None
        if not isinstance(wanted, str):
            return None
        try:
            if name == "task.get_by_uuid":
                wanted = self._records.by_uuid("task", wanted)
            return self._records.get("task", wanted)
        except MigrateError:
            return None

    async def _of_ours(self, call: Peeked, task: Record, origin: str) -> bytes:
        caller = await self._caller(call)
        if ".get_" not in call.method and not caller.superuser and task.get("_user") != caller.user:
            raise NotPermitted(caller.user, f"{call.method.removeprefix('Async.')}/any".lower())
        return call.success(await self._dispatcher.call(call.method, call.params, origin))

    async def _with_tasks(
        self, call: Peeked, path: bytes, body: bytes, origin: str, put: Callable[[merge.Answer, Any], bytes]
    ) -> bytes:
        await self._caller(call)

        async def together(answer: merge.Answer) -> bytes:
            return put(answer, await self._dispatcher.call(call.method, call.params, origin))

        return await self._merged(call, path, body, together)

    # -- answers of both -------------------------------------------------------------------------

    async def _merged(
        self, call: Peeked, path: bytes, body: bytes, together: Callable[[merge.Answer], Awaitable[bytes]]
    ) -> bytes:
        said = await self._client.send(path, call.content_type, body, True)
        answer = merge.read(call, said)
        return merge.refused(call, said) if answer is None else await together(answer)

    async def _more_methods(self, answer: merge.Answer) -> bytes:
        return answer.with_items([name for name in NEW_CALLS if not answer.holds(name)])

    async def _injected(self, call: Peeked, path: bytes, body: bytes) -> bytes:
        async def together(answer: merge.Answer) -> bytes:
            return answer.with_token(self._polls.token(answer.token()))

        return await self._merged(call, path, body, together)

    async def _events(self, wish: Wish) -> bytes:
        if wish.our_classes:
            await self._identity.check(wish.session)
        return await self._polls.answer(wish)

    async def _vouched(self, call: Peeked, work: Coroutine[Any, Any, bytes]) -> bytes:
        try:
            await self._caller(call)
        except BaseException:
            work.close()
            raise
        return await work

    # -- edges -----------------------------------------------------------------------------------

    def _mine(self, call: Peeked, work: Awaitable[bytes], abandon: bool = False) -> Mine:
        return Mine(self._replied(call, work), abandon, call.params[0] if call.params else None)

    async def _replied(self, call: Peeked, work: Awaitable[bytes]) -> Reply:
        try:
            return Reply(b"200 OK", call.content_type, await work)
        except defer.CancelledError:
            raise
        except merge.Unreadable as wrong:
            error: Exception = InternalError(f"The answer of the toolstack to {call.method} cannot be used: {wrong}.")
            self.log.warn("{error}", error=str(error))
        except Exception as failed:
            error = failed
            if not isinstance(failed, MigrateError):
                self.log.failure("The call {method} failed", method=call.method)
        if call.wire is Wire.XML and call.method == LIST_METHODS:
            return Reply(b"502 Bad Gateway", b"text/plain; charset=utf-8", f"{error}\n".encode())
        return Reply(b"200 OK", call.content_type, call.failure(description(error)))


def _with_items(answer: merge.Answer, ours: list[str]) -> bytes:
    return answer.with_items(ours)


def _with_members(answer: merge.Answer, ours: dict[str, Any]) -> bytes:
    return answer.with_members(ours)


def _to_one_of_ours(params: list[Any]) -> bool:
    """Whether the destination of VM.migrate_send is a host that made an offer of ours."""
    return len(params) > 2 and isinstance(params[2], dict) and OFFER in params[2]
