"""Who asks and does not read is not answered into memory, nor read from."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.task import Clock
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET

from tests.security.wires import ANSWER, HOLDS, connect, server
from xapi_migrate.upstream.front import IDLE, LAST_WORDS
from xapi_migrate.xenapi.site import ApiSite

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
MANY = 380


@pytest.mark.parametrize("kind", ["site", "front"])
def test_requests_that_came_together_are_answered_as_fast_as_they_are_read(kind: str) -> None:
    protocol, wire = connect(server(kind, Clock()))
    protocol.dataReceived(GET * MANY)
    answers, most = 0, 0
    while piece := wire.read():
        most = max(most, len(piece))
        answers += piece.count(ANSWER)
    assert answers == MANY
    assert most <= HOLDS + len(ANSWER) + 1000
    assert wire.producerState == "producing"
    protocol.connectionLost(None)


@pytest.mark.parametrize("kind", ["site", "front"])
def test_nothing_is_read_while_answers_are_not(kind: str) -> None:
    protocol, wire = connect(server(kind, Clock()))
    protocol.dataReceived(GET * 5)
    assert wire.producerState == "paused"
    wire.read()
    wire.read()
    wire.read()
    assert wire.producerState == "producing"
    protocol.connectionLost(None)


class Slow(Resource):
    """Answers the first request at once, others never."""

    isLeaf = True
    asked = 0

    def render(self, request: Any) -> Any:
        self.asked += 1
        return ANSWER + ANSWER if self.asked == 1 else NOT_DONE_YET


def test_nothing_is_read_ahead_without_end_while_a_call_waits_and_answers_are_not_read() -> None:
    """The answer to the second request, which waits, is asked for before the first answer fills the line."""
    site = ApiSite(Slow(), None, reactor=Clock())  # type: ignore[no-untyped-call]
    protocol, wire = connect(site)
    protocol.dataReceived(GET)
    wire.read()
    protocol.dataReceived(GET)
    wire.write(bytes(HOLDS + 1))  # an answer that comes in pieces, and is not read
    protocol.dataReceived(GET * 1000)
    assert wire.producerState == "paused"
    protocol.connectionLost(None)


@pytest.mark.parametrize(("kind", "idle", "last_words"), [("site", 60.0, 15.0), ("front", IDLE, LAST_WORDS)])
def test_a_client_that_never_reads_is_let_go(kind: str, idle: float, last_words: float) -> None:
    clock = Clock()
    protocol, wire = connect(server(kind, clock))
    protocol.callLater = clock.callLater
    protocol.dataReceived(GET * MANY)
    clock.advance(idle + 1)
    assert wire.ended == "closed"
    clock.advance(last_words + 1)
    assert wire.ended == "aborted"
    protocol.connectionLost(None)
