"""The overlay put together, for the daemon and for tests."""

from __future__ import annotations

from typing import Any

from twisted.web.resource import Resource

from ..uris.tree import MigrationTree
from ..xenapi.site import ApiSite
from .address import UpstreamAddress
from .front import FrontFactory
from .overlay import Overlay
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


def open_overlay(address: UpstreamAddress, reactor: Any, limit: int, trust_root: Any = None) -> Overlay:
    """Nothing is connected yet: the upstream may come later, go and come back. Close its pool at the end."""
    return Overlay(address, Pool(address.endpoint(reactor, trust_root), reactor), limit)


def front(overlay: Overlay, migrations: MigrationTree | None) -> FrontFactory:
    """What a port is opened with."""
    site = ApiSite(_Misdirected(), migrations)  # type: ignore[no-untyped-call]
    return FrontFactory(overlay, site.buildProtocol)
