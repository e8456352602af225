"""What implements calls: objects with methods named Class_message, joined to the data model at wiring."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import attrs

from xapi_migrate.xenapi.datamodel import DataModel, Message
from xapi_migrate.xenapi.tasks import Task

Implementation = Callable[..., Any]
"""(CallContext, parameters...) -> the result or an awaitable of it."""


@attrs.define
class CallContext:
    """One call. `session` its session's ref (a secret), `user` who logged in, `origin` the address that the call came
    from, `method` its name. `task`: of an Async call its task, of others one that is made when first asked for."""

    session: str
    user: str
    origin: str
    method: str
    make_task: Callable[[], Task] = attrs.field(repr=False)
    started: Task | None = None

    @property
    def task(self) -> Task:
        if self.started is None:
            self.started = self.make_task()
        return self.started


@attrs.frozen
class Call:
    """A message and what carries it out."""

    message: Message
    run: Implementation


def calls_of(model: DataModel, implementer: object) -> Iterator[Call]:
    """The calls that an object implements. TypeError for a method that the data model knows not, or otherwise."""
    for name, method in inspect.getmembers(implementer, callable):
        cls, _, message_name = name.partition("_")
        if name.startswith("_") or cls not in model.classes:
            continue
        message = model.message(cls, message_name)
        if message is None:
            raise TypeError(f"{type(implementer).__name__}.{name}: the data model has no such call")
        try:
            inspect.signature(method).bind(None, *message.params)
        except TypeError:
            raise TypeError(f"{type(implementer).__name__}.{name} does not take the call's parameters") from None
        yield Call(message, method)
