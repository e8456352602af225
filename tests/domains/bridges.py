"""Bridges of a test's own, and what is announced on them."""

from __future__ import annotations

import os
import socket
from itertools import count
from pathlib import Path

from xapi_migrate.domains.taps import ip

_RARP = 0x8035
_NUMBERS = count()


class Bridge:
    """A bridge that is there while this is open. `name` is of this process alone."""

    def __init__(self) -> None:
        self.name = f"xmt{os.getpid() % 1_000_000}.{next(_NUMBERS)}"
        self._announced: list[str] = []
        self._socket: socket.socket | None = None

    def __enter__(self) -> Bridge:
        ip("link", "add", "name", self.name, "type", "bridge")
        try:
            ip("link", "set", "dev", self.name, "up")
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK, 0)
            self._socket.bind((self.name, _RARP))
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._socket is not None:
            self._socket.close()
        ip("link", "del", "dev", self.name)

    def announced(self) -> list[str]:
        """The MAC addresses that announced themselves so far (RARP), in order."""
        assert self._socket is not None
        while True:
            try:
                data = self._socket.recv(2048)
            except BlockingIOError:
                return self._announced
            self._announced.append(":".join(f"{byte:02x}" for byte in data[8:14]))

    def ports(self) -> list[str]:
        """The interfaces that are on it."""
        return sorted(port.name for port in Path(f"/sys/class/net/{self.name}/brif").iterdir())
