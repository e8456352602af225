"""A local pair's end in the reactor."""

from __future__ import annotations

import socket
from typing import Any, TypeVar

from twisted.internet.interfaces import IAddress
from twisted.internet.protocol import Factory, Protocol

P = TypeVar("P", bound=Protocol)


class _One(Factory):
    noisy = False

    def __init__(self, protocol: Protocol) -> None:
        self._protocol = protocol

    def buildProtocol(self, addr: IAddress | None) -> Protocol:
        return self._protocol


def adopt(reactor: Any, sock: socket.socket, protocol: P) -> P:
    """Give a connected AF_UNIX stream socket to the reactor, joined to `protocol`. The socket object is closed: the
    reactor has a duplicate."""
    sock.setblocking(False)
    try:
        reactor.adoptStreamConnection(sock.fileno(), socket.AF_UNIX, _One(protocol))
    finally:
        sock.close()
    return protocol
