"""Bridges of a test's own, and what is announced on them."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

from xapi_migrate.domains.taps import ip

_RARP = 0x8035
_NUMBERS = count()


def new_name() -> str:
    """A name for a bridge, of this process alone."""
    return f"xmt{os.getpid() % 1_000_000}.{next(_NUMBERS)}"


def ports(bridge: str) -> list[str]:
    """The interfaces that are on a bridge."""
    return sorted(port.name for port in Path(f"/sys/class/net/{bridge}/brif").iterdir())


@contextmanager
def announcements(bridge: str) -> Iterator[Callable[[], list[str]]]:
    """Listens; called, it tells the MAC addresses that announced themselves so far (RARP), in order."""
    heard: list[str] = []
    with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK, 0) as listener:
        listener.bind((bridge, _RARP))

        def announced() -> list[str]:
            while True:
                try:
                    data = listener.recv(2048)
                except BlockingIOError:
                    return heard
                heard.append(":".join(f"{byte:02x}" for byte in data[8:14]))

        yield announced


class Bridge:
    """A bridge that is there, and listened to, while this is open."""

    def __init__(self) -> None:
        self.name = new_name()

    def __enter__(self) -> Bridge:
        ip("link", "add", "name", self.name, "type", "bridge")
        try:
            ip("link", "set", "dev", self.name, "up")
            self._listening = announcements(self.name)
            self.announced = self._listening.__enter__()
        except BaseException:
            ip("link", "del", "dev", self.name)
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._listening.__exit__(None, None, None)
        ip("link", "del", "dev", self.name)

    def ports(self) -> list[str]:
        return ports(self.name)
