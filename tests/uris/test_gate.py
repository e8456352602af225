"""The gate: who holds no capability learns nothing and has no byte of a body kept."""

from __future__ import annotations

import pytest
import pytest_twisted
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet import reactor

from xapi_migrate.uris.capability import Capability
from xapi_migrate.uris.reply import NOT_FOUND, Reply
from xapi_migrate.uris.request import MigrationRequest
from xapi_migrate.uris.tree import Admission, MigrationTree, below

from . import raw
from .doubles import Offers, Receiving, sleep

METHODS = ["HEAD", "GET", "PUT", "POST", "DELETE", "PATCH", "OPTIONS", "get", ""]
OFFERS = Offers()
RECEIVING = Receiving()
GOOD = OFFERS.add(RECEIVING).text
TREE = MigrationTree(OFFERS, 1000, reactor, 10)

RIGHT = {
    "": {"HEAD", "GET", "DELETE"},
    "/metadata": {"PUT"},
    "/memory": {"PUT"},
    "/control": {"GET", "PUT"},
    **{f"/disk/{n}": {"GET"} for n in range(256)},
}


def admit(method: str, path: str | bytes):
    return TREE.admit(method.encode(), path if isinstance(path, bytes) else path.encode())


@pytest.mark.parametrize("rest", ["", "/metadata", "/memory", "/control", "/disk/0", "/disk/9", "/disk/255"])
@pytest.mark.parametrize("method", METHODS)
def test_each_path_has_its_methods(rest, method):
    decided = admit(method, f"/migrate/{GOOD}{rest}")
    if method in RIGHT[rest]:
        assert isinstance(decided, Admission) and decided.receiving is RECEIVING
    else:
        assert isinstance(decided, Reply) and decided.status == 405
        assert set(dict(decided.headers)["Allow"].split(", ")) == RIGHT[rest]


@pytest.mark.parametrize(
    "path",
    [
        "/migrate",
        "/migrate/",
        f"/migrate/{GOOD}/",
        f"/migrate/{GOOD}//metadata",
        f"/migrate//{GOOD}",
        f"//migrate/{GOOD}",
        f"/migrate/{GOOD}/metadata/",
        f"/migrate/{GOOD}/metadata/..",
        f"/migrate/{GOOD}/%2e%2e/metadata",
        f"/migrate/{GOOD}/%6detadata",
        f"/migrate/{GOOD}%2fmetadata",
        f"/migrate/{GOOD}/metadata%00",
        f"/migrate/{GOOD}/metadata\0",
        f"/migrate/{GOOD}/metadata\n",
        f"/migrate/{GOOD}\n",
        f"/migrate/{GOOD}/metadata;a=b",
        f"/migrate/{GOOD}/metadata?a=b",
        f"/migrate/{GOOD}?",
        f"/migrate/{GOOD}/metadata#x",
        f"/migrate/{GOOD}/METADATA",
        f"/migrate/{GOOD}/disk",
        f"/migrate/{GOOD}/disk/",
        f"/migrate/{GOOD}/disk/256",
        f"/migrate/{GOOD}/disk/999",
        f"/migrate/{GOOD}/disk/1000",
        f"/migrate/{GOOD}/disk/00",
        f"/migrate/{GOOD}/disk/01",
        f"/migrate/{GOOD}/disk/-1",
        f"/migrate/{GOOD}/disk/+1",
        f"/migrate/{GOOD}/disk/1/2",
        f"/migrate/{GOOD}/disk/\u0661",
        f"/migrate/{GOOD[:-1]}",
        f"/migrate/{GOOD}A",
        f"/migrate/{GOOD[:-1]}%{ord(GOOD[-1]):02x}",
        f"/migrate/{Capability.new().text}",
        f"/migrate/{Capability.new().text}/metadata",
        f"/migrate/{'.' * 43}",
        f"/migrate/*{GOOD[1:]}",
    ],
)
@pytest.mark.parametrize("method", ["HEAD", "GET", "PUT", "DELETE"])
def test_whatever_lies_outside_is_not_found(path, method):
    assert admit(method, path) is NOT_FOUND


