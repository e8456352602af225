"""How many connections may be open, and for how long without a right.

Each is a visitor. Who has shown a capability or a session is known, and counts among all alone. Of the others there are
fewer, few of one address, and a whole request of theirs has to come in time. Where there is no room for one more, the
one that has been waited for longest goes, of the address that has the most; who is being answered stays. So strangers
who only hold connections keep nobody out, and the descriptors that decisions need are never theirs.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Hashable
from typing import Any, Protocol

import attrs
from twisted.logger import Logger

MOST_OF_ONE = 32
"""Connections by which one capability is known; who has more of them is a stranger with the others."""
QUIET = 60.0
"""Seconds between two lines of the log about those that found no room."""


def source_of(address: str) -> str:
    """Whose an address is, as far as limits go: that of IPv4, the /64 of IPv6, of which any host has 2^64 addresses;
    what is no address as it is."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv4Address):
        return str(parsed)
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.IPv6Network((int(parsed) >> 64 << 64, 64)))


def shown(request: Any, key: Hashable = None) -> None:
    """Whoever has sent this request has a right: the capability that is the `key`, a session, or the pool's secret."""
    visitor: Visitor | None = getattr(request.channel, "visitor", None)
    if visitor is not None:
        visitor.shows(key)


@attrs.frozen
class Room:
    """`most` connections in all, of them `strangers` and `of_address` of one address. `deadline`: seconds in which a
    stranger's request has to be here. See configuration."""

    most: int = 1000
    strangers: int = 200
    of_address: int = 50
    deadline: float = 60.0

    def within(self, descriptors: int) -> Room:
        """With a quarter of this process's descriptors at most."""
        most = min(self.most, max(1, descriptors // 4))
        return attrs.evolve(self, most=most, strangers=min(self.strangers, most))


class Connection(Protocol):
    """What a visitor comes by."""

    def timeoutConnection(self) -> Any:
        """Its request has not come in time."""

    def put_out(self) -> None:
        """End it at once."""


class Visitor:
    """One connection. It is waited for (`awaited`) until its request is here (`busy`), and again after the answer."""

    def __init__(self, entrance: Entrance, source: str, connection: Connection) -> None:
        self.source = source
        self.connection = connection
        self.waiting = True
        self.known = False
        self._entrance = entrance
        self._here = True
        self._briefly = False
        self._key: Hashable = None
        self._late: Any = None

    def awaited(self, by_deadline: bool = True) -> None:
        """A request may come."""
        if self._briefly:
            self._briefly = self.known = False
        self.waiting = True
        if self._here and not self.known:
            self._entrance.strangers.setdefault(self.source, {}).pop(self, None)
            self._entrance.strangers[self.source][self] = None
            if by_deadline and self._late is None:
                self._late = self._entrance.clock.callLater(self._entrance.room.deadline, self._too_late)

    def busy(self) -> None:
        """The request is here."""
        self.waiting = False
        self._in_time()

    def shows(self, key: Hashable = None, briefly: bool = False) -> None:
        """A right: a capability, which is the `key`, or a session. `briefly`: for this request."""
        if self.known and not briefly:
            self._briefly = False
        elif not self.known and self._here and self._entrance.take(key):
            self.known, self._briefly, self._key = True, briefly, key
            self._entrance.forget(self)
            self._in_time()

    def leave(self) -> None:
        """The connection has ended. More than once is once."""
        if self._here:
            self._here = False
            self._in_time()
            self._entrance.left(self, self._key)

    def _in_time(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _too_late(self) -> None:
        self._late = None
        self.connection.timeoutConnection()


class Entrance:
    """Of one port, or of several together. Who comes by a unix socket has no address, and many of them are not too many
    of one."""

    log = Logger(namespace="xapi_migrate.entrance")

    def __init__(self, clock: Any, room: Room) -> None:
        self.clock = clock
        self.room = room
        self.open = 0
        self.strangers: dict[str, dict[Visitor, None]] = {}
        self._of_one: dict[Hashable, int] = {}
        self._said = float("-inf")
        self._turned_away = 0

    def enter(self, address: str, connection: Connection) -> Visitor | None:
        """None: there is no room, and nobody who could go."""
        source = source_of(address)
        if source and len(self.strangers.get(source, ())) >= self.room.of_address and not self._make_room([source]):
            return None
        unknown = sum(map(len, self.strangers.values()))
        if unknown >= self.room.strangers or self.open >= self.room.most:
            by_crowd = sorted(self.strangers, key=lambda one: len(self.strangers[one]), reverse=True)
            if not self._make_room(by_crowd):
                return None
        self.open += 1
        visitor = Visitor(self, source, connection)
        visitor.awaited()
        return visitor

    def take(self, key: Hashable) -> bool:
        """Whether one more connection may be known by this."""
        if key is None:
            return True
        if self._of_one.get(key, 0) >= MOST_OF_ONE:
            return False
        self._of_one[key] = self._of_one.get(key, 0) + 1
        return True

    def left(self, visitor: Visitor, key: Hashable) -> None:
        self.open -= 1
        self.forget(visitor)
        if key is not None:
            self._of_one[key] -= 1
            if not self._of_one[key]:
                del self._of_one[key]

    def forget(self, visitor: Visitor) -> None:
        """It is no stranger any more."""
        mine = self.strangers.get(visitor.source, {})
        mine.pop(visitor, None)
        if not mine:
            self.strangers.pop(visitor.source, None)

    def _make_room(self, sources: list[str]) -> bool:
        """Whether one has gone."""
        self._turned_away += 1
        self._tell()
        for source in sources:
            for visitor in self.strangers[source]:
                if visitor.waiting:
                    visitor.leave()
                    visitor.connection.put_out()
                    return True
        return False

    def _tell(self) -> None:
        now = self.clock.seconds()
        if now >= self._said + QUIET:
            self._said = now
            self.log.warn(
                "Too many connections: {count} were ended or turned away; {open} are open, {unknown} of them from who "
                "has shown no right", count=self._turned_away, open=self.open,
                unknown=sum(map(len, self.strangers.values())),
            )  # fmt: skip
            self._turned_away = 0
