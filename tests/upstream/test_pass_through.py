"""What is not ours reaches the upstream as it came, and its answer the client."""

from __future__ import annotations

import hashlib
import json
import resource
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor, threads

from tests.upstream.overlaid import USERS, digest_of, in_threads, overlaid, read_all, with_client
from tests.upstream.simulated.server import BLOCK, SimulatedXapi
from tests.wire.raw import Conversation, post, xml
from xapi_migrate.errors import MigrateError
from xapi_migrate.store.records import Records
from xapi_migrate.upstream.address import parse_upstream
from xapi_migrate.upstream.opening import stand_beside
from xapi_migrate.xenapi.own_calls import data_model

DEADLINE = 60.0


@pytest.fixture
def xapi() -> Iterator[SimulatedXapi]:
    with SimulatedXapi(USERS) as running:
        yield running


def whole_answer(address: tuple[str, int], request: bytes) -> bytes:
    """All that comes until the connection ends."""
    with socket.create_connection(address, timeout=DEADLINE) as connection:
        connection.sendall(request)
        return read_all(connection)


def without_date(raw: bytes) -> list[bytes]:
    return [line for line in raw.split(b"\r\n") if not line.lower().startswith(b"date:")]


LOGIN = xml("session.login_with_password", "root", USERS["root"][0])
REQUESTS = [
    post(LOGIN.replace("horse", "donkey"), Connection="close"),
    post(xml("VM.get_all", "OpaqueRef:nobody"), "/RPC2", Connection="close"),
    post(xml("host.get_all", "x"), Connection="close"),
    post(json.dumps({"jsonrpc": "2.0", "id": 7, "method": "a.b", "params": ["x"]}), "/jsonrpc", Connection="close"),
    post(json.dumps({"id": "a", "method": "nothing", "params": []}), "/jsonrpc", Connection="close"),
    post(xml("pool.get_all"), version="1.0"),
    b"GET /nothing HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    b"GET /redirect HTTP/1.0\r\nX-Odd:  two  spaces \r\n\r\n",
    b"GET /export?size=100000&framing=length HTTP/1.1\r\nConnection: close\r\n\r\n",
    b"GET /export?size=100000&framing=chunked HTTP/1.1\r\nConnection: close\r\n\r\n",
    b"GET /export?size=100000 HTTP/1.1\r\n\r\n",
    b"DELETE /no HTTP/1.1\r\nConnection: close\r\n\r\n",
]  # fmt: skip


@pytest.mark.parametrize("request_", REQUESTS)
@pytest_twisted.ensureDeferred
async def test_an_answer_is_the_upstreams_own(xapi: SimulatedXapi, request_: bytes) -> None:
    async with overlaid(xapi.upstream) as here:
        direct = await threads.deferToThread(whole_answer, ("127.0.0.1", xapi.port), request_)
        through = await threads.deferToThread(whole_answer, here.address, request_)
    assert direct
    assert without_date(through) == without_date(direct)


class Canned:
    """An upstream that keeps what comes, and answers what it is told to."""

    def __init__(self, *answers: bytes) -> None:
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.got: list[bytes] = []
        self._answers = answers
        self.upstream = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        for answer in self._answers:
            connection, _ = self._listening.accept()
            with connection:
                connection.settimeout(DEADLINE)
                self.got.append(connection.recv(1 << 16))
                connection.sendall(answer)
        self._listening.close()


@pytest_twisted.ensureDeferred
async def test_not_a_byte_is_changed() -> None:
    body = xml("VM.get_all", "\xe4&#10;<![CDATA[<x>]]>").encode()
    request = b"POST /RPC2?a=%%41 HTTP/1.1\r\nhOST:x\r\nX-Two: 1\r\nX-Two:  2\t\r\nContent-length: %d\r\n\r\n" % len(
        body
    )
    answer = b"HTTP/1.1 299 Why Not\r\nx-lOW: 1\r\nX-Low: 2\r\ncontent-LENGTH: 5\r\nConnection: close\r\n\r\n\0\xff<&>"
    canned = Canned(answer)
    async with overlaid(canned.upstream) as here:
        assert await threads.deferToThread(whole_answer, here.address, request + body) == answer
    assert canned.got == [request + body]


