"""What makes a connection known: a session, a capability, or a stream that the upstream lets pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import defer, reactor
from twisted.internet.task import Clock
from twisted.web.resource import Resource

from tests.security.wires import ROOM, connect, server
from tests.uris.doubles import Offers, Receiving
from tests.wire.raw import post, xml
from tests.xenapi.live import USER, live
from xapi_migrate.entrance import Entrance
from xapi_migrate.upstream.front import Mine, Reply
from xapi_migrate.uris.tree import MigrationTree
from xapi_migrate.xenapi.site import ApiSite


@pytest_twisted.ensureDeferred
async def test_a_session_does(tmp_path: Path) -> None:
    async with live(tmp_path) as here:
        site = here.server.site()
        site.entrance = Entrance(Clock(), ROOM)
        good = here.server.sessions.open(USER, "here")
        for session, known in ((good, True), ("OpaqueRef:nobody", False), ("", False)):
            protocol, wire = connect(site)
            protocol.dataReceived(post(xml("VM.get_all", session)))
            assert protocol.visitor.known is known
            protocol.connectionLost(None)
        assert site.entrance.open == 0


def test_a_capability_does_and_with_its_headers() -> None:
    offers = Offers()
    capability = offers.add(Receiving())
    site = ApiSite(Resource(), MigrationTree(offers, 1000, reactor, 10), reactor=Clock())  # type: ignore[no-untyped-call]
    site.entrance = Entrance(Clock(), ROOM)
    for text, known in ((capability.text, True), ("A" * len(capability.text), False)):
        protocol, _ = connect(site)
        head = f"PUT /migrate/{text}/metadata HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n"
        protocol.dataReceived(head.encode())
        assert protocol.visitor.known is known
        protocol.connectionLost(None)
    assert site.entrance.open == 0


@pytest.mark.parametrize("known", [True, False])
def test_through_the_overlay_a_session_does_that_the_upstream_has_vouched_for(known: bool) -> None:
    factory = server("front", Clock())
    factory.decides.knows = lambda session: known and session == "OpaqueRef:mine"
    waits: defer.Deferred[Reply] = defer.Deferred()
    factory.decides.decide = lambda head, body, origin: Mine(waits, session="OpaqueRef:mine")
    protocol, wire = connect(factory)
    protocol.dataReceived(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    assert _strangers(factory) == (not known)
    waits.callback(Reply(b"200 OK", b"text/plain", b""))
    assert _strangers(factory) == (not known)
    protocol.connectionLost(None)
    assert factory.entrance.open == 0


@pytest.mark.parametrize(("status", "stream", "known"), [(200, True, True), (401, True, False), (200, False, False)])
def test_a_stream_that_the_upstream_lets_pass_does_while_it_lasts(status: int, stream: bool, known: bool) -> None:
    factory = server("front", Clock())
    protocol, wire = connect(factory)
    protocol.begun(status, stream)
    assert _strangers(factory) == (not known)
    wire.unregisterProducer()  # as the relay does when it leaves
    protocol.answered(True)
    assert _strangers(factory) == 1
    protocol.connectionLost(None)


def _strangers(factory: Any) -> int:
    return sum(map(len, factory.entrance.strangers.values()))
