"""Every call that this server answers, given what no client should send: each ends with a value or with an error of the
catalogue, and none is answered to who has no session."""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest_twisted
from twisted.internet import defer, reactor

from tests.toolstack.small_host import SmallHost, small_host
from xapi_migrate.errors import MigrateError, SessionInvalid
from xapi_migrate.together import started
from xapi_migrate.xenapi.datamodel import Message
from xapi_migrate.xenapi.types import Kind, Type

SEED = 20111122
JUNK: tuple[Any, ...] = (
    "", "x", "x" * 5000, "OpaqueRef:NULL", "OpaqueRef:" + "0" * 36, "../../../etc/passwd", "%2e%2e%2f", "\x00",
    "\ud800", "\u202e'\";--", "{{7*7}}", "$(reboot)", "a\r\nX-Injected: 1", "-1", "1e999", "0x10", -1, 0,
    2**31, 2**63 - 1, 2**63, 2**200, 1.5, float("inf"), float("nan"), True, False, None, [], {}, [[]], {"": ""},
    {"a": {"b": [1]}}, ["x"] * 2000, {str(n): "x" for n in range(500)}, datetime(2026, 1, 1, tzinfo=UTC), b"bytes",
)  # fmt: skip
WAITS = {"event.next"}
"""Answers only when something happens."""
WITHOUT_SESSION = {
    "session.login_with_password", "session.slave_login", "session.slave_local_login",
    "session.slave_local_login_with_password",
}  # fmt: skip


def messages(here: SmallHost) -> Iterator[Message]:
    model = here.server.records.model
    for name in here.server.dispatcher.methods():
        cls, _, call = name.partition(".")
        found = model.message(cls, call)
        assert found is not None, name
        yield found


def fitting(here: SmallHost, dice: random.Random, type_: Type) -> Any:
    """A value of the type, with references to what is there where that can be."""
    match type_.kind:
        case Kind.REF:
            return dice.choice([*here.server.records.refs(type_.name), "OpaqueRef:NULL"])
        case Kind.SET:
            assert type_.item is not None
            return [fitting(here, dice, type_.item) for _ in range(dice.randrange(3))]
        case Kind.MAP:
            assert type_.item is not None and type_.key is not None
            return {fitting(here, dice, type_.key): fitting(here, dice, type_.item) for _ in range(dice.randrange(3))}
        case Kind.INT:
            return str(dice.choice([-1, 0, 1, 4096, 2**40, 2**63 - 1]))
        case Kind.FLOAT:
            return dice.choice([-1.0, 0.0, 0.5, 1e300])
        case Kind.BOOL:
            return dice.random() < 0.5
        case Kind.DATETIME:
            return datetime(2026, 1, 1, tzinfo=UTC)
        case Kind.RECORD:
            cls = here.server.records.model.classes.get(type_.name)
            names = sorted(cls.fields) if cls else []
            chosen = dice.sample(names, min(len(names), dice.randrange(6)))
            return {name: fitting(here, dice, cls.fields[name].type) for name in chosen} if cls else {}
        case _:
            return dice.choice(["", "x", "demo", "Running", "true", "iscsi", "file", "\u00fc"])


def arguments(here: SmallHost, dice: random.Random, message: Message) -> list[Any]:
    given = [fitting(here, dice, param.type) for param in message.params]
    for number in range(len(given)):
        if dice.random() < 0.35:
            given[number] = dice.choice(JUNK)
    return given


@pytest_twisted.ensureDeferred
async def test_no_call_breaks(tmp_path: Path) -> None:
    dice = random.Random(SEED)
    print(f"seed {SEED}")
    ended, refused = 0, 0
    async with small_host(tmp_path) as here:
        for round_ in range(4):
            here.session = here.server.sessions.open("root", "here")
            sr = await here.sr()
            await here.vm(sr, 2)
            running = await here.vm(sr)
            await here.call("VM.start", running, False, False)
            for message in list(messages(here)):
                if message.full_name in WAITS | WITHOUT_SESSION:
                    continue
                given = arguments(here, dice, message)
                if message.full_name == "event.from":
                    given[2] = 0.0
                if round_ == 3:  # and with too few or too many
                    given = given[: dice.randrange(len(given) + 1)] + [dice.choice(JUNK)] * dice.randrange(2)
                    if message.full_name == "event.from":
                        continue
                here.session = here.server.sessions.open("root", "here")  # a call may have ended the one before
                asked = started(here.server.dispatcher.call(message.full_name, [here.session, *given], "here"))
                asked.addTimeout(60, reactor)
                try:
                    await asked
                    ended += 1
                except MigrateError as why:
                    assert all(isinstance(part, str) for part in why.failure())
                    refused += 1
                except (defer.CancelledError, defer.TimeoutError) as why:
                    raise AssertionError(f"{message.full_name}{given!r} hangs") from why
                except Exception as why:
                    raise AssertionError(f"{message.full_name}{given!r} breaks: {why!r}") from why
        assert refused > 1000 < ended


@pytest_twisted.ensureDeferred
async def test_no_call_is_answered_to_who_has_no_session(tmp_path: Path) -> None:
    async with small_host(tmp_path) as here:
        dice = random.Random(SEED)
        count = 0
        for message in list(messages(here)):
            if message.full_name in WITHOUT_SESSION:
                assert not message.session
                continue
            assert message.session, message.full_name
            for nobody in ("", "OpaqueRef:NULL", "OpaqueRef:" + "0" * 36, None, 1, ["x"], {"a": "b"}, "x" * 100_000):
                given = [nobody, *(fitting(here, dice, param.type) for param in message.params)]
                try:
                    await here.server.dispatcher.call(message.full_name, given, "here")
                except SessionInvalid:
                    count += 1
                else:
                    raise AssertionError(message.full_name)
        assert count > 5000