@pytest_twisted.ensureDeferred
async def test_kept_and_pipelined_requests_use_one_connection_each_way(xapi: SimulatedXapi) -> None:
    def work(address: tuple[str, int]) -> list[bytes]:
        with Conversation(address) as talk:
            calls = [xml(f"system.no{number}") for number in range(50)]
            talk.say(*(post(call) for call in calls))
            return [talk.answer().body for _ in calls]

    async with overlaid(xapi.upstream) as here:
        answers = await threads.deferToThread(work, here.address)
        assert [f"system.no{number}".encode() in answer for number, answer in enumerate(answers)] == [True] * 50
        assert len(here.overlay.pool.connections) == 1


@pytest_twisted.ensureDeferred
async def test_the_official_library(xapi: SimulatedXapi) -> None:
    def work(session: Any) -> str:
        vm = session.xenapi.VM.create({"name_label": "a", "memory_static_max": "5"})
        assert session.xenapi.VM.get_record(vm)["name_label"] == "a"
        session.xenapi.VM.start(vm, False, False)
        session.xenapi.session.logout()
        return str(vm)

    async with overlaid(xapi.upstream) as here:
        vm = await here.client(work)
        assert xapi.database.records["VM"][vm]["power_state"] == "Running"
        assert xapi.database.records["session"] == {}


