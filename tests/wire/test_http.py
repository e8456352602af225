"""The HTTP side on a raw socket: envelope, paths, limits, what a bomb costs."""

from __future__ import annotations

import http.client
import json
import socket
import time
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor, threads
from twisted.internet.task import deferLater

from tests.xenapi.live import PASSWORD, USER, Live, live

LOGIN = (
    "<methodCall><methodName>session.login_with_password</methodName><params><param><value>root</value></param>"
    f"<param><value>{PASSWORD}</value></param></params></methodCall>"
).encode()


def post(port: int, body: bytes, path: str = "/", **headers: str) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("POST", path, body, headers)
        response = connection.getresponse()
        return response.status, {name.lower(): value for name, value in response.getheaders()}, response.read()
    finally:
        connection.close()


async def ask(here: Live, body: bytes, path: str = "/") -> tuple[int, dict[str, str], bytes]:
    return await threads.deferToThread(post, here.port, body, path)


def xml(method: str, *params: str) -> bytes:
    values = "".join(f"<param><value>{param}</value></param>" for param in params)
    return f"<methodCall><methodName>{method}</methodName><params>{values}</params></methodCall>".encode()


@pytest_twisted.ensureDeferred
async def test_the_envelope(tmp_path: Path) -> None:
    async with live(tmp_path) as here:
        for path in ("/", "/RPC2", "/xmlrpc"):
            status, headers, body = await ask(here, LOGIN, path)
            assert status == 200 and headers["content-type"] == "text/xml"
            assert headers["access-control-allow-origin"] == "*" and int(headers["content-length"]) == len(body)
            assert body.startswith(
                b'<?xml version="1.0"?><methodResponse><params><param><value><struct><member><name>Status'
            )
            assert b"<value>OpaqueRef:" in body and b"\n" not in body
        status, headers, body = await ask(here, xml("VM.get_all", "OpaqueRef:none"))
        assert status == 200 and b"<value>SESSION_INVALID</value><value>OpaqueRef:none</value>" in body
        status, headers, body = await ask(here, xml("foo.bar"))
        assert b"<value>MESSAGE_METHOD_UNKNOWN</value><value>foo.bar</value>" in body
        status, headers, body = await ask(here, xml("system.listMethods"))
        assert body.startswith(b'<?xml version="1.0"?><methodResponse><params><param><value><array><data><value>')
        assert b"<value>task.get_all_records</value>" in body and b"<value>VM.receive</value>" in body
        status, headers, body = await ask(here, b"\xff\xfe")
        assert status == 200 and b"INVALID_VALUE" in body


@pytest_twisted.ensureDeferred
async def test_no_browser_guesses_at_an_answer(tmp_path: Path) -> None:
    def each(port: int) -> list[tuple[int, str | None]]:
        found = []
        for method, path, body in (
            ("POST", "/", LOGIN), ("POST", "/RPC2", b"<a/>"), ("POST", "/jsonrpc", b"[1]"),
            ("POST", "/", b"x" * (400 << 10)),
            ("POST", "/jsonrpc", b'{"method": "no.such", "params": []}'), ("GET", "/", b""), ("HEAD", "/", b""),
            ("OPTIONS", "/jsonrpc", b""), ("PATCH", "/json", b""), ("GET", "/no%3Cscript%3E", b""),
            ("HEAD", "/none", b""),
        ):  # fmt: skip
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            connection.request(method, path, body)
            response = connection.getresponse()
            found.append((response.status, response.getheader("X-Content-Type-Options")))
            connection.close()
        return found

    async with live(tmp_path) as here:
        answers = await threads.deferToThread(each, here.port)
    assert {status for status, _ in answers} == {200, 400, 404, 405, 413}
    assert {said for _, said in answers} == {"nosniff"}


@pytest_twisted.ensureDeferred
async def test_what_is_no_call_gets_an_http_status(tmp_path: Path) -> None:
    async with live(tmp_path) as here:
        for body, path, expected in ((b"<a/>", "/", 400), (b"[1]", "/jsonrpc", 400), (LOGIN, "/nowhere", 404)):
            status, headers, text = await ask(here, body, path)
            assert (status, headers["content-type"]) == (expected, "text/plain") and b"<" not in text

        def get() -> tuple[int, str]:
            connection = http.client.HTTPConnection("127.0.0.1", here.port, timeout=60)
            connection.request("GET", "/")
            response = connection.getresponse()
            connection.close()
            return response.status, response.getheader("Allow", "")

        assert await threads.deferToThread(get) == (405, "POST, OPTIONS")


@pytest_twisted.ensureDeferred
async def test_json_in_both_versions(tmp_path: Path) -> None:
    async with live(tmp_path) as here:
        vm = here.records.create("VM", name_label="ü", user_version=7)

        async def say(method: str, *params: object, **more: object) -> Any:
            body = json.dumps({"method": method, "params": params, "id": 0, **more}).encode()
            status, headers, text = await ask(here, body, "/jsonrpc")
            assert status == 200 and headers["content-type"] == "application/json"
            return json.loads(text)

        answer = await say("session.login_with_password", USER, PASSWORD, jsonrpc="2.0")
        assert set(answer) == {"jsonrpc", "result", "id"} and answer["id"] == 0
        session = answer["result"]
        record = (await say("VM.get_record", session, vm, jsonrpc="2.0"))["result"]
        assert (
            record["user_version"] == 7
            and record["snapshot_time"] == "19700101T00:00:00Z"
            and record["name_label"] == "ü"
        )
        answer = await say("VM.get_record", session, "OpaqueRef:no", jsonrpc="2.0")
        assert answer["error"] == {"code": 1, "message": "HANDLE_INVALID", "data": ["VM", "OpaqueRef:no"]}
        answer = await say("VM.set_user_version", session, vm, 8)
        assert answer == {"result": "", "error": None, "id": 0}
        answer = await say("VM.set_user_version", session, vm, 2**70)
        assert answer["error"] == ["FIELD_TYPE_ERROR", "value"]
        answer = await say("VM.get_all", None)
        assert answer["error"] == ["SESSION_INVALID", ""]


