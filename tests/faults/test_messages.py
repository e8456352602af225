"""Each message of the protocol, delivered twice or late; and the memory stream, of which there is one.

The answer to a second delivery is looked at too: it is that of the first, or a refusal that changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.faults.blows import Blow
from tests.faults.clients import Client
from tests.faults.ground import Ground
from tests.faults.points import Point
from tests.system.deliveries import MEMORY, Fate

pytestmark = pytest.mark.system

BEGINNING, COPY = Point("sender", "1.4"), Point("sender", "3.6")
TWICE = (Fate.BEFORE, Fate.BESIDE, Fate.AFTER)
ONCE_MORE = {
    "HEAD": {200},
    "PUT /metadata": {200, 410},
    "GET /disk/0": {200},
    "GET /disk/1": {200},
    "PUT /control": {200},
    "GET /control": {200, 404},
    "DELETE": {200, 404},
}
"""What a second delivery may be answered, before the migration is forgotten. DELETE: here an acknowledgement."""
OVERTAKEN = {"HEAD", "PUT /metadata", "GET /disk/0", "GET /disk/1", MEMORY}
"""While they are on their way there are others; a late one of the rest comes 1.5 s late, and nothing before it."""


def meets(name: str, fate: Fate) -> Blow:
    """Each request of this name has this fate. A question is asked only in doubt: then answers to `done` are lost."""

    def strike(ground: Ground) -> None:
        ground.link.requests.lose_answers_of = ["PUT /control"] * 2 if name == "GET /control" else []
        ground.link.requests.deliveries.again.clear()
        ground.link.requests.deliveries.late.clear()
        ground.link.requests.deliveries.fate = lambda request: fate if request == name else Fate.ONCE

    return Blow(f"{name} {fate.name}", strike, harmless=True)


def answers(ground: Ground, name: str) -> set[int]:
    """To second deliveries in the latest case, in which the guest moved."""
    deliveries = ground.links[ground.sender.name].requests.deliveries
    assert {request for request, _ in deliveries.again} == {name}
    return {status for _, status in deliveries.again}


def every_way() -> Iterator[Any]:
    """Each message in each way; `make test` takes each message once, and each way."""
    for place, name in enumerate(ONCE_MORE):
        for number, fate in enumerate(TWICE):
            rest = () if (place + number) % len(TWICE) == 0 else (pytest.mark.every_cell,)
            yield pytest.param(name, fate, marks=rest, id=f"{name} {fate.name}".lower().replace(" ", "-"))


@pytest.mark.parametrize(("name", "fate"), list(every_way()))
def test_a_request_is_delivered_twice(ground: Ground, name: str, fate: Fate) -> None:
    assert ground.run(BEGINNING, meets(name, fate), Client()) == "receiver"
    expected = ONCE_MORE[name] | ({404} if fate is Fate.AFTER else set())  # the next may be the last
    assert answers(ground, name) <= expected


@pytest.mark.parametrize(
    "name",
    [
        name if name in ("PUT /metadata", MEMORY) else pytest.param(name, marks=pytest.mark.every_cell)
        for name in (*ONCE_MORE, MEMORY)
    ],
)
def test_a_request_is_delivered_late(ground: Ground, name: str) -> None:
    assert ground.run(BEGINNING, meets(name, Fate.LATE), Client()) == "receiver"
    if name in OVERTAKEN:
        assert set(ground.links[ground.sender.name].requests.deliveries.late) == {name}


def test_done_comes_after_the_delete_that_withdraws_it(ground: Ground) -> None:
    """The receiver has aborted by then, and says so."""
    client = Client()

    def strike(ground: Ground) -> None:
        meets("PUT /control", Fate.LATE).strike(ground)
        ground.link.requests.before = lambda name: client.cancel() if name == "PUT /control" else None

    ground.open()
    link = ground.link
    try:
        assert ground.run(COPY, Blow("done is late", strike), client) == "sender"
    finally:
        link.requests.before = lambda name: None
    assert link.requests.deliveries.late == ["PUT /control"]
    assert client.told["status"] == "cancelled"


@pytest.mark.parametrize("fate", TWICE, ids=lambda fate: fate.name.lower())
def test_a_cancel_is_delivered_twice(ground: Ground, fate: Fate) -> None:
    """Both DELETEs: the one that gives the migration up, and the acknowledgement."""
    client = Client()

    def strike(ground: Ground) -> None:
        meets("DELETE", fate).strike(ground)
        client.cancel()

    assert ground.run(COPY, Blow("cancelled", strike), client) == "sender"
    assert client.told["status"] == "cancelled"
    deliveries = ground.link.requests.deliveries
    assert deliveries.again
    assert {status for _, status in deliveries.again} <= {200, 404}


@pytest.mark.parametrize("fate", [Fate.BESIDE, Fate.AFTER], ids=lambda fate: fate.name.lower())
def test_a_second_memory_stream_is_refused(ground: Ground, fate: Fate) -> None:
    """While the first is being received, and when it is in: not a byte of it comes to the domain."""
    assert ground.run(BEGINNING, meets(MEMORY, fate), Client()) == "receiver"
    assert answers(ground, MEMORY) <= {409, 410}


def test_a_memory_stream_that_is_taken_by_another_is_no_guest(ground: Ground) -> None:
    """Its request is delivered twice, and the receiver takes the first, which has no stream: the guest stays."""
    client = Client()
    blow = Blow(MEMORY, meets(MEMORY, Fate.BEFORE).strike)
    assert ground.run(BEGINNING, blow, client) == "sender"
    assert ground.link.requests.deliveries.again == [(MEMORY, 101)]
    assert client.told["status"] == "failure"
    assert "memory" in " ".join(client.told["error_info"])


def test_all_is_delivered_once_more_when_it_is_over(ground: Ground) -> None:
    """A record of a whole migration, played again: the receiver knows nothing of it any more."""
    asked: list[tuple[str, bytes]] = []
    blow = meets("", Fate.ONCE)

    def strike(ground: Ground) -> None:
        blow.strike(ground)
        ground.link.requests.deliveries.record = asked

    assert ground.run(BEGINNING, Blow("recorded", strike, harmless=True), Client()) == "receiver"
    deliveries = ground.links[ground.sender.name].requests.deliveries
    names = {name for name, _ in asked}
    assert names >= ONCE_MORE.keys() - {"GET /control"} | {MEMORY}
    deliveries.again.clear()
    for one in asked:
        deliveries.repeat(*one)
    assert set(deliveries.again) == {(name, 404) for name in names}
    ground.world.nothing_left(ground.receiver)