@pytest.mark.parametrize("chunked", [False, True])
@pytest_twisted.ensureDeferred
async def test_an_import_arrives_whole(xapi: SimulatedXapi, chunked: bool) -> None:
    size = 5_000_000

    def work(address: tuple[str, int]) -> str:
        with Conversation(address) as talk:
            if chunked:
                pieces = [BLOCK] * (size // len(BLOCK)) + [BLOCK[: size % len(BLOCK)]]
                talk.say(b"PUT /import HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n")
                for piece in pieces:
                    talk.say(b"%x\r\n" % len(piece), piece, b"\r\n")
                talk.say(b"0\r\n\r\n")
            else:
                talk.say(b"PUT /import HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % size)
                talk.say(BLOCK * (size // len(BLOCK)), BLOCK[: size % len(BLOCK)])
            first = talk.answer().text
            talk.say(post(xml("system.listMethods")))  # the connection goes on
            assert b"VM.get_all" in talk.answer().body
            return first

    async with overlaid(xapi.upstream) as here:
        assert await threads.deferToThread(work, here.address) == f"{size} {digest_of(size, BLOCK)}"


@pytest_twisted.ensureDeferred
async def test_an_import_waits_for_a_slow_upstream(xapi: SimulatedXapi) -> None:
    size = 64 << 20
    xapi.server.slow.clear()

    def work(address: tuple[str, int]) -> tuple[int, str]:
        with socket.create_connection(address) as connection:
            connection.sendall(b"PUT /import HTTP/1.1\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % size)
            connection.settimeout(2)
            sent = 0
            try:
                while sent < size:
                    sent += connection.send(BLOCK)
            except TimeoutError:
                pass
            held = sent
            xapi.server.slow.set()
            connection.settimeout(DEADLINE)
            place = sent % len(BLOCK)
            while sent < size:
                done = connection.send(BLOCK[place : place + size - sent])
                sent, place = sent + done, (place + done) % len(BLOCK)
            return held, read_all(connection).decode()

    async with overlaid(xapi.upstream) as here:
        held, answer = await threads.deferToThread(work, here.address)
    assert held < 40 << 20, "it was taken without being passed on"
    assert answer.endswith(f"{size} {digest_of(size, BLOCK)}")


@pytest_twisted.ensureDeferred
async def test_an_export_waits_for_a_slow_client(xapi: SimulatedXapi) -> None:
    size = 64 << 20

    def work(address: tuple[str, int]) -> tuple[int, int, str]:
        with socket.create_connection(address, timeout=DEADLINE) as connection:
            connection.sendall(b"GET /export?size=%d HTTP/1.1\r\n\r\n" % size)
            before, still = -1, 0
            while still < 10:  # until nothing moves for a second
                threading.Event().wait(0.1)
                still = still + 1 if xapi.server.sent == before else 0
                before = xapi.server.sent
            digest, got = hashlib.sha256(), read_all(connection).partition(b"\r\n\r\n")[2]
            digest.update(got)
            return before, len(got), digest.hexdigest()

    async with overlaid(xapi.upstream) as here:
        held, got, digest = await threads.deferToThread(work, here.address)
    assert held < 40 << 20, "it was read without being passed on"
    assert (got, digest) == (size, digest_of(size, BLOCK))


@pytest.mark.parametrize(
    "opening",
    [b"CONNECT /console?ref=x HTTP/1.0\r\n\r\n",
     b"GET /console HTTP/1.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"],
)  # fmt: skip
@pytest_twisted.ensureDeferred
async def test_consoles_are_tunnels(xapi: SimulatedXapi, opening: bytes) -> None:
    def work(address: tuple[str, int]) -> list[bytes]:
        with socket.create_connection(address, timeout=DEADLINE) as connection:
            connection.sendall(opening + b"early ")
            heard = b""
            while not heard.endswith(b"EARLY "):
                heard += connection.recv(1000)
            said = []
            for word in (b"one", b"POST / HTTP/1.1\r\n\r\n", bytes(range(256)).lower()):
                connection.sendall(word)
                answer = b""
                while len(answer) < len(word):
                    answer += connection.recv(1000)
                said.append(answer)
            return said

    async with overlaid(xapi.upstream) as here:
        said = await threads.deferToThread(work, here.address)
        assert said == [b"ONE", b"POST / HTTP/1.1\r\n\r\n", bytes(range(256)).upper()]


@pytest.mark.limit(240)
@pytest_twisted.ensureDeferred
async def test_a_hundred_long_polls_and_a_large_export_at_constant_memory(xapi: SimulatedXapi) -> None:
    size, polls = 1 << 30, 100
    database = xapi.database
    grown: list[int] = []

    def poll(url: str, number: int) -> int:
        def work(session: Any) -> int:
            token = session.xenapi.event.inject("pool", database.pool)
            answer = session.xenapi_request("event.from", (["vm"], token, 100.0))
            return len(answer["events"])

        return int(with_client(url, work))

    def export(address: tuple[str, int]) -> int:
        with socket.create_connection(address, timeout=DEADLINE) as connection:
            connection.sendall(b"GET /export?size=%d&framing=chunked HTTP/1.1\r\nConnection: close\r\n\r\n" % size)
            buffer, got = bytearray(1 << 20), 0
            while read := connection.recv_into(buffer):
                got += read
                if not grown:
                    grown.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
            return got

    def all_wait() -> None:
        with database.changed:
            assert database.changed.wait_for(lambda: database.waiting == polls, DEADLINE)

    async with overlaid(xapi.upstream) as here:
        polling = threads.deferToThread(in_threads, polls, lambda number: poll(here.url, number))
        try:
            await threads.deferToThread(all_wait)
            got = await threads.deferToThread(export, here.address)
        finally:
            database.create("VM", name_label="new")
        assert await polling == [1] * polls
        assert got > size
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - grown[0] < 32 << 10  # KiB
        assert len(here.overlay.pool.connections) <= polls + 1


class Deaf:
    """An upstream that reads no bodies and keeps its connections: what is in one is its next request. It answers with
    the target, and 404 to /xmlrpc; to /planted only when something more has come."""

    def __init__(self) -> None:
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.upstream = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        self.accepted = 0
        threading.Thread(target=self._run, daemon=True).start()

    def close(self) -> None:
        self._listening.close()

    def _run(self) -> None:
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            self.accepted += 1
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _more(self, connection: socket.socket) -> bytes:
        try:
            return connection.recv(1 << 16)
        except ConnectionResetError:
            return b""

    def _serve(self, connection: socket.socket) -> None:
        unread = b""
        with connection:
            connection.settimeout(DEADLINE)
            while True:
                while b"\r\n\r\n" not in unread:
                    data = self._more(connection)
                    if not data:
                        return
                    unread += data
                head, _, unread = unread.partition(b"\r\n\r\n")
                target = head.split(b" ")[1]
                if target == b"/planted" and not unread:
                    unread = self._more(connection)
                    if not unread:
                        return
                status = b"404 Not Found" if target == b"/xmlrpc" else b"200 OK"
                connection.sendall(b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n" % (status, len(target)) + target)


@pytest.mark.parametrize(
    "first", [b"GET /first HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", b"GET /first HTTP/1.0\r\n\r\n"]
)
@pytest_twisted.ensureDeferred
async def test_what_an_upstream_is_asked_to_end_is_not_used_again(first: bytes) -> None:
    """It ends the connection without saying so, perhaps just when another client's call is in it."""
    deaf = Deaf()

    def work(address: tuple[str, int]) -> None:
        for request in (first, b"GET /second HTTP/1.1\r\nHost: x\r\n\r\n"):
            with Conversation(address) as client:
                client.say(request)
                client.answer()

    try:
        async with overlaid(deaf.upstream) as here:
            await threads.deferToThread(work, here.address)
            assert deaf.accepted == 2
    finally:
        deaf.close()


@pytest.mark.parametrize("reset", [True, False])
@pytest_twisted.ensureDeferred
async def test_an_answer_to_the_end_of_the_connection_that_breaks_off_is_not_taken_for_whole(reset: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(1 << 16)
                connection.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhalf")
                going.wait(DEADLINE)
                if reset:
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

        def work(address: tuple[str, int]) -> bytes:
            with socket.create_connection(address, timeout=DEADLINE) as client:
                client.sendall(b"GET /export HTTP/1.1\r\nHost: x\r\n\r\n")
                came = b""
                while not came.endswith(b"half"):
                    came += client.recv(1 << 16)
                going.set()
                return came + read_all(client)

        going = threading.Event()
        threading.Thread(target=serve, daemon=True).start()
        async with overlaid(f"http://127.0.0.1:{listening.getsockname()[1]}") as here:
            try:
                assert (await threads.deferToThread(work, here.address)).endswith(b"half") and not reset
            except ConnectionResetError:
                assert reset


PLANTED = b"GET /planted HTTP/1.1\r\nHost: x\r\n\r\n"
HIDING = [
    b"GET /first HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(PLANTED) + PLANTED,
    b"POST http://x/RPC2 HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(PLANTED) + PLANTED,
    b"POST /xmlrpc HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(PLANTED) + PLANTED,
]


@pytest.mark.parametrize("hiding", HIDING)
@pytest_twisted.ensureDeferred
async def test_what_an_upstream_leaves_unread_is_not_answered_to_another_client(hiding: bytes) -> None:
    deaf = Deaf()

    def work(address: tuple[str, int]) -> bytes:
        with Conversation(address) as hostile, Conversation(address) as other:
            hostile.say(hiding)
            hostile.answer()
            other.say(b"GET /own HTTP/1.1\r\nHost: x\r\n\r\n")
            return other.answer().body

    try:
        async with overlaid(deaf.upstream) as here:
            assert await threads.deferToThread(work, here.address) == b"/own"
    finally:
        deaf.close()


@pytest.mark.parametrize("path", [b"/import_metadata", b"/xmlrpc"])
@pytest_twisted.ensureDeferred
async def test_what_it_leaves_unread_of_an_import_is_not_answered_to_another_client(path: bytes) -> None:
    deaf = Deaf()
    beside = stand_beside(parse_upstream(deaf.upstream), Records(data_model(), reactor), reactor)
    try:
        with suppress(MigrateError):
            await beside.client.put(path, PLANTED, "session_id=x")
        assert await beside.client.send(b"/own", b"text/plain", b"", False) == b"/own"
    finally:
        beside.pool.close()
        deaf.close()
