"""How XenAPI is carried by HTTP, each rule on a raw socket: HTTP/1.0; keep-alive; pipelined; in pieces; Expect; HEAD,
GET, OPTIONS; chunked."""

from __future__ import annotations

import pytest
import pytest_twisted

from tests.wire.raw import post, xml
from tests.wire.talk import LOGIN, Talk, Wire


@pytest_twisted.ensureDeferred
async def test_http_1_0_is_answered_and_closed(wire: Wire) -> None:
    def work(talk: Talk) -> None:
        conversation = talk.conversation
        conversation.say(f"POST / HTTP/1.0\r\nContent-Length: {len(LOGIN)}\r\n\r\n{LOGIN}")
        answer = conversation.answer()
        assert answer.status == 200 and answer.value()
        assert "transfer-encoding" not in answer.headers
        assert conversation.ended()

    await wire.talk(work)


@pytest_twisted.ensureDeferred
async def test_a_connection_is_kept(wire: Wire) -> None:
    def work(talk: Talk) -> None:
        for _ in range(5):
            assert talk.ask(LOGIN).value()
            assert talk.json("VM.get_all", talk.session)["error"] is None
            assert talk.call("no.such").error()
            assert talk.ask("<no/>").status == 400
        talk.conversation.say(post(LOGIN, Connection="close"))
        assert talk.conversation.answer().headers["connection"] == "close"
        assert talk.conversation.ended()

    await wire.talk(work)


@pytest_twisted.ensureDeferred
async def test_pipelined_calls_are_answered_in_order(wire: Wire) -> None:
    vms = [wire.live.records.create("VM", name_label=f"piped {number}") for number in range(20)]

    def work(talk: Talk) -> None:
        talk.conversation.say(*(post(xml("VM.get_name_label", talk.session, vm)) for vm in vms))
        answers = [talk.conversation.answer().value() for _ in vms]
        assert answers == [f"<value>piped {number}</value>" for number in range(20)]

    await wire.talk(work)


@pytest_twisted.ensureDeferred
async def test_a_call_may_come_in_pieces(wire: Wire) -> None:
    def work(talk: Talk) -> None:
        for byte in post(LOGIN):
            talk.conversation.say(bytes([byte]))
        assert talk.conversation.answer().value()

    await wire.talk(work)


@pytest_twisted.ensureDeferred
async def test_chunks_are_taken(wire: Wire) -> None:
    def work(talk: Talk) -> None:
        talk.conversation.say("POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        for piece in (LOGIN[:10], LOGIN[10:]):
            talk.conversation.say(f"{len(piece):x}\r\n{piece}\r\n")
        talk.conversation.say("0\r\n\r\n")
        assert talk.conversation.answer().value()

    await wire.talk(work)


@pytest_twisted.ensureDeferred
async def test_a_client_that_expects_to_be_told_to_go_on_is(wire: Wire) -> None:
    def work(talk: Talk) -> None:
        head, _, body = post(LOGIN, Expect="100-continue").partition(b"\r\n\r\n")
        talk.conversation.say(head + b"\r\n\r\n")
        assert talk.conversation.head() == ("HTTP/1.1 100 Continue", {})
        talk.conversation.say(body)
        assert talk.conversation.answer().value()

    await wire.talk(work)


@pytest.mark.parametrize("path", ["/", "/RPC2", "/jsonrpc"])
@pytest_twisted.ensureDeferred
async def test_other_methods_than_post(wire: Wire, path: str) -> None:
    def work(talk: Talk) -> None:
        for method in ("GET", "HEAD", "PUT", "DELETE"):
            talk.conversation.say(f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
            answer = talk.conversation.answer(body=method != "HEAD")
            assert (answer.status, answer.headers["allow"]) == (405, "POST, OPTIONS")
        assert talk.ask(LOGIN).value()

    await wire.talk(work)


@pytest.mark.parametrize("path", ["/", "/RPC2", "/jsonrpc", "/json"])
@pytest_twisted.ensureDeferred
async def test_a_browser_may_ask_first(wire: Wire, path: str) -> None:
    def work(talk: Talk) -> None:
        talk.conversation.say(f"OPTIONS {path} HTTP/1.1\r\nHost: x\r\nOrigin: http://y\r\n\r\n")
        answer = talk.conversation.answer()
        assert (answer.status, answer.body) == (200, b"")
        assert answer.headers["access-control-allow-origin"] == "*"
        assert "POST" in answer.headers["access-control-allow-methods"]
        assert answer.headers["access-control-allow-headers"].lower() == "content-type"

    await wire.talk(work)


@pytest_twisted.ensureDeferred
async def test_what_is_no_http_ends_the_connection(wire: Wire) -> None:
    def work(talk: Talk) -> None:
        talk.conversation.say("what?\r\n\r\n")
        line, _ = talk.conversation.head()
        assert line.startswith("HTTP/1.1 400 ")

    await wire.talk(work)
