"""How a sender knows that an https URI's server is the receiver."""

from __future__ import annotations

import hmac
import ipaddress
from typing import Any

import attrs
from OpenSSL import SSL, crypto
from twisted.internet.interfaces import IOpenSSLClientConnectionCreator
from twisted.internet.ssl import optionsForClientTLS
from twisted.web.iweb import IPolicyForHTTPS
from zope.interface import implementer

from .offer import MigrationUri


@implementer(IOpenSSLClientConnectionCreator)
@attrs.frozen
class PinnedConnections:
    """TLS 1.2 and later to a server whose certificate has this SHA-256 fingerprint, whatever its name, its dates and
    who signed it. Every handshake is a full one, so every connection is compared."""

    host: str
    fingerprint: str

    def clientConnectionForTLS(self, tlsProtocol: Any) -> SSL.Connection:
        context = SSL.Context(SSL.TLS_CLIENT_METHOD)
        context.set_min_proto_version(SSL.TLS1_2_VERSION)
        context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
        context.set_verify(SSL.VERIFY_PEER, self._is_pinned)
        connection = SSL.Connection(context, None)
        connection.set_app_data(tlsProtocol)
        if not _is_address(self.host):
            connection.set_tlsext_host_name(self.host.encode())
        return connection

    def _is_pinned(self, connection: SSL.Connection, certificate: crypto.X509, error: int, depth: int, ok: int) -> bool:
        # called for each certificate of the chain, the server's own (depth 0) last and always
        presented = certificate.digest("sha256").decode().replace(":", "").lower()
        return depth > 0 or hmac.compare_digest(presented, self.fingerprint)


def connection_creator(uri: MigrationUri, trust_root: Any = None) -> Any:
    """The IOpenSSLClientConnectionCreator for one https URI: pinned by its fingerprint, else by CA and host name.
    `trust_root`: an ITrustRoot in the place of the system's CAs."""
    if uri.fingerprint:
        return PinnedConnections(uri.host, uri.fingerprint)
    return optionsForClientTLS(uri.host, trustRoot=trust_root)


@implementer(IPolicyForHTTPS)
@attrs.frozen
class OneServer:
    """The policy of an Agent that talks to one URI only."""

    uri: MigrationUri
    trust_root: Any = None

    def creatorForNetloc(self, hostname: bytes, port: int) -> Any:
        return connection_creator(self.uri, self.trust_root)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
