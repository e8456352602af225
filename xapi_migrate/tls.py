"""This host's own certificate, and serving with it.

Made at the first start in state_dir/tls and kept: its fingerprint stands in every https URI that this
host offers, so that a sender can verify it without any authority.
"""

from __future__ import annotations

import datetime
import ipaddress
import socket
from pathlib import Path
from typing import Any

import attrs
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from OpenSSL import crypto
from twisted.internet import ssl
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import serverFromString
from twisted.internet.interfaces import IListeningPort, IProtocolFactory, IStreamServerEndpoint
from twisted.protocols.tls import TLSMemoryBIOFactory
from zope.interface import implementer

from .whole_file import write_whole

LIFETIME = datetime.timedelta(days=3650)
PREFIX = "tls:"


@attrs.frozen
class HostIdentity:
    """A certificate and its key, as PEM files."""

    certificate_path: Path
    key_path: Path

    @classmethod
    def load(cls, state_dir: Path, certificate: str = "", private_key: str = "") -> HostIdentity:
        """The identity of those PEM files; if none are named that kept in `state_dir`, made if there is none. Blocks
        for milliseconds: call it at start. OSError, ValueError."""
        if certificate or private_key:
            if not (certificate and private_key):
                raise ValueError("certificate and private_key are set together or not at all")
            given = cls(state_dir / certificate, state_dir / private_key)
            given.context_factory().getContext()  # says here and now that the two do not fit
            return given
        folder = state_dir / "tls"
        identity = cls(folder / "host.crt", folder / "host.key")
        if not (identity.certificate_path.exists() and identity.key_path.exists()):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            identity._make(socket.gethostname())
        return identity

    def _make(self, name: str) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        now = datetime.datetime.now(datetime.UTC)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])
        names: list[x509.GeneralName] = [x509.DNSName(one) for one in dict.fromkeys((name, "localhost"))]
        names += [x509.IPAddress(ipaddress.ip_address(one)) for one in ("127.0.0.1", "::1")]
        certificate = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + LIFETIME)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .sign(key, hashes.SHA256())
        )
        secret = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        # the key first: a certificate without its key would be taken for a whole identity
        write_whole(self.key_path, secret)
        write_whole(self.certificate_path, certificate.public_bytes(serialization.Encoding.PEM), 0o644)

    def certificate(self) -> x509.Certificate:
        return self._chain()[0]

    def _chain(self) -> list[x509.Certificate]:
        return x509.load_pem_x509_certificates(self.certificate_path.read_bytes())

    def fingerprint(self) -> str:
        """SHA-256 of the certificate's DER form, 64 hexadecimal digits: what `#sha256=` carries."""
        return self.certificate().fingerprint(hashes.SHA256()).hex()

    def context_factory(self) -> ssl.CertificateOptions:
        """The server's side of TLS 1.2 and later."""
        key: Any = serialization.load_pem_private_key(self.key_path.read_bytes(), None)
        chain: list[Any] = self._chain()
        return ssl.CertificateOptions(
            privateKey=key,
            certificate=chain[0],
            extraCertChain=chain[1:],
            insecurelyLowerMinimumTo=ssl.TLSVersion.TLSv1_2,
        )


def trust_root(path: Path) -> Any:
    """An ITrustRoot of the authorities in a PEM file. Blocks for milliseconds. OSError, ValueError."""
    certificates = x509.load_pem_x509_certificates(path.read_bytes())
    return ssl.trustRootFromCertificates([ssl.Certificate(crypto.X509.from_cryptography(one)) for one in certificates])


@implementer(IStreamServerEndpoint)
@attrs.frozen
class TlsEndpoint:
    """Serves TLS with this host's certificate over another endpoint."""

    inner: IStreamServerEndpoint
    identity: HostIdentity

    def listen(self, protocolFactory: IProtocolFactory) -> Deferred[IListeningPort]:
        wrapped = TLSMemoryBIOFactory(self.identity.context_factory(), False, protocolFactory)
        listening: Deferred[IListeningPort] = self.inner.listen(wrapped)
        return listening


def scheme(description: str) -> str:
    """The scheme of what one of the configuration's `listen` strings serves."""
    return "https" if description.startswith((PREFIX, "ssl:")) else "http"


def server_endpoint(reactor: Any, description: str, identity: HostIdentity) -> IStreamServerEndpoint:
    """The endpoint of one of the configuration's `listen` strings: those of Twisted, and `tls:`, which takes what
    `tcp:` takes. ValueError if it cannot be read."""
    if not description.startswith(PREFIX):
        plain: IStreamServerEndpoint = serverFromString(reactor, description)
        return plain
    inner: IStreamServerEndpoint = serverFromString(reactor, "tcp:" + description[len(PREFIX) :])
    return TlsEndpoint(inner, identity)
