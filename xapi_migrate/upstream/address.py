"""Where the upstream is and how it is known to be itself: the configuration's `upstream`.

https://HOST[:PORT][#sha256=FINGERPRINT]   http://HOST[:PORT]   unix:/PATH
"""

from __future__ import annotations

import re
from typing import Any

import attrs
from OpenSSL import SSL
from twisted.internet.endpoints import HostnameEndpoint, UNIXClientEndpoint, wrapClientTLS
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.ssl import optionsForClientTLS
from twisted.python.failure import Failure

from ..errors import InvalidValue
from ..uris.peer_tls import PinnedConnections

CONNECT_SECONDS = 10.0
_URL = re.compile(
    r"(?P<scheme>https?)://(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::(?P<port>[1-9][0-9]{0,4}))?/?"
    r"(?:#sha256=(?P<fingerprint>[0-9A-Fa-f]{64}))?",
    re.ASCII,
)


@attrs.frozen
class UpstreamAddress:
    """`path` of a unix socket, or `host` and `port`. `fingerprint`: SHA-256 of the certificate that is expected, in the
    place of authorities."""

    path: str = ""
    host: str = ""
    port: int = 0
    secure: bool = False
    fingerprint: str = ""

    @property
    def local(self) -> bool:
        """Whoever comes by it is root there."""
        return bool(self.path)

    @property
    def netloc(self) -> str:
        """What the Host header of our own calls says."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return "localhost" if self.path else f"{host}:{self.port}"

    def __str__(self) -> str:
        return f"unix:{self.path}" if self.path else f"http{'s' * self.secure}://{self.netloc}"

    def endpoint(self, reactor: Any, trust_root: Any = None) -> IStreamClientEndpoint:
        """`trust_root`: an ITrustRoot in the place of the system's authorities. Over TLS the connection is made before
        the server has shown who it is; nothing is sent until it has."""
        if self.path:
            local: IStreamClientEndpoint = UNIXClientEndpoint(reactor, self.path, timeout=CONNECT_SECONDS)
            return local
        plain: IStreamClientEndpoint = HostnameEndpoint(reactor, self.host.encode(), self.port, timeout=CONNECT_SECONDS)
        if not self.secure:
            return plain
        creator: Any = (
            PinnedConnections(self.host, self.fingerprint)
            if self.fingerprint
            else optionsForClientTLS(self.host, trustRoot=trust_root)
        )
        wrapped: IStreamClientEndpoint = wrapClientTLS(creator, plain)
        return wrapped


def parse_upstream(text: str) -> UpstreamAddress:
    """InvalidValue unless it is of one of the three forms."""
    if text.startswith("unix:/"):
        return UpstreamAddress(path=text.removeprefix("unix:"))
    matched = _URL.fullmatch(text)
    secure = bool(matched and matched["scheme"] == "https")
    port = int((matched and matched["port"]) or (443 if secure else 80))
    if matched is None or port > 65535 or (matched["fingerprint"] and not secure):
        raise InvalidValue("upstream", text[:200])
    return UpstreamAddress(
        host=matched["host"].strip("[]"), port=port, secure=secure, fingerprint=(matched["fingerprint"] or "").lower()
    )


def why_lost(failure: Failure) -> str:
    """Why a connection was not made or ended, for people."""
    error = failure.value
    if isinstance(error, SSL.Error) or "Verification" in type(error).__name__:
        return "its certificate is not the one that is expected"
    said = " ".join(str(error).split()).rstrip(".")
    return said[:200] or type(error).__name__
