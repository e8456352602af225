"""The overlay put together, for the daemon and for tests."""

from __future__ import annotations

from typing import Any

import attrs
from twisted.web.resource import Resource

from ..store.interfaces import IRecords
from ..uris.tree import MigrationTree
from ..xenapi.own_calls import data_model
from ..xenapi.server import XenAPIServer
from ..xenapi.site import ApiSite
from .address import UpstreamAddress
from .calls import OverlayCalls
from .client import UpstreamClient
from .front import FrontFactory
from .identity import Identity, VouchedSessions
from .old_polls import OldPolls
from .overlay import Overlay
from .polls import Polls
from .pool import Pool


class _Misdirected(Resource):
    """A connection that began with a migration URI serves nothing else: the client makes another."""

    isLeaf = True

    def render(self, request: Any) -> bytes:
        request.setResponseCode(421)
        request.channel.persistent = False
        request.setHeader(b"Connection", b"close")
        request.setHeader(b"Content-Type", b"text/plain")
        return b"This connection serves migration URIs. Ask again on another.\n"


@attrs.frozen
class Limits:
    """`connections` to the upstream at once; `idle`: seconds for which a stream may stand still. See configuration."""

    connections: int = 400
    idle: float = 300.0


DEFAULT = Limits()


@attrs.frozen
class Beside:
    """What the daemon needs of the upstream before it has its own server: sessions are the upstream's."""

    address: UpstreamAddress
    pool: Pool
    client: UpstreamClient
    identity: Identity
    sessions: VouchedSessions

    @property
    def elsewhere(self) -> frozenset[str]:
        """The classes whose objects are the upstream's: all but tasks."""
        return frozenset(data_model().classes) - {"task"}


def stand_beside(
    address: UpstreamAddress, records: IRecords, reactor: Any, trust_root: Any = None, limits: Limits = DEFAULT
) -> Beside:
    """Nothing is connected yet: the upstream may come later, go and come back."""
    pool = Pool(address.endpoint(reactor, trust_root), reactor, limits.connections, limits.idle)
    client = UpstreamClient(address, pool, reactor)
    sessions = VouchedSessions(records, [], reactor)
    return Beside(address, pool, client, Identity(client, sessions, reactor), sessions)


def open_overlay(beside: Beside, server: XenAPIServer, limit: int) -> Overlay:
    """`server` was made with what `beside` gives; it carries out our own calls and has our tasks. Close the overlay at
    the end."""
    polls, old_polls = Polls(beside.client, server.events), OldPolls(beside.client, server.events)
    calls = OverlayCalls(beside.client, beside.identity, polls, old_polls, server.dispatcher, server.records)

    def stop() -> None:
        polls.stop()
        old_polls.stop()

    return Overlay(beside.address, beside.pool, limit, calls, stop)


def front(overlay: Overlay, migrations: MigrationTree | None) -> FrontFactory:
    """What a port is opened with."""
    site = ApiSite(_Misdirected(), migrations)  # type: ignore[no-untyped-call]
    return FrontFactory(overlay, site.buildProtocol)
