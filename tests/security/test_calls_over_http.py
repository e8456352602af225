"""Calls as strangers write them, over real connections: each is answered soon, without a word of our insides, and one
that is refused leaves nothing behind."""

from __future__ import annotations

import json
import os
import random
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import pytest_twisted
from twisted.internet import defer, protocol, reactor
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol

from tests.security.test_calls import JUNK, WITHOUT_SESSION, fitting, messages
from tests.xenapi.two_servers import Server, one_server, until
from xapi_migrate.testing.fake_sm import FakeLuns

SEED = int(os.environ.get("CALLS_SEED", "20260117"))
LIMIT = 2.0
"""Seconds within which each call is answered."""
WAIT = {"event.next"}
"""Answers when something happens."""
TEXTS = ("", "a", "\u00fc\U0001f600", "\u202e", "\u0085\u2028", "NaN", "-0", "1" * 400, "0x1F", "1_0", " 1 ", "\u0661")
XML_PIECES = (
    b"\x00", b"\xff\xfe", b"<!-- -->", b"<?x y?>", b"<![CDATA[x]]>", b"&#0;", b"&#xD800;", b"&x;", b"<value>",
    b"</value>", b"<nil/>", b"<i8>9</i8>", b"<double>nan</double>", b"<int>+ 1</int>", b"<boolean>2</boolean>",
    b"<base64>!</base64>", b"<dateTime.iso8601>99999999T99:99:99Z</dateTime.iso8601>", b"<array/>", b"<struct/>",
)  # fmt: skip
JSON_PIECES = (b"NaN", b"-Infinity", b"1e999", b"[[[[", b"]]", b"{}", b'"\\ud800"', b"\xff", b"-0", b"9" * 300, b",")

MAKES = re.compile("create|introduce|receive|copy|clone|login")
OFFER = re.compile(rb"http://127\.0\.0\.1:\d+(/migrate/[\w-]+)")


class Talk(protocol.Protocol):
    """One connection, one answer."""

    def __init__(self, raw: bytes) -> None:
        self.raw, self.came = raw, b""
        self.ended: defer.Deferred[bytes] = defer.Deferred()

    def connectionMade(self) -> None:
        assert self.transport is not None
        self.transport.write(self.raw)

    def dataReceived(self, data: bytes) -> None:
        self.came += data

    def connectionLost(self, reason: Any = None) -> None:
        self.ended.callback(self.came)


class Writer:
    """What the dice make of a call."""

    def __init__(self, here: Server, dice: random.Random) -> None:
        self.here, self.dice = here, dice

    def value(self, depth: int = 0) -> Any:
        if depth < 4 and self.dice.random() < 0.25:
            inner = [self.value(depth + 1) for _ in range(self.dice.randrange(4))]
            return (
                inner if self.dice.random() < 0.5 else {f"{self.dice.choice(TEXTS)}{n}": v for n, v in enumerate(inner)}
            )
        if self.dice.random() < 0.03:
            nested: Any = "x"
            for _ in range(self.dice.choice((10, 29, 62, 63, 64, 65, 300))):
                nested = [nested] if self.dice.random() < 0.5 else {"a": nested}
            return nested
        return self.dice.choice(JUNK + TEXTS)

    def parameters(self, session: str, message: Any) -> list[Any]:
        given = [fitting(self.here, self.dice, param.type) for param in message.params]  # type: ignore[arg-type]
        for number in range(len(given)):
            if self.dice.random() < 0.3:
                given[number] = self.value()
        if message.full_name == "event.from":
            given[2] = 0.0
        if message.session:
            given.insert(0, session if self.dice.random() < 0.95 else self.value())
        if self.dice.random() < 0.1:
            del given[self.dice.randrange(len(given) + 1) :]
        if self.dice.random() < 0.1:
            given.append(self.value())
        return given

    def broken(self, body: bytes, pieces: tuple[bytes, ...]) -> bytes:
        for _ in range(self.dice.randrange(1, 4)):
            at = self.dice.randrange(len(body) + 1)
            upto = min(len(body), at + self.dice.randrange(20))
            put, without, twice = (
                body[:at] + self.dice.choice(pieces) + body[at:],
                body[:at] + body[upto:],
                body[:upto] + body[at:],
            )
            body = self.dice.choice((put, put, without, twice, body[:at])) or b"x"
        return body

    def request(self, session: str, message: Any) -> bytes:
        given, name = self.parameters(session, message), message.full_name
        if self.dice.random() < 0.2:
            name = f"Async.{name}"
        if self.dice.random() < 0.5:
            path, pieces = b"/RPC2", XML_PIECES
            body = f"<methodCall><methodName>{escape(name)}</methodName><params>".encode()
            body += b"".join(f"<param>{xml(value)}</param>".encode("utf-8", "surrogatepass") for value in given)
            body += b"</params></methodCall>"
        else:
            path, pieces = b"/jsonrpc", JSON_PIECES
            call: dict[str, Any] = {
                "method": name,
                "params": given,
                "id": self.dice.choice((1, "x", None, 2**70, -0.5)),
            }
            if self.dice.random() < 0.5:
                call["jsonrpc"] = "2.0"
            body = json.dumps(call, default=str).encode()
        if self.dice.random() < 0.3 and message.full_name != "event.from":
            body = self.broken(body, pieces)
        return b"POST %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s" % (
            path,
            len(body),
            body,
        )


