"""Asking one member."""

from __future__ import annotations

import json
from collections.abc import Mapping
from io import BytesIO
from typing import Any

import attrs
from OpenSSL import SSL
from twisted.internet import defer
from twisted.internet.error import ConnectError, ConnectionLost
from twisted.web.client import (
    Agent,
    FileBodyProducer,
    HTTPConnectionPool,
    RequestTransmissionFailed,
    ResponseFailed,
    readBody,
)
from twisted.web.http_headers import Headers
from twisted.web.iweb import IPolicyForHTTPS
from zope.interface import implementer

from xapi_migrate.pool import wire
from xapi_migrate.pool.wire import Address
from xapi_migrate.together import started
from xapi_migrate.uris.peer_tls import PinnedConnections

CONNECT_SECONDS = 5.0
MOST_CONNECTIONS = 8


_SILENCE = (
    ConnectError, ConnectionLost, RequestTransmissionFailed, ResponseFailed, SSL.Error,
    defer.TimeoutError, OSError, ValueError,
)  # fmt: skip


class MemberSilent(Exception):
    """No whole answer came."""


@implementer(IPolicyForHTTPS)
@attrs.frozen
class _Pinned:
    address: Address

    def creatorForNetloc(self, hostname: bytes, port: int) -> Any:
        return PinnedConnections(self.address.host, self.address.fingerprint)


class MemberClient:
    """Connections to one member are kept and used again. `secret` is the pool's."""

    def __init__(self, reactor: Any, address: Address, secret: str) -> None:
        self.address = address
        self._secret = secret
        self._pool = HTTPConnectionPool(reactor)
        self._pool.maxPersistentPerHost = MOST_CONNECTIONS
        self._agent = Agent(reactor, _Pinned(address), connectTimeout=CONNECT_SECONDS, pool=self._pool)
        self._under_way: set[defer.Deferred[Any]] = set()

    async def ask(self, what: str, told: Mapping[str, Any]) -> Any:
        """The member's answer to a request. RemoteError: it refuses; MemberSilent."""
        work = started(self._ask(what, told))
        self._under_way.add(work)
        try:
            return await work
        except defer.CancelledError:
            if work not in self._under_way:
                raise MemberSilent("it was given up") from None
            raise
        finally:
            self._under_way.discard(work)

    async def _ask(self, what: str, told: Mapping[str, Any]) -> Any:

        headers = Headers(
            {b"Authorization": [b"Bearer " + self._secret.encode()], b"Content-Type": [b"application/json"]}
        )
        asked = FileBodyProducer(BytesIO(json.dumps({"what": what, **told}).encode()))
        try:
            response = await self._agent.request(b"POST", self.address.url, headers, asked)
            body = await readBody(response)
            if response.code != 200:
                raise MemberSilent(f"it answered {response.code}")
            return wire.read_answer(body)
        except _SILENCE as silence:
            raise MemberSilent(str(silence) or type(silence).__name__) from silence

    def give_up(self) -> None:
        """What it has not answered yet fails with MemberSilent."""
        waiting, self._under_way = self._under_way, set()
        for work in waiting:
            work.cancel()

    async def close(self) -> None:
        self.give_up()
        await self._pool.closeCachedConnections()
