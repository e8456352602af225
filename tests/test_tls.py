"""This host's certificate: its own, or one that an authority has signed; and what a client makes of bad ones."""

from __future__ import annotations

import datetime
import ipaddress
import socket
import ssl
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from twisted.internet import reactor, threads
from twisted.internet.protocol import Factory, Protocol

from xapi_migrate.tls import HostIdentity, server_endpoint, trust_root
from xapi_migrate.uris.peer import HttpPeer

from .uris.test_peer import TIMES, WRONG, NoUriAnswered

NOW = datetime.datetime.now(datetime.UTC)
DAY = datetime.timedelta(days=1)


class Authority:
    """Signs certificates into PEM files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "an authority")])
        builder = self._builder(self.name, self.key, NOW + DAY)
        self.certificate = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True).sign(
            self.key, hashes.SHA256()
        )
        self.path = self.write("ca.pem", self.certificate)

    def _builder(self, subject: x509.Name, key: Any, until: datetime.datetime) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(NOW - 10 * DAY)
            .not_valid_after(until)
        )

    def write(self, name: str, *certificates: x509.Certificate) -> Path:
        path = self.folder / name
        path.write_bytes(b"".join(one.public_bytes(serialization.Encoding.PEM) for one in certificates))
        return path

    def sign(self, host: str, until: datetime.datetime = NOW + DAY) -> tuple[str, str]:
        """(certificate, key) for a host name or address."""
        key = ec.generate_private_key(ec.SECP256R1())
        try:
            name: x509.GeneralName = x509.IPAddress(ipaddress.ip_address(host))
        except ValueError:
            name = x509.DNSName(host)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
        builder = self._builder(subject, key, until).add_extension(x509.SubjectAlternativeName([name]), critical=False)
        path = self.write(f"{host}.pem", builder.sign(self.key, hashes.SHA256()), self.certificate)
        secret = self.folder / f"{host}.key"
        secret.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return str(path), str(secret)


class Hello(Protocol):
    def dataReceived(self, data: bytes) -> None:
        assert self.transport is not None
        self.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")


async def asked(identity: HostIdentity, authority: Authority, fingerprint: str = "") -> str:
    """What a sender that trusts the authority reports of a server with this identity; "" when it is content."""
    port = await server_endpoint(reactor, "tls:0:interface=127.0.0.1", identity).listen(Factory.forProtocol(Hello))
    host: Any = port.getHost()
    uri = f"https://localhost:{host.port}/migrate/{WRONG}" + (f"#sha256={fingerprint}" if fingerprint else "")
    peer = HttpPeer(reactor, [uri], TIMES, trust_root=trust_root(authority.path))
    try:
        await peer.connect()
    except NoUriAnswered as why:
        return why.reports
    finally:
        peer.close()
        await port.stopListening()
    return ""


@pytest.mark.system
@pytest_twisted.ensureDeferred
async def test_a_certificate_of_an_authority(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "ca")
    identity = HostIdentity.load(tmp_path, *authority.sign("localhost"))
    assert not (tmp_path / "tls").exists()
    assert await asked(identity, authority) == ""
    assert await asked(identity, authority, identity.fingerprint()) == ""
    wrong = await asked(identity, authority, "0" * 64)
    assert "its certificate is not the one that the URI names" in wrong


@pytest.mark.system
@pytest_twisted.ensureDeferred
async def test_certificates_that_no_sender_takes(tmp_path: Path) -> None:
    authority, stranger = Authority(tmp_path / "ca"), Authority(tmp_path / "stranger")
    for made, said in (
        (authority.sign("another.example"), "for another host"),
        (authority.sign("localhost", until=NOW - DAY), "not one that this host trusts"),
        (stranger.sign("localhost"), "not one that this host trusts"),
    ):
        assert said in await asked(HostIdentity.load(tmp_path, *made), authority)
    assert "not one that this host trusts" in await asked(HostIdentity.load(tmp_path), authority)


@pytest.mark.system
@pytest_twisted.ensureDeferred
async def test_the_whole_chain_is_sent(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "ca")
    identity = HostIdentity.load(tmp_path, *authority.sign("localhost"))
    port = await server_endpoint(reactor, "tls:0:interface=127.0.0.1", identity).listen(Factory.forProtocol(Hello))
    number: Any = port.getHost()

    def look() -> str:
        context = ssl.create_default_context(cafile=str(authority.path))
        plain = socket.create_connection(("127.0.0.1", number.port), 30)
        with context.wrap_socket(plain, server_hostname="localhost") as secured:
            return secured.version() or ""

    try:
        assert await threads.deferToThread(look) in ("TLSv1.2", "TLSv1.3")
    finally:
        await port.stopListening()


def test_half_an_identity_is_none(tmp_path: Path) -> None:
    certificate, key = Authority(tmp_path / "ca").sign("localhost")
    _, other = Authority(tmp_path / "other").sign("localhost")
    with pytest.raises(ValueError, match="set together"):
        HostIdentity.load(tmp_path, certificate)
    with pytest.raises(OSError):
        HostIdentity.load(tmp_path, certificate, key + "x")
    with pytest.raises(Exception, match="key values mismatch|KEY_VALUES_MISMATCH|does not match"):
        HostIdentity.load(tmp_path, certificate, other)
