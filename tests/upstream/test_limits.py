"""Connections to the upstream are not endless: who waits long or is slow on purpose keeps nobody else out."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import defer, threads
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport

from tests.upstream.overlaid import USERS, Overlaid, in_threads, overlaid, read_all, with_client
from tests.upstream.simulated.server import SimulatedXapi
from tests.upstream.test_upstream_away import ask
from tests.wire.raw import Conversation, post, xml
from xapi_migrate.upstream.opening import Limits
from xapi_migrate.upstream.pool import KEEP, QUEUED, Crowded, Kind, Pool
from xapi_migrate.upstream.stillness import LEAST, Watch

DEADLINE = 60.0


@pytest.fixture
def xapi() -> Iterator[SimulatedXapi]:
    with SimulatedXapi(USERS) as running:
        yield running


@pytest_twisted.ensureDeferred
async def test_long_polls_keep_no_call_out_and_wait_for_each_other(xapi: SimulatedXapi) -> None:
    """A hundred wait, though there are but forty connections; each hears in the end."""
    database, polls, most = xapi.database, 100, 40

    def poll(here: Overlaid, session: str, token: str) -> int:
        with Conversation(here.address) as talk:
            classes = "<array><data><value>vm</value></data></array>"
            talk.say(post(xml("event.from", session, classes, token, "<double>100</double>")))
            return talk.answer().text.count("<name>snapshot</name>")

    def calls(session: Any) -> None:
        with database.changed:
            assert database.changed.wait_for(lambda: database.waiting == most // 2, DEADLINE)
        for _ in range(30):
            began = time.monotonic()
            assert session.xenapi.VM.get_all() == []
            assert time.monotonic() - began < QUEUED / 2
        assert database.waiting == most // 2
        database.create("VM", name_label="new")

    async with overlaid(xapi.upstream, limits=Limits(most)) as here:
        session, token = await here.client(
            lambda session: (session._session, session.xenapi.event.inject("pool", database.pool))
        )
        polling = threads.deferToThread(in_threads, polls, lambda number: poll(here, session, token))
        try:
            await here.client(calls)
        finally:
            assert await polling == [1] * polls
        assert len(here.overlay.pool.connections) <= most


SLOW = [
    b"PUT /import HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n",
    b"POST /RPC2 HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n<?xml",
    b"PUT /import HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nab",
]


@pytest.mark.parametrize("slow", SLOW)
@pytest_twisted.ensureDeferred
async def test_who_sends_nothing_more_is_cut_and_holds_up_no_call(xapi: SimulatedXapi, slow: bytes) -> None:
    def work(here: Overlaid) -> None:
        loris = [socket.create_connection(here.address, DEADLINE) for _ in range(10)]
        for one in loris:
            one.sendall(slow)
        assert with_client(here.url, lambda session: session.xenapi.VM.get_all()) == []
        # a stream that is none of theirs gets its turn
        body = b"x" * 100
        request = b"PUT /import HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n" + body
        assert ask(here.address, request)[0].text.startswith("100 ")
        for one in loris:
            try:
                assert read_all(one) == b""
            except ConnectionResetError:
                pass
            one.close()

    async with overlaid(xapi.upstream, limits=Limits(8, 0.5)) as here:
        await threads.deferToThread(work, here)


@pytest_twisted.ensureDeferred
async def test_who_reads_nothing_is_cut(xapi: SimulatedXapi) -> None:
    """A tunnel that is silent is not, nor is a call that is answered late."""

    def work(here: Overlaid) -> None:
        database = xapi.database
        vm = database.create("VM", power_state="Running")
        session = with_client(here.url, lambda session: session._session)
        with Conversation(here.address) as tunnel, Conversation(here.address) as late:
            tunnel.say(b"CONNECT /console HTTP/1.1\r\n\r\n")
            tunnel.head()
            late.say(post(xml("VM.clean_shutdown", session, vm)))
            with socket.create_connection(here.address, DEADLINE) as deaf:
                deaf.sendall(b"GET /export?size=%d&framing=length HTTP/1.1\r\nHost: x\r\n\r\n" % (1 << 30))
                before = here.overlay.pool.connections.copy()
                end = time.monotonic() + DEADLINE
                while len(here.overlay.pool.connections) < 3:
                    assert time.monotonic() < end
                while len(here.overlay.pool.connections) > 2:
                    assert time.monotonic() < end, before
                with pytest.raises(OSError):
                    while deaf.recv(1 << 20):
                        pass
                    raise OSError("it has ended")
            database.gate.set()
            assert "Success" in late.answer().text
            tunnel.say(b"hello")
            assert tunnel.socket.recv(5) == b"HELLO"

    async with overlaid(xapi.upstream, limits=Limits(8, 0.5)) as here:
        await threads.deferToThread(work, here)


class Sleepy:
    """An upstream that says one thing, and then nothing for ever."""

    def __init__(self, said: bytes) -> None:
        self._said = said
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._kept: list[socket.socket] = []
        self.upstream = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        connection, _ = self._listening.accept()
        self._kept.append(connection)
        connection.recv(1 << 16)
        connection.sendall(self._said)

    def close(self) -> None:
        for one in (*self._kept, self._listening):
            one.close()


HALF = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf"


@pytest.mark.parametrize(
    ("request_", "said"),
    [(b"GET /export HTTP/1.1\r\nHost: x\r\n\r\n", HALF), (b"PUT /import HTTP/1.1\r\nHost: x\r\n\r\nabc", b"")],
)
@pytest_twisted.ensureDeferred
async def test_an_answer_that_stands_still_is_cut_and_a_stream_without_a_length(request_: bytes, said: bytes) -> None:
    sleepy = Sleepy(said)

    def work(here: Overlaid) -> bytes:
        with socket.create_connection(here.address, DEADLINE) as client:
            client.sendall(request_)
            try:
                return read_all(client)
            except ConnectionResetError:
                return b""

    async with overlaid(sleepy.upstream, limits=Limits(8, 0.3)) as here:
        assert await threads.deferToThread(work, here) == said
    sleepy.close()


class Transport(StringTransport):
    def getHandle(self) -> None:
        """There is no socket."""


class Endpoint:
    """Connects when it is told to."""

    def __init__(self) -> None:
        self.coming: list[tuple[Any, defer.Deferred[Any]]] = []

    def connect(self, factory: Any) -> defer.Deferred[Any]:
        waiting: defer.Deferred[Any] = defer.Deferred()
        self.coming.append((factory, waiting))
        return waiting

    def come(self) -> Any:
        factory, waiting = self.coming.pop(0)
        made = factory.buildProtocol(None)
        made.makeConnection(Transport())
        waiting.callback(made)
        return made


def test_connections_are_given_out_in_turn_and_within_each_kinds_part() -> None:
    clock, endpoint = Clock(), Endpoint()
    pool = Pool(endpoint, clock, 8, 1.0)  # type: ignore[arg-type]
    polls = [pool.get(Kind.POLL) for _ in range(6)]
    streams = [pool.get(Kind.STREAM) for _ in range(3)]
    assert len(endpoint.coming) == 4 + 2
    calls = [pool.get(Kind.CALL) for _ in range(3)]
    assert len(endpoint.coming) == 8 and not any(one.called for one in polls + streams + calls)
    made = [endpoint.come() for _ in range(8)]
    assert [one.result.kind for one in polls[:4] + streams[:2] + calls[:2]] == [one.kind for one in made]
    late: list[Any] = []
    polls[5].addErrback(lambda failure: late.append(failure.value))
    clock.advance(QUEUED / 2)
    polls[4].cancel()
    polls[4].addErrback(lambda failure: failure.trap(defer.CancelledError) and None)
    pool.give_back(calls[0].result)  # a call's, which only the waiting call may have
    assert calls[2].called and calls[2].result is made[6] and not streams[2].called
    pool.lost(streams[0].result)
    assert len(endpoint.coming) == 1  # the waiting stream's
    streams[2].cancel()
    streams[2].addErrback(lambda failure: failure.trap(defer.CancelledError) and None)
    clock.advance(QUEUED / 2)
    [crowded] = late
    assert isinstance(crowded, Crowded) and "waiting calls are in use" in str(crowded)
    pool.give_back(calls[1].result)
    free = pool.get(Kind.CALL)
    assert free.result is made[7]  # type: ignore[attr-defined]
    clock.advance(KEEP)
    pool.close()


def test_a_connection_that_is_being_ended_is_given_to_nobody() -> None:
    """That it has ended is told a moment later."""
    clock, endpoint = Clock(), Endpoint()
    pool = Pool(endpoint, clock, 8, 1.0)  # type: ignore[arg-type]
    first = pool.get(Kind.CALL)
    kept = endpoint.come()
    pool.give_back(kept)
    clock.advance(KEEP)
    second = pool.get(Kind.CALL)
    assert first.called and not second.called and len(endpoint.coming) == 1
    pool.lost(kept)
    assert endpoint.come() is second.result  # type: ignore[attr-defined]
    pool.close()


def test_a_trickle_is_no_sign_of_life() -> None:
    clock = Clock()
    cut: list[str] = []
    who = ["client"]
    watch = Watch(clock, 10.0, lambda: who[0], cut.append)
    watch.begin()
    for _ in range(3):
        clock.advance(9)
        watch.moved(LEAST)
    who[0] = ""
    clock.pump([5.0] * 20)
    assert cut == []
    watch.moved()
    who[0] = "client"
    for _ in range(9):
        clock.advance(1)
        watch.moved(1)
    assert cut == []
    clock.pump([1.0] * 11)
    assert cut == ["client"]
    assert clock.getDelayedCalls() == []
