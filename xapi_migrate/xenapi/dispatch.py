"""One call: found, its session checked, its parameters converted, carried out. The same for all wires."""

from __future__ import annotations

from collections.abc import Awaitable, Container, Iterable, Mapping, Sequence
from typing import Any, Protocol

from twisted.internet import defer
from twisted.logger import Logger

from xapi_migrate.errors import HandleInvalid, MessageMethodUnknown, MigrateError, NotImplementedHere, RemoteError
from xapi_migrate.store.interfaces import IRecords
from xapi_migrate.together import started
from xapi_migrate.xenapi.arguments import Arguments
from xapi_migrate.xenapi.calls import Call, CallContext, calls_of
from xapi_migrate.xenapi.datamodel import DataModel, Message
from xapi_migrate.xenapi.generic import Check, GenericCalls
from xapi_migrate.xenapi.sessions import Sessions, kept
from xapi_migrate.xenapi.tasks import Task, Tasks
from xapi_migrate.xenapi.types import Kind

LIST_METHODS = "system.listMethods"


class InPool(Protocol):
    """What the dispatcher asks of a pool: see pool/pool.py."""

    def member(self, message: Message, values: Sequence[Any]) -> str: ...
    async def call(
        self, host: str, message: Message, values: Sequence[Any], user: str, origin: str, background: bool, hops: int
    ) -> Any: ...
    async def settle(self) -> None: ...
    async def refresh(self) -> None: ...


class Dispatcher:
    """All calls of this server. `elsewhere`: classes whose objects another server has, so that a reference that is not
    known here may be good."""

    log = Logger()

    def __init__(
        self, model: DataModel, records: IRecords, sessions: Sessions, tasks: Tasks,
        elsewhere: Container[str] = frozenset(),
    ) -> None:  # fmt: skip
        self._model = model
        self._sessions = sessions
        self._tasks = tasks
        self._arguments = Arguments(model, lambda cls, ref: cls in elsewhere or _exists(records, cls, ref))
        self.pool: InPool | None = None
        """The other members of this host's pool, where it is in one."""
        self._calls: dict[str, Call] = {}
        self._under_way: set[defer.Deferred[None]] = set()
        self._stopping = False
        self._generic = GenericCalls(model, records)
        self._add(self._generic.all())

    def register(self, *implementers: object) -> None:
        """Objects whose methods Class_message(call, parameters...) carry out calls; they win over generic ones.
        TypeError for a method that does not fit the data model."""
        for implementer in implementers:
            self._add(calls_of(self._model, implementer))

    def check_fields(self, checks: Mapping[tuple[str, str], Check]) -> None:
        """Before clients change a field, (class, field), its check is asked with the object's ref and what the field
        would be."""
        self._generic.checks.update(checks)

    def _add(self, calls: Iterable[Call]) -> None:
        self._calls.update((call.message.full_name, call) for call in calls)

    def methods(self) -> list[str]:
        """The names of all calls that are carried out here."""
        return sorted(self._calls)

    def knows(self, session: Any) -> bool:
        """Whether this is a session, as far as is known here."""
        try:
            return bool(self._sessions.check(session))
        except MigrateError:
            return False

    async def call(self, method: str, params: list[Any], origin: str) -> Any:
        """The result. MigrateError for what a client is told; anything else is a bug of ours."""
        if method == LIST_METHODS:
            return self.methods()
        if method.startswith("system.isAlive:"):
            return params[0] if params else ""
        in_background = method.startswith("Async.")
        message = self._find(method.removeprefix("Async."), underscores=not in_background)
        if message is None:
            if params:
                await self._sessions.look_for(params[0])
            raise MessageMethodUnknown(method)
        self._arguments.count(message, params)
        session, user = "", ""
        if message.session:
            user = await self._sessions.look_for(params[0])
            session, params = params[0], params[1:]
        if in_background and not message.is_async:
            text = f"No async mode for this operation (rpc: {message.full_name})"
            raise RemoteError(["Fault", text], text)
        values = await self._values(message, params)
        return await self.run(message, values, session, user, origin, in_background)

    async def _values(self, message: Message, params: list[Any]) -> list[Any]:
        try:
            values = self._arguments.convert(message, params)
        except HandleInvalid:
            if self.pool is None:
                raise
            await self.pool.refresh()  # another member may have made it just now
            values = self._arguments.convert(message, params)
        of_sessions = [param.type.kind is Kind.REF and param.type.name == "session" for param in message.params]
        return [kept(value) if secret else value for value, secret in zip(values, of_sessions, strict=True)]

    async def run(
        self, message: Message, values: list[Any], session: str, user: str, origin: str, background: bool, hops: int = 0
    ) -> Any:
        """The result of a call, or the task's ref of one in the background. `hops`: how many members have handed it
        on."""
        if self.pool is not None:
            member = self.pool.member(message, values)
            if member:
                return await self.pool.call(member, message, values, user, origin, background, hops + 1)
        known = self._calls.get(message.full_name)
        if known is None:
            raise NotImplementedHere(message.full_name)
        name = message.label or message.full_name
        if background:
            result = self._begin(known, self._context(message, session, user, origin, f"Async.{name}"), values)
        else:
            result = await self._now(known, self._context(message, session, user, origin, name), values)
        if self.pool is not None and not message.name.startswith("get_") and message.cls != "event":
            await self.pool.settle()
        return result

    def _find(self, name: str, underscores: bool) -> Message | None:
        cls, dot, rest = name.partition(".")
        if not dot and underscores:
            # classes may have underscores themselves: VM_metrics_get_record
            for candidate in sorted(self._model.classes, key=len, reverse=True):
                if name.startswith(candidate + "_"):
                    return self._model.message(candidate, name[len(candidate) + 1 :])
        return self._model.message(cls, rest)

    def _context(self, message: Message, session: str, user: str, origin: str, label: str) -> CallContext:
        return CallContext(session, user, origin, message.full_name, lambda: self._tasks.begin(label, user=user))

    async def _now(self, known: Call, context: CallContext, values: list[Any]) -> Any:
        try:
            result = known.run(context, *values)
            if isinstance(result, Awaitable):
                result = await result
        except BaseException as error:
            if context.started is not None and not self._stopping:
                context.started.fail(error)
            raise
        if context.started is not None:
            context.started.succeed(result)
        return result

    def _begin(self, known: Call, context: CallContext, values: list[Any]) -> str:
        ref: str = context.task.ref
        work = started(self._in_task(known, context, context.task, values))
        self._under_way.add(work)
        work.addBoth(lambda _: self._under_way.discard(work))
        return ref

    async def _in_task(self, known: Call, context: CallContext, task: Task, values: list[Any]) -> None:
        try:
            await self._now(known, context, values)
        except MigrateError as error:
            self.log.info("{method} ended: {code}", method=context.method, code=error.failure()[0])
        except defer.CancelledError:
            pass
        except Exception:
            self.log.failure("{method} failed", method=context.method)

    def stop(self) -> None:
        """The daemon ends: calls are let go of, their tasks stay pending. The next daemon goes on with those of
        migrations and fails the others."""
        self._stopping = True
        for work in list(self._under_way):
            work.cancel()


def _exists(records: IRecords, cls: str, ref: str) -> bool:
    try:
        records.get(cls, kept(ref) if cls == "session" else ref)
    except MigrateError:
        return False
    return True
