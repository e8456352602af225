"""Where messages end, and what is no message."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xapi_migrate.upstream.messages import BadMessage, Chunked, find_head, request_head, response_head


def request(*lines: str, first: str = "POST / HTTP/1.1") -> bytes:
    return "\r\n".join([first, *lines, "", ""]).encode("latin-1")


@pytest.mark.parametrize(
    "raw",
    [
        request("Content-Length: 1", "Content-Length: 2"),
        request("Content-Length: 1", "Transfer-Encoding: chunked"),
        request("Content-Length: +1"),
        request("Content-Length: 1, 1"),
        request("Content-Length:"),
        request("Content-Length: 1" + "0" * 18),
        request("Transfer-Encoding: gzip, chunked"),
        request("Transfer-Encoding: chunked", "Transfer-Encoding: chunked"),
        request("Transfer-Encoding: chunked", first="POST / HTTP/1.0"),
        request("Transfer-Encoding : chunked"),
        request("X: y", " folded: z"),
        request("X: a\nTransfer-Encoding: chunked"),
        request("X: a\rb"),
        request("X: \0"),
        request("no colon"),
        request(first="POST / HTTP/1.1 "),
        request(first="POST  / HTTP/1.1"),
        request(first="post / HTTP/1.1"),
        request(first="POST / HTTP/2.0"),
        request(first="POST /\x01 HTTP/1.1"),
        request(first="GET /"),
    ],
)
def test_a_request_that_could_be_read_in_two_ways_is_none(raw: bytes) -> None:
    with pytest.raises(BadMessage):
        request_head(raw)


@pytest.mark.parametrize(
    "raw",
    [b"HTTP/1.1 20 OK\r\n\r\n", b"220 mail ready\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
     b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n"],
)  # fmt: skip
def test_an_answer_that_is_none(raw: bytes) -> None:
    with pytest.raises(BadMessage):
        response_head(raw)


def test_heads_have_a_limit() -> None:
    assert find_head(b"GET / HTTP/1.1\r\n") == 0
    assert find_head(b"GET / HTTP/1.1\r\n\r\nrest") == 18
    with pytest.raises(BadMessage):
        find_head(b"x" * (65 << 10))


def test_what_a_head_says() -> None:
    head = request_head(request("content-LENGTH:  7 ", "Connection: Keep-Alive, close", "Expect: 100-continue"))
    assert (head.method, head.path, head.length, head.framed) == (b"POST", b"/", 7, True)
    assert not head.persistent and head.expects
    assert head.without_expectation() == request("content-LENGTH:  7 ", "Connection: Keep-Alive, close")
    assert request_head(request(first="GET http://x/RPC2?a=/b HTTP/1.0")).path == b"/RPC2"
    assert response_head(b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 0\r\n\r\n").persistent
    assert not response_head(b"HTTP/1.1 200 OK\r\n\r\n").persistent


CHUNKED = b'5\r\nhello\r\n6;x="y"\r\n world\r\n0\r\nTrailer: z\r\n\r\n'


@given(st.lists(st.integers(1, len(CHUNKED)), max_size=6))
def test_a_chunked_body_ends_where_it_ends_however_it_comes(cuts: list[int]) -> None:
    content = bytearray()
    body = Chunked(content)
    whole, mine, rest = CHUNKED + b"next", b"", b""
    places = [0, *sorted(set(cuts)), len(whole)]
    for start, end in zip(places, places[1:]):
        if body.ended:
            rest += whole[start:end]
            continue
        took, left = body.take(whole[start:end])
        mine, rest = mine + took, rest + left
    assert (mine, rest, bytes(content), body.ended) == (CHUNKED, b"next", b"hello world", True)


@pytest.mark.parametrize(
    "raw", [b"x\r\n", b"5\nhello", b"1\r\nab\r\n", b"-1\r\n", b"1" * 20 + b"\r\n", b"0\r\nx\r\n\r\n"]
)
def test_a_chunked_body_that_is_none(raw: bytes) -> None:
    with pytest.raises(BadMessage):
        Chunked().take(raw)


@given(st.binary(max_size=300))
def test_any_bytes_are_a_head_or_none(raw: bytes) -> None:
    for read in (request_head, response_head):
        try:
            read(raw + b"\r\n\r\n")
        except BadMessage:
            pass
