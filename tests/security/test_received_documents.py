"""Metadata that was changed, received by a host: it is refused or its VM comes to be, hidden; after DELETE there is
nothing of it, and nobody's events have broken meanwhile."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from typing import Any

import pytest
from defusedxml.ElementTree import fromstring
from twisted.internet.task import Clock
from twisted.logger import LogEvent, globalLogPublisher

from tests.security.test_calls import SEED
from tests.security.test_documents import JUNK, places
from xapi_migrate.errors import MigrateError
from xapi_migrate.migration.interfaces import IReceiving, Outcome
from xapi_migrate.migration.metadata_xml import read_value, write_value
from xapi_migrate.testing.direct_peer import DirectPeer
from xapi_migrate.testing.two_hosts import SimHost, TwoHosts
from xapi_migrate.together import started
from xapi_migrate.xenapi import wire

ROUNDS = 250
TEXTS: tuple[Any, ...] = (
    *JUNK,
    "\u0085",
    "\U0001f600",
    "a\rb",
    "]]>",
    "&#1;",
    str(2**62),
    str(2**40),
)
PIECES = (
    b"\x00",
    b"\xff",
    b"&#1;",
    b"&#xFFFE;",
    b"&#xD800;",
    b"\xef\xbf\xbe",
    b"<value>",
    b"</member>",
    b"<!--x-->",
    b"9" * 30,
)


@pytest.fixture
def logged() -> Iterator[list[str]]:
    """Errors that nobody expected."""
    found: list[str] = []

    def note(event: LogEvent) -> None:
        if failure := event.get("log_failure"):
            found.append(failure.getTraceback())

    globalLogPublisher.addObserver(note)
    yield found
    globalLogPublisher.removeObserver(note)


def document(world: TwoHosts, state: str) -> bytes:
    """What the source says of a VM in this state."""
    said: list[bytes] = []

    class Peer(DirectPeer):
        async def put_metadata(self, document: bytes) -> int:
            said.append(document)
            return await super().put_metadata(document)

    make = world.source.peers

    def listening(uris: list[str]) -> Any:
        peer: Any = make(uris)
        peer.__class__ = Peer
        return peer

    world.source.peers = listening
    task = world.migrate(world.source.new_vm(power_state=state))
    assert world.run(30, lambda: bool(said))
    task.cancel()
    assert world.run(60, lambda: task.status != "pending" and not world.destination.left_behind())
    return said[0]


def changed(whole: bytes, dice: random.Random) -> bytes:
    if dice.random() < 0.3:
        for _ in range(dice.randrange(1, 4)):
            at = dice.randrange(len(whole))
            whole = whole[:at] + dice.choice(PIECES) + whole[at + dice.randrange(3) :]
        return whole
    value = copy.deepcopy(read_value(whole))
    for _ in range(dice.randrange(1, 4)):
        container, key = dice.choice(places(value))
        if dice.random() < 0.2 and isinstance(container, dict):
            container.pop(key, None)
        elif dice.random() < 0.2 and isinstance(container, list):
            container.append(copy.deepcopy(container[key]))
        else:
            container[key] = copy.deepcopy(dice.choice(TEXTS))
    return write_value(value)


def readable(host: SimHost) -> None:
    """Every record could be told of to a client."""
    for cls in ("VM", "VDI", "VBD", "VIF", "SR", "host"):
        for ref in host.records.refs(cls):
            fromstring(wire.success({k: v for k, v in host.records.get(cls, ref).items() if not k.startswith("_")}))


@pytest.mark.parametrize("state", ["Running", "Halted", "Suspended"])
def test_what_was_changed_is_taken_or_refused_and_leaves_nothing(state: str, logged: list[str]) -> None:
    dice = random.Random(SEED + len(state))
    print(f"seed {SEED}")
    world = TwoHosts(Clock())
    whole, here = document(world, state), world.destination
    taken = refused = 0

    def ask(asked: Any, why: str) -> Any:
        got: list[Any] = []
        started(asked).addBoth(got.append)
        assert world.run(30, lambda: bool(got), step=0.05), f"no answer: {why}"
        if hasattr(got[0], "check"):
            assert got[0].check(MigrateError), f"{got[0].getTraceback()}\n{why}"
        return got[0]

    for _ in range(ROUNDS):
        raw = changed(whole, dice)
        why = repr(raw[:20_000])
        capability = world.receive()[0].removeprefix("direct:")
        receiving: Any = here.engine.find(capability)
        assert IReceiving.providedBy(receiving)
        answer = ask(receiving.put_metadata(raw), why)
        readable(here)
        if answer == 0:
            taken += 1
            for number in range(dice.randrange(4)):
                ask(receiving.get_disk(number, "127.0.0.1"), why)
        else:
            refused += 1
        ask(receiving.delete("the sender gave it up"), why)
        if here.engine.find(capability):
            ask(receiving.delete("", Outcome.ABORTED), why)
        assert here.engine.find(capability) is None, why
        world.run(1, lambda: not here.left_behind() and not here.journals.all, step=0.05)
        assert here.left_behind() == [], why
        assert not here.journals.all, why
        assert not logged, f"{logged[0]}\n{why}"
    assert taken > 30 and refused > 30, (taken, refused)
    assert not world.destination.running()