PIECES = st.sampled_from(
    ["/", "//", "migrate", GOOD, GOOD[:-1], "metadata", "disk", "memory", "control", "0", "1", "255", "256", "00"]
    + ["%2e", "%252e", "..", ".", ";", "?", "#", "\0", "%00", "\r\n", " ", "\xff", "%", "\\", "*"]
)


@given(st.lists(PIECES, max_size=9).map("".join), st.sampled_from(METHODS))
def test_the_gate_never_errs(path, method):
    decided = TREE.admit(method.encode(), path.encode("latin-1"))
    rest = path.removeprefix(f"/migrate/{GOOD}")
    right = path.startswith(f"/migrate/{GOOD}") and rest in RIGHT
    if not right:
        assert decided is NOT_FOUND
    else:
        assert isinstance(decided, Admission) is (method in RIGHT[rest])


@given(st.binary(max_size=80))
def test_the_gate_takes_any_bytes(path):
    assert TREE.admit(b"GET", b"/migrate/" + path) is NOT_FOUND


def test_what_is_below_the_tree():
    for path in (b"/migrate", b"/migrate/", b"/migrate/x", b"/migrate?x", b"/migrate;x"):
        assert below(path)
    for path in (b"/", b"/RPC2", b"/migrated", b"migrate/", b"/x/migrate/"):
        assert not below(path)


def test_after_the_end_only_three_things_are_answered():
    receiving = Receiving()
    offers = Offers()
    good = offers.add(receiving).text
    tree = MigrationTree(offers, 1000, reactor, 10)
    receiving.revoked = True
    for rest, methods in RIGHT.items():
        for method in methods:
            decided = tree.admit(method.encode(), f"/migrate/{good}{rest}".encode())
            if (rest, method) in {("", "HEAD"), ("", "DELETE"), ("/control", "GET"), ("/control", "PUT")}:
                assert isinstance(decided, Admission)
            else:
                assert isinstance(decided, Reply) and decided.status == 410 and b"has ended" in decided.body


def test_only_who_holds_a_capability_is_a_sign_of_life():
    receiving = Receiving()
    offers = Offers()
    good = offers.add(receiving).text
    tree = MigrationTree(offers, 1000, reactor, 10)
    tree.admit(b"HEAD", f"/migrate/{Capability.new().text}".encode())
    tree.admit(b"HEAD", f"/migrate/{good}/x".encode())
    assert receiving.touched == 0
    tree.admit(b"HEAD", f"/migrate/{good}".encode())
    assert receiving.touched == 1


# -- on the wire ---------------------------------------------------------------------------------

WRONG = "/migrate/" + "w" * 43


async def answer_to(served, request, seconds=5):
    client = await raw.connect(served.port)
    client.send(request)
    await client.ends(seconds)
    return client.got


@pytest.mark.system
@pytest_twisted.ensureDeferred
async def test_every_refusal_is_the_same(served):
    answers = set()
    for path in (
        WRONG,
        WRONG + "/metadata",
        f"{served.path}/..",
        "/migrate",
        "/migrate?x",
        "/%6digrate/x",
        "/migrate;",
    ):
        request = f"GET {path} HTTP/1.1\r\nHost: r\r\nConnection: close\r\n\r\n".encode()
        lines = (await answer_to(served, request)).split(b"\r\n")
        answers.add(
            b"\n".join(sorted(line for line in lines if not line.startswith((b"Date", b"Server", b"Content-L"))))
        )
    assert len(answers) == 1
    (only,) = answers
    assert b"404" in only and b"nosniff" in only and b"text/plain" in only and b"<" not in only
    assert served.receiving.touched == 0