def send(port: int, head: bytes, piece: bytes, most: int) -> tuple[bytes, int]:
    """What comes back, and how many bytes of the body could be sent until then."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        begun, sent = time.monotonic(), 0
        connection.sendall(head)
        connection.settimeout(0)
        answer = b""
        while b"\r\n\r\n" not in answer and time.monotonic() - begun < 60:
            try:
                answer += connection.recv(4096)
            except BlockingIOError:
                pass
            if sent < most and not answer:
                try:
                    sent += connection.send(piece)
                except BlockingIOError:
                    time.sleep(0.001)
        return answer, sent


@pytest_twisted.ensureDeferred
async def test_long_bodies_are_refused_without_being_read(tmp_path: Path) -> None:
    async with live(tmp_path) as here:
        head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 104857600\r\n\r\n"
        # not one byte of the body was sent when the answer came
        answer, _ = await threads.deferToThread(send, here.port, head, b"", 0)
        assert answer.startswith(b"HTTP/1.1 413 ")
        expecting = head.replace(b"\r\n\r\n", b"\r\nExpect: 100-continue\r\n\r\n")
        answer, _ = await threads.deferToThread(send, here.port, expecting, b"", 0)
        assert answer.startswith(b"HTTP/1.1 413 ")
        chunked = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        piece = b"10000\r\n" + b"x" * 65536 + b"\r\n"
        answer, sent = await threads.deferToThread(send, here.port, chunked, piece, 100 << 20)
        assert answer.startswith(b"HTTP/1.1 413 ") and sent < 8 << 20
        status, _, _ = await ask(here, LOGIN)
        assert status == 200


@pytest_twisted.ensureDeferred
async def test_the_limit_is_the_operators(tmp_path: Path) -> None:
    async with live(tmp_path, request_limit=len(LOGIN)) as here:
        assert (await ask(here, LOGIN))[0] == 200
        assert (await ask(here, LOGIN + b" "))[0] == 413


@pytest_twisted.ensureDeferred
async def test_many_clients_at_once_and_one_that_waits(tmp_path: Path) -> None:
    async with live(tmp_path) as here:
        vm = here.records.create("VM")
        waiting = here.client(lambda session: session.xenapi.VM.clean_shutdown(vm))
        session = here.server.sessions.open(USER, "here")

        def many() -> int:
            connection = http.client.HTTPConnection("127.0.0.1", here.port, timeout=60)
            for _ in range(50):
                connection.request("POST", "/", xml("VM.get_record", session, vm))
                assert b"Success" in connection.getresponse().read()
            connection.close()
            return 50

        assert sum([await one for one in [threads.deferToThread(many) for _ in range(8)]]) == 400
        assert not waiting.called
        here.more.gate.callback(None)
        await waiting


@pytest_twisted.ensureDeferred
async def test_a_client_that_goes_away_harms_nobody(tmp_path: Path) -> None:
    async with live(tmp_path) as here:
        vm = here.records.create("VM")
        session = here.server.sessions.open(USER, "here")
        body = xml("VM.clean_shutdown", session, vm)

        def leave() -> None:
            with socket.create_connection(("127.0.0.1", here.port), timeout=60) as connection:
                head = f"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
                connection.sendall(head + body)
                time.sleep(0.1)

        await threads.deferToThread(leave)
        await deferLater(reactor, 0.1)
        here.more.gate.callback(None)
        assert (await ask(here, LOGIN))[0] == 200


@pytest.mark.parametrize("path", ["/migrate", "/migrate/x/memory", "/migrate/x?y=z"])
@pytest_twisted.ensureDeferred
async def test_calls_are_not_taken_below_migrate(tmp_path: Path, path: str) -> None:
    async with live(tmp_path) as here:
        status, _, body = await ask(here, LOGIN, path)
        assert status == 404 and b"OpaqueRef" not in body


@pytest_twisted.ensureDeferred
async def test_a_body_is_never_taken_for_a_form(tmp_path: Path) -> None:
    """twisted.web would: parts within parts, each line of which is held against all, take seconds."""
    nested = b"".join(b'--%d\r\nContent-Type: multipart/mixed; boundary="%d"\r\n\r\n' % (n, n + 1) for n in range(400))
    body = nested + b"\n" * 200_000
    async with live(tmp_path) as here:
        for kind in ("multipart/form-data; boundary=0", "application/x-www-form-urlencoded"):
            begun = time.process_time()
            status, _, _ = await threads.deferToThread(post, here.port, body, "/", **{"Content-Type": kind})
            assert status == 400
            assert time.process_time() - begun < 1
        status, _, answer = await threads.deferToThread(post, here.port, LOGIN, "/", **{"Content-Type": kind})
        assert status == 200 and b"OpaqueRef:" in answer
