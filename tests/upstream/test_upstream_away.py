"""An upstream that is down, slow, restarting or talks nonsense: the client hears so, and nothing has to be restarted
here when it is back."""

from __future__ import annotations

import json
import socket
import time
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import threads

from tests.upstream.overlaid import USERS, Overlaid, overlaid, with_client
from tests.upstream.simulated.server import SimulatedXapi
from tests.upstream.test_pass_through import Canned, whole_answer
from tests.wire.raw import Answer, Conversation, post, xml


def ask(address: tuple[str, int], *requests: bytes) -> list[Answer]:
    with Conversation(address) as talk:
        answers = []
        for request in requests:
            talk.say(request)
            answers.append(talk.answer())
        return answers


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


@pytest_twisted.ensureDeferred
async def test_down() -> None:
    upstream = f"http://127.0.0.1:{free_port()}"
    second = json.dumps({"jsonrpc": "2.0", "id": 3, "method": "VM.get_all", "params": ["x"]})
    async with overlaid(upstream) as here:
        by_xml, by_json, listed, plain = await threads.deferToThread(
            ask, here.address, post(xml("VM.start", "a", "b")), post(second, "/jsonrpc"),
            post(xml("system.listMethods")), b"GET /export HTTP/1.1\r\n\r\n",
        )  # fmt: skip
    code, where, why = by_xml.error()
    assert (code, where) == ("CANNOT_CONTACT_HOST", upstream)
    assert "refused" in why
    assert by_json.json["error"]["message"] == "CANNOT_CONTACT_HOST" and by_json.json["id"] == 3
    assert (listed.status, plain.status) == (502, 502)
    assert "Nothing has been done" in plain.text


GARBAGE = [
    b"220 mail ready\r\n\r\n", b"\0" * 1000 + b"\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: no\r\n\r\n",
    b"x" * 100_000, b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", b"",
    b"HTTP/1.1 200 OK\r\nContent-",
]  # fmt: skip


@pytest.mark.parametrize("garbage", GARBAGE)
@pytest_twisted.ensureDeferred
async def test_garbage(garbage: bytes) -> None:
    canned = Canned(garbage, b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
    async with overlaid(canned.upstream) as here:
        bad, good = await threads.deferToThread(
            ask, here.address, post(xml("VM.start", "a")), post(xml("VM.start", "a"))
        )
    assert bad.error()[0] == "CANNOT_CONTACT_HOST"
    assert good.body == b"ok"


@pytest_twisted.ensureDeferred
async def test_an_answer_that_breaks_off_is_not_made_whole() -> None:
    begun = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf"
    broken = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\nzz\r\n"
    canned = Canned(begun, broken)
    async with overlaid(canned.upstream) as here:
        first = await threads.deferToThread(whole_answer, here.address, post(xml("VM.get_all")))
        second = await threads.deferToThread(whole_answer, here.address, post(xml("VM.get_all")))
    assert first == begun
    assert broken.startswith(second)


@pytest_twisted.ensureDeferred
async def test_it_restarts() -> None:
    def look(session: Any) -> int:
        return len(session.xenapi.VM.get_all())

    def calls(here: Overlaid, xapi: SimulatedXapi) -> None:
        session = with_client(here.url, lambda session: session)
        assert look(session) == 0
        xapi.stop()
        with pytest.raises(Exception, match="CANNOT_CONTACT_HOST"):
            look(session)
        xapi.start()
        xapi.database.create("VM")
        assert look(session) == 1
        xapi.stop()
        xapi.start()
        # the kept connection has gone, and this is a call that is not made twice
        session.xenapi.VM.create({"name_label": "b"})
        assert look(session) == 2
        session("close")()

    with SimulatedXapi(USERS) as xapi:
        async with overlaid(xapi.upstream) as here:
            await threads.deferToThread(calls, here, xapi)


@pytest_twisted.ensureDeferred
async def test_a_kept_connection_that_ends_under_a_question_is_replaced() -> None:
    """The upstream closes it at the very moment: what only reads is asked again, what acts is not."""
    kept = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
    listening = socket.create_server(("127.0.0.1", 0))
    listening.settimeout(60)
    got: list[bytes] = []

    def serve() -> None:
        for _ in range(2):
            connection, _ = listening.accept()
            with connection:
                got.append(connection.recv(10_000))
                connection.sendall(kept)
                got.append(connection.recv(10_000))  # and no answer

    async with overlaid(f"http://127.0.0.1:{listening.getsockname()[1]}") as here:
        serving = threads.deferToThread(serve)
        read, start = post(xml("VM.get_all", "s")), post(xml("VM.start", "s"))
        answers = await threads.deferToThread(ask, here.address, read, read, start)
        assert [answer.body for answer in answers[:2]] == [b"ok", b"ok"]
        assert answers[2].error()[0] == "CANNOT_CONTACT_HOST"
        assert got.count(read) == 3 and got.count(start) == 1
        await serving
    listening.close()


@pytest_twisted.ensureDeferred
async def test_slow_is_no_error_and_holds_nobody_up() -> None:
    with SimulatedXapi(USERS) as xapi:
        vm = xapi.database.create("VM", power_state="Running")
        async with overlaid(xapi.upstream) as here:
            slow = here.client(lambda session: session.xenapi.VM.clean_shutdown(vm))
            began = time.monotonic()
            assert await here.client(lambda session: session.xenapi.VM.get_power_state(vm)) == "Running"
            assert time.monotonic() - began < 30
            xapi.database.gate.set()
            await slow
        assert xapi.database.records["VM"][vm]["power_state"] == "Halted"


@pytest_twisted.ensureDeferred
async def test_a_client_that_goes_lets_the_upstream_go() -> None:
    with SimulatedXapi(USERS) as xapi:
        async with overlaid(xapi.upstream) as here:

            def poll() -> None:
                token = with_client(here.url, lambda session: session._session)
                with Conversation(here.address) as talk:
                    talk.say(post(xml("event.from", token, "<array><data/></array>", "", "<double>50</double>")))
                    with xapi.database.changed:
                        assert xapi.database.changed.wait_for(lambda: xapi.database.waiting == 1, 60)

            await threads.deferToThread(poll)

            # the one that waited has ended, a free one is kept
            pool = here.overlay.pool
            await threads.deferToThread(_until, lambda: len(pool.connections) == len(pool._free))


def _until(condition: Any) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)