@pytest.mark.system
@pytest_twisted.ensureDeferred
async def test_a_wrong_capability_is_answered_the_same_whatever_the_verb(served):
    heads, bodies = set(), {}
    for method in ("GET", "HEAD", "PUT", "POST", "DELETE", "OPTIONS", "PATCH", "TRACE", "PROPFIND", "get", "X"):
        request = f"{method} {WRONG} HTTP/1.1\r\nHost: r\r\nConnection: close\r\nContent-Length: 0\r\n\r\n".encode()
        head, _, bodies[method] = (await answer_to(served, request)).partition(b"\r\n\r\n")
        heads.add(b"\n".join(sorted(line for line in head.split(b"\r\n") if not line.startswith(b"Date"))))
    assert len(heads) == 1, heads
    assert b" 404 " in next(iter(heads)) and b"nosniff" in next(iter(heads))
    assert bodies.pop("HEAD") == b""
    assert set(bodies.values()) == {b"Not found.\n"}
    assert served.receiving.touched == 0


@pytest.mark.parametrize("rest", ["/metadata", "/memory", "/nothing"])
@pytest.mark.parametrize("framing", ["Content-Length: 104857600", "Transfer-Encoding: chunked"])
@pytest.mark.system
@pytest_twisted.ensureDeferred
async def test_a_body_for_a_wrong_capability_is_refused_unread(served, rest, framing, monkeypatch):
    sizes = []
    handle = MigrationRequest.handleContentChunk

    def counted(self, data):
        sizes.append(len(data))
        handle(self, data)

    monkeypatch.setattr(MigrationRequest, "handleContentChunk", counted)
    client = await raw.connect(served.port)
    client.send(f"PUT {WRONG}{rest} HTTP/1.1\r\nHost: r\r\n{framing}\r\n\r\n".encode())
    await client.sees(b"HTTP/1.1 404 Not Found\r\n", 1)
    await client.sees(b"Connection: close\r\n")
    kept = served.channels[0].requests[0].content
    for _ in range(1600):
        client.send(b"10000\r\n" + bytes(0x10000) + b"\r\n" if "chunked" in framing else bytes(0x10000))
    await client.ends(4)
    assert sum(sizes) < 1 << 20
    assert kept.closed
    assert served.receiving.events == []


@pytest.mark.system
@pytest_twisted.ensureDeferred
async def test_a_refused_client_that_says_nothing_more_is_not_waited_for(served):
    client = await raw.connect(served.port)
    client.send(f"PUT {WRONG}/metadata HTTP/1.1\r\nHost: r\r\nContent-Length: 10\r\n\r\n".encode())
    await client.sees(b"Not found.\n", 1)
    await client.ends(3)


@pytest.mark.system
@pytest_twisted.ensureDeferred
async def test_a_refusal_is_never_followed_by_100(served):
    request = f"PUT {WRONG}/metadata HTTP/1.1\r\nHost: r\r\nContent-Length: 9\r\nExpect: 100-continue\r\n\r\n"
    assert b"100" not in await answer_to(served, request.encode())


@pytest.mark.system
@pytest_twisted.ensureDeferred
async def test_metadata_is_limited_before_and_while_it_comes(served):
    put = f"PUT {served.path}/metadata HTTP/1.1\r\nHost: r\r\n"
    assert b" 413 " in await answer_to(served, f"{put}Content-Length: 100001\r\n\r\n".encode())
    client = await raw.connect(served.port)
    client.send(f"{put}Transfer-Encoding: chunked\r\n\r\n".encode())
    for _ in range(10):
        client.send(raw.chunk(bytes(10_000)))
    await sleep(0.1)
    assert client.got == b""
    client.send(raw.chunk(b"x"))
    await client.sees(b" 413 ", 1)
    await client.close()
    assert served.receiving.events == []


@pytest.mark.system
@pytest_twisted.ensureDeferred
async def test_the_rest_of_the_site_is_left_alone(served):
    body = b"x" * 300_000
    request = b"POST /jsonrpc HTTP/1.1\r\nHost: r\r\nConnection: close\r\nContent-Length: 300000\r\n\r\n" + body
    assert b"300000 bytes" in await answer_to(served, request)
    assert b"api" in await answer_to(served, b"GET /jsonrpc HTTP/1.1\r\nHost: r\r\nConnection: close\r\n\r\n")
