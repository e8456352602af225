"""Migration URIs as text: what VM.receive answers and what VM.migrate is given.

    http://ADDRESS:PORT/migrate/CAPABILITY
    https://ADDRESS:PORT/migrate/CAPABILITY#sha256=FINGERPRINT

The fingerprint is the SHA-256 of the receiver's certificate, 64 hexadecimal digits; without it the certificate is
verified by the sender's CAs and the host's name.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence

import attrs

from ..errors import UriInvalid
from .capability import PATTERN, Capability

_FINGERPRINT = re.compile(r"[0-9a-f]{64}", re.ASCII)
_LABEL = r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)"
_NAME = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(?:\.{_LABEL})*", re.ASCII)
_URI = re.compile(
    rf"(?P<scheme>https?)://(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+):(?P<port>[1-9][0-9]{{0,4}})"
    rf"/migrate/(?P<capability>{PATTERN})(?P<fragment>#[^#]*)?",
    re.ASCII,
)
LONGEST = 600
"""No migration URI is longer."""


@attrs.frozen
class Listener:
    """Where URIs are offered: `address` an IPv4 or IPv6 literal or a host name, and the port of each scheme that is
    served there."""

    scheme: str
    address: str
    port: int


def listeners(bound: Sequence[Listener], addresses: Sequence[str], host_name: str) -> list[Listener]:
    """Where to offer what is served at `bound` (scheme and local address of each listening port).

    Each of the configured `addresses` with each port; none configured: the addresses that are bound, and
    `host_name` in the place of a wildcard, which is no address that a sender could use.
    """
    offered = [
        Listener(one.scheme, address, one.port)
        for one in bound
        for address in addresses or [host_name if one.address in ("0.0.0.0", "::", "") else one.address]
    ]
    return list(dict.fromkeys(offered))


@attrs.frozen
class MigrationUri:
    """One URI, taken apart. Neither its str nor its repr shows the capability."""

    scheme: str
    host: str
    port: int
    capability: Capability = attrs.field(repr=False)
    fingerprint: str = ""

    @property
    def secure(self) -> bool:
        return self.scheme == "https"

    @property
    def netloc(self) -> str:
        """host:port as the Host header has it."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def path(self) -> str:
        """The path with the capability in it: for the wire alone."""
        return f"/migrate/{self.capability.text}"

    @property
    def destination(self) -> str:
        """scheme://host:port, for messages."""
        return f"{self.scheme}://{self.netloc}"

    def __str__(self) -> str:
        return f"{self.destination}/migrate/…"

    def text(self) -> str:
        """The whole URI, secret and all: only for the answer to VM.receive."""
        return f"{self.destination}{self.path}" + (f"#sha256={self.fingerprint}" if self.fingerprint else "")


def build(
    capability: Capability, listeners: Sequence[Listener], schemes: Sequence[str], fingerprint: str = ""
) -> list[str]:
    """The URI list of one offer: for each of `schemes`, in that order, each listener that serves it.

    `fingerprint` is that of this host's own certificate; empty if its certificate is one that CAs vouch for.
    """
    return [
        MigrationUri(
            scheme, listener.address, listener.port, capability, fingerprint if scheme == "https" else ""
        ).text()
        for scheme in schemes
        for listener in listeners
        if listener.scheme == scheme
    ]


def parse(uri: str) -> MigrationUri:
    """A URI that a client handed in. UriInvalid unless it is exactly of the form above; the error shows no more than
    scheme, host and port."""
    matched = _URI.fullmatch(uri) if len(uri) <= LONGEST else None
    if matched is None:
        raise UriInvalid(_shown(uri), "it must be http(s)://HOST:PORT/migrate/CAPABILITY and nothing else")
    shown = f"{matched['scheme']}://{matched['host']}:{matched['port']}/migrate/…"
    port = int(matched["port"])
    if port > 65535:
        raise UriInvalid(shown, "the port is greater than 65535")
    host = _host(matched["host"], shown)
    fingerprint = _fingerprint(matched["fragment"], matched["scheme"], shown)
    return MigrationUri(matched["scheme"], host, port, Capability(matched["capability"]), fingerprint)


def _host(text: str, shown: str) -> str:
    bracketed = text.startswith("[")
    bare = text.strip("[]")
    try:
        address = ipaddress.ip_address(bare)
    except ValueError:
        # what is all digits and dots is a bad address (or a trick such as 127.1), never a name
        if bracketed or re.fullmatch(r"[0-9.]*", bare.rsplit(".", 1)[-1]) or not _NAME.fullmatch(bare):
            raise UriInvalid(shown, "the host is neither a name nor an IPv4 or [IPv6] address") from None
        return bare.lower()
    if (address.version == 6) is not bracketed:
        raise UriInvalid(shown, "an IPv6 address, and nothing else, stands in brackets")
    return str(address)


def _fingerprint(fragment: str | None, scheme: str, shown: str) -> str:
    if fragment is None:
        return ""
    name, _, value = fragment[1:].partition("=")
    if scheme != "https" or name != "sha256" or not _FINGERPRINT.fullmatch(value.lower()):
        raise UriInvalid(shown, "after # only sha256=<64 hexadecimal digits> may stand, and only on https")
    return value.lower()


def _shown(uri: str) -> str:
    """As much of a malformed URI as may be shown: it may still hold a capability, so only a plain origin."""
    origin = re.match(r"(https?)://([A-Za-z0-9.-]{1,100}|\[[0-9A-Fa-f:.]{1,50}\])(:[0-9]{1,5})?(?=/)", uri, re.ASCII)
    return f"{origin[0]}/…" if origin else "what was given"
