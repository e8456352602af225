"""Where a sender lets itself be sent: whoever may call VM.migrate names hosts and ports for this daemon to connect to.

A name is resolved once for each migration and the addresses are then kept, so that it cannot mean another host later.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from typing import Any

import attrs
from twisted.internet.error import DNSLookupError
from twisted.internet.interfaces import (
    IAddress,
    IHostnameResolver,
    IHostResolution,
    IReactorPluggableNameResolver,
    IResolutionReceiver,
)
from twisted.logger import Logger
from zope.interface import directlyProvides, implementer, providedBy

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@attrs.frozen
class Reach:
    """All addresses but those of some networks."""

    denied: tuple[Network, ...]

    @classmethod
    def all_but(cls, networks: Sequence[str]) -> Reach:
        """ValueError for what is no network, such as 10.1.2.3/8."""
        return cls(tuple(ipaddress.ip_network(network) for network in networks))

    def allows(self, address: str) -> bool:
        """Whether an address literal is none of the denied; False for what is no address."""
        try:
            found = ipaddress.ip_address(address.partition("%")[0])
        except ValueError:
            return False
        inside = _inside(found) if isinstance(found, ipaddress.IPv6Address) else []
        if not all(self.allows(str(inner)) for inner in inside):
            return False
        return not any(found in network for network in self.denied if network.version == found.version)


EVERYWHERE = Reach(())
_TRANSLATED = tuple(ipaddress.IPv6Network(network) for network in ("64:ff9b::/96", "64:ff9b:1::/48"))
"""What translators to IPv4 listen to (RFC 6052, RFC 8215)."""


def _inside(address: ipaddress.IPv6Address) -> list[ipaddress.IPv4Address]:
    """The IPv4 addresses to which it may lead: it is one in other clothes, or goes through a tunnel or a translator."""
    inside = [address.ipv4_mapped, address.sixtofour, *(address.teredo or ())]
    if any(address in network for network in _TRANSLATED):
        inside.append(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
    return [one for one in inside if one is not None]


@implementer(IHostnameResolver)
class Resolver:
    """Resolves each name once, and never to an address that is denied."""

    log = Logger()

    def __init__(self, inner: Any, reach: Reach) -> None:
        self._inner = inner
        self._reach = reach
        self._known: dict[tuple[str, int], list[Any]] = {}
        """IAddresses by name and port."""

    def resolveHostName(
        self,
        resolutionReceiver: IResolutionReceiver,
        hostName: str,
        portNumber: int = 0,
        addressTypes: Sequence[type[IAddress]] | None = None,
        transportSemantics: str = "TCP",
    ) -> IHostResolution:
        known = self._known.get((hostName, portNumber))
        if known:
            return _replay(resolutionReceiver, hostName, known)
        sieve = _Sieve(resolutionReceiver, self, (hostName, portNumber))
        begun: IHostResolution = self._inner.resolveHostName(
            sieve, hostName, portNumber, addressTypes, transportSemantics
        )
        return begun

    def take(self, name: tuple[str, int], address: Any) -> bool:
        """Whether an address may be used; then it is kept."""
        if not self._reach.allows(address.host):
            self.log.warn("{name} is {address}, which denied_networks forbids", name=name[0], address=address.host)
            return False
        self._known.setdefault(name, []).append(address)
        return True


@implementer(IResolutionReceiver)
class _Sieve:
    def __init__(self, receiver: IResolutionReceiver, resolver: Resolver, name: tuple[str, int]) -> None:
        self._receiver = receiver
        self._resolver = resolver
        self._name = name

    def resolutionBegan(self, resolutionInProgress: IHostResolution) -> None:
        self._receiver.resolutionBegan(resolutionInProgress)

    def addressResolved(self, address: IAddress) -> None:
        if self._resolver.take(self._name, address):
            self._receiver.addressResolved(address)

    def resolutionComplete(self) -> None:
        self._receiver.resolutionComplete()


@implementer(IHostResolution)
@attrs.frozen
class _Known:
    name: str

    def cancel(self) -> None:
        """It is over."""
        raise DNSLookupError(self.name)


def _replay(receiver: IResolutionReceiver, name: str, addresses: list[Any]) -> IHostResolution:
    known: IHostResolution = _Known(name)
    receiver.resolutionBegan(known)
    for address in addresses:
        receiver.addressResolved(address)
    receiver.resolutionComplete()
    return known


class _Reactor:
    """A reactor whose names are resolved by another resolver: what Twisted's endpoints and its Agent look at."""

    def __init__(self, reactor: Any, resolver: Resolver) -> None:
        self._reactor = reactor
        self.nameResolver = resolver
        directlyProvides(self, providedBy(reactor), IReactorPluggableNameResolver)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reactor, name)


def within(reactor: Any, reach: Reach) -> Any:
    """The reactor, for endpoints that connect within `reach` only."""
    return _Reactor(reactor, Resolver(reactor.nameResolver, reach))
