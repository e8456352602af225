"""Who only holds connections keeps nobody out, and takes no descriptor that a decision needs."""

from __future__ import annotations

import os

import pytest
from twisted.internet.task import Clock

from tests.security.wires import ROOM, connect, server
from xapi_migrate.entrance import MOST_OF_ONE, Entrance, Room, Visitor, source_of

HALF = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 200000\r\n\r\n<"
WHOLE = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


class Line:
    """A connection that notes how it ends."""

    def __init__(self) -> None:
        self.end = ""

    def timeoutConnection(self) -> None:
        self.end = "late"

    def put_out(self) -> None:
        self.end = "put out"


class Door:
    def __init__(self, room: Room = ROOM) -> None:
        self.clock = Clock()
        self.entrance = Entrance(self.clock, room)

    def comes(self, address: str) -> tuple[Line, Visitor | None]:
        line = Line()
        return line, self.entrance.enter(address, line)

    def come(self, address: str, number: int) -> list[tuple[Line, Visitor | None]]:
        return [self.comes(address) for _ in range(number)]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("2001:db8:1:2::1", "2001:db8:1:2:ffff:ffff:ffff:ffff"), ("::ffff:192.0.2.1", "192.0.2.1"),
        ("fe80::1%eth0", "fe80::2%eth1"),
    ],
)  # fmt: skip
def test_addresses_of_one_source(one: str, other: str) -> None:
    assert source_of(one) == source_of(other)


def test_addresses_of_two_sources() -> None:
    two = ["2001:db8:1:2::1", "2001:db8:1:3::1", "192.0.2.1", "192.0.2.2", "", "local"]
    assert len(set(map(source_of, two))) == len(two)


def test_one_address_has_few_connections_and_the_next_ends_the_oldest() -> None:
    door = Door()
    lines = [door.comes(f"2001:db8::{number}") for number in range(1, 7)]
    assert [line.end for line, _ in lines] == ["put out", "put out", "", "", "", ""]
    assert door.entrance.open == 4


def test_strangers_from_everywhere_keep_nobody_out() -> None:
    """The one with most connections makes room first."""
    door = Door()
    crowd = door.come("192.0.2.1", 4)
    others = [door.comes(f"192.0.2.{number}")[0] for number in range(10, 14)]
    _, visitor = door.comes("198.51.100.1")
    assert visitor is not None
    assert [line.end for line, _ in crowd] == ["put out", "", "", ""]
    assert not any(line.end for line in others)
    assert door.entrance.open == 8


def test_who_is_being_answered_stays_and_then_there_is_no_room() -> None:
    door = Door()
    come = door.come("192.0.2.1", 4)
    for _, visitor in come:
        assert visitor is not None
        visitor.busy()
    _, one_more = door.comes("192.0.2.1")
    assert one_more is None
    assert not any(line.end for line, _ in come)
    assert come[2][1] is not None
    come[2][1].awaited()
    _, one_more = door.comes("192.0.2.1")
    assert one_more is not None
    assert come[2][0].end == "put out"


def test_who_has_shown_a_right_is_no_stranger() -> None:
    door = Door()
    known = door.come("192.0.2.1", 3)
    for _, visitor in known:
        assert visitor is not None
        visitor.shows()
    strangers = [door.comes(f"198.51.100.{number}")[0] for number in range(40)]
    strangers += [line for line, _ in door.come("192.0.2.1", 40)]
    door.clock.advance(1000)
    assert not any(line.end for line, _ in known)
    assert not any(line.end == "" for line in strangers)


def test_all_together_are_bounded() -> None:
    door = Door()
    for number in range(12):
        _, visitor = door.comes(f"192.0.2.{number}")
        assert visitor is not None
        visitor.shows()
    assert door.comes("198.51.100.1")[1] is None
    visitor.leave()
    visitor.leave()
    assert door.comes("198.51.100.1")[1] is not None
    assert door.comes("198.51.100.2")[1] is not None  # in the place of that stranger
    assert door.entrance.open == 12


def test_one_capability_makes_few_connections_known() -> None:
    door = Door(Room(most=1000, strangers=1000, of_address=1000))
    come = [visitor for _, visitor in door.come("192.0.2.1", MOST_OF_ONE + 1) if visitor is not None]
    for visitor in come:
        visitor.shows("the capability")
    assert [visitor.known for visitor in come] == [True] * MOST_OF_ONE + [False]
    come[0].leave()
    come[-1].shows("the capability")
    assert come[-1].known


def test_a_right_for_one_request_ends_with_it() -> None:
    door = Door()
    _, visitor = door.comes("192.0.2.1")
    assert visitor is not None
    visitor.busy()
    visitor.shows(briefly=True)
    assert visitor.known
    visitor.awaited()
    assert not visitor.known
    assert door.entrance.strangers


def test_a_quarter_of_the_descriptors_at_most() -> None:
    assert Room(1000, 200, 50).within(1024) == Room(256, 200, 50)
    assert Room(1000, 200, 50).within(400) == Room(100, 100, 50)
    assert Room(1000, 200, 50).within(1 << 20) == Room(1000, 200, 50)


# -- the two kinds of servers ----------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["site", "front"])
def test_a_server_lets_few_strangers_in(kind: str) -> None:
    factory = server(kind, Clock())
    wires = [connect(factory) for _ in range(7)]
    assert [wire.ended for _, wire in wires] == ["aborted"] * 3 + [""] * 4
    for protocol, _ in wires:
        protocol.connectionLost(None)
    assert factory.entrance.open == 0
    assert not factory.entrance.strangers


@pytest.mark.parametrize("request_", [WHOLE, HALF, b"PUT /migrate/x HTTP/1.1\r\nHost: x\r\n"])
@pytest.mark.parametrize("kind", ["site", "front"])
def test_who_sends_a_byte_now_and_then_has_to_come_to_an_end(kind: str, request_: bytes) -> None:
    """Each byte used to give another minute."""
    clock = Clock()
    protocol, wire = connect(server(kind, clock))
    for byte in request_[:-2][:6]:
        protocol.dataReceived(bytes([byte]))
        clock.advance(9.9)
        assert not wire.ended
    clock.advance(1)
    assert wire.ended == "closed"
    protocol.connectionLost(None)


def test_a_kept_connection_has_as_long_for_the_next_request() -> None:
    clock = Clock()
    protocol, wire = connect(server("site", clock))
    for _ in range(3):
        protocol.dataReceived(WHOLE)
        wire.read()
        clock.advance(40)
        assert not wire.ended
    protocol.dataReceived(b"G")
    clock.advance(25)
    assert wire.ended == "closed"
    protocol.connectionLost(None)


def test_a_long_body_opens_no_file() -> None:
    factory = server("site", Clock())
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    protocols = [connect(factory)[0] for _ in range(4)]
    for protocol in protocols:
        protocol.dataReceived(HALF)
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
    for protocol in protocols:
        protocol.connectionLost(None)
