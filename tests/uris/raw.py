"""A client without any sense of HTTP: writes what it is told, shows what comes."""

from __future__ import annotations

from twisted.internet import reactor
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.protocol import Protocol

from .doubles import until


class Raw(Protocol):
    def __init__(self):
        self.got = b""
        self.lost = None

    def dataReceived(self, data):
        self.got += data

    def connectionLost(self, reason):
        self.lost = reason

    def send(self, data):
        self.transport.write(data)

    async def sees(self, expected, seconds=5):
        """Wait for bytes to come; what came before them is taken with them."""
        await until(lambda: expected in self.got or self.lost, seconds)
        assert expected in self.got, self.got
        before, _, self.got = self.got.partition(expected)
        return before

    async def ends(self, seconds=5):
        await until(lambda: self.lost, seconds)

    async def close(self):
        self.transport.abortConnection()
        await self.ends()


async def connect(port) -> Raw:
    return await connectProtocol(TCP4ClientEndpoint(reactor, "127.0.0.1", port), Raw())


def upgrade(path):
    return (
        f"PUT {path}/memory HTTP/1.1\r\nHost: r\r\nConnection: Upgrade\r\nUpgrade: xapi-migrate-memory\r\n"
        "Content-Length: 0\r\n\r\n"
    ).encode()


def chunked(path, expect=True):
    wait = "Expect: 100-continue\r\n" if expect else ""
    return f"PUT {path}/memory HTTP/1.1\r\nHost: r\r\nTransfer-Encoding: chunked\r\n{wait}\r\n".encode()


def head(path):
    return f"HEAD {path} HTTP/1.1\r\nHost: r\r\n\r\n".encode()


def chunk(data):
    return b"%x\r\n%s\r\n" % (len(data), data)