def xml(value: Any) -> str:
    match value:
        case bool():
            return f"<value><boolean>{int(value)}</boolean></value>"
        case int():
            return f"<value><int>{value}</int></value>"
        case float():
            return f"<value><double>{value}</double></value>"
        case None:
            return "<value><nil/></value>"
        case list():
            return f"<value><array><data>{''.join(map(xml, value))}</data></array></value>"
        case dict():
            members = (f"<member><name>{escape(key)}</name>{xml(inner)}</member>" for key, inner in value.items())
            return f"<value><struct>{''.join(members)}</struct></value>"
        case _:
            return f"<value>{escape(str(value))}</value>"


def is_refusal(answer: bytes) -> bool:
    head, _, body = answer.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200"):
        return True
    return b"ErrorDescription" in body[:600] or b'"error":' in body[:100] and b'"error":null' not in body[-100:]


def kept(here: Server) -> Counter[str]:
    """How many records there are, by class, and offers."""
    records = here.records
    count = Counter({name: len(records.refs(name)) for name in records.model.classes})
    del count["task"]  # what a refused call was known by
    count["offer"] = len(here.engine._incoming)
    return count


def often(here: Server) -> list[Any]:
    """All calls, those that make something many times over, for most are refused before they come to that."""
    each = list(messages(here))  # type: ignore[arg-type]
    return [message for message in each for _ in range(12 if MAKES.search(message.name) else 1)]


def descriptors_open() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def timers() -> Counter[str]:
    waiting: Iterable[Any] = reactor.getDelayedCalls()  # type: ignore[attr-defined]
    return Counter(getattr(call.func, "__qualname__", repr(call.func)) for call in waiting)


async def ask(here: Server, raw: bytes) -> bytes:
    end = TCP4ClientEndpoint(reactor, "127.0.0.1", here.port)
    talk = await connectProtocol(end, Talk(raw))
    try:
        return await talk.ended.addTimeout(LIMIT, reactor)  # type: ignore[arg-type]
    except defer.TimeoutError:
        talk.ended = defer.Deferred()
        assert talk.transport is not None
        talk.transport.abortConnection()
        raise AssertionError(f"no answer within {LIMIT} s: {raw[:2000]!r}") from None


@pytest_twisted.ensureDeferred
async def test_each_is_answered_and_a_refused_one_leaves_nothing(tmp_path: Path) -> None:
    dice = random.Random(SEED)
    print(f"CALLS_SEED={SEED}")
    async with one_server(tmp_path, "here", FakeLuns()) as here:
        descriptors, before = descriptors_open(), timers()
        writer, ended, refused = Writer(here, dice), 0, 0
        offers: set[bytes] = set()
        for _ in range(3):
            sr = await here.new_sr()
            await here.new_vm(sr, running=False, disks=2)
            await here.new_vm(sr)
            for message in often(here):
                if message.full_name in WAIT | WITHOUT_SESSION:
                    continue
                await until(lambda: not here.server.dispatcher._under_way, "a call in the background does not end")
                session = here.server.sessions.open("root", "here")
                raw, there = writer.request(session, message), kept(here)
                answer = await ask(here, raw)
                offers.update(OFFER.findall(answer))
                why = f"{raw[:3000]!r} is answered {answer[:1000]!r}"
                assert answer.startswith(b"HTTP/1.1 "), why
                assert b"Traceback" not in answer and b"INTERNAL_ERROR" not in answer, why
                assert not answer.startswith(b"HTTP/1.1 5"), why
                if is_refusal(answer):
                    refused += 1
                    more = kept(here) - there
                    assert not more, f"{more}: {why}"
                else:
                    ended += 1
                if here.server.dispatcher.knows(session):
                    here.server.sessions.logout(session)
        assert ended > 300 and refused > 1000, (ended, refused)
        offers.update(
            OFFER.findall(repr([here.records.get("task", ref) for ref in here.records.refs("task")]).encode())
        )
        assert len(offers) == len(here.engine._incoming)
        for path in offers:
            await ask(here, b"DELETE %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n" % path)
        for vm in here.records.refs("VM"):
            if here.records.get("VM", vm)["power_state"] != "Halted":
                await here.call("VM.hard_shutdown", vm)
        assert not here.records.refs("session")
        await until(lambda: descriptors_open() <= descriptors, "descriptors are left")
        await until(lambda: not timers() - before, f"timers are left: {timers() - before}")
