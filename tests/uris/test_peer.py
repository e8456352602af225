"""The sender's client against the real tree, and against servers that are none."""

from __future__ import annotations

import socket

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.endpoints import serverFromString
from twisted.internet.protocol import Factory, Protocol

from xapi_migrate.config import MigrationTimes
from xapi_migrate.errors import (
    HandleInvalid,
    ImportError_,
    MigrationAborted,
    NoUriAnswered,
    OperationNotAllowed,
    PeerSilent,
    RemoteError,
    UriInvalid,
)
from xapi_migrate.migration.interfaces import Answer, Outcome
from xapi_migrate.tls import HostIdentity
from xapi_migrate.uris.capability import Capability
from xapi_migrate.uris.peer import HttpPeer

from .doubles import Writer, sleep, until

TIMES = MigrationTimes(connect=0.5, request=2, heartbeat_lost=2)
WRONG = "w" * 43

pytestmark = pytest.mark.system


def peer_of(*uris, times=TIMES, **options):
    return HttpPeer(reactor, uris, times, "m1", **options)


async def fails(awaitable, kind):
    with pytest.raises(kind) as caught:
        await awaitable
    assert WRONG not in str(caught.value) + repr(caught.value)
    return caught.value


class Canned(Protocol):
    """Answers each request with the same bytes, or with nothing."""

    def dataReceived(self, data):
        self.factory.seen.append(data)
        answer = self.factory.answer
        if answer is not None:
            self.transport.write(answer)
            if self.factory.close:
                self.transport.loseConnection()

    def connectionMade(self):
        self.factory.connections.append(self)

    def connectionLost(self, reason):
        self.factory.connections.remove(self)


class Canning(Factory):
    protocol = Canned

    def __init__(self, answer, close=True):
        self.answer, self.close = answer, close
        self.connections, self.seen = [], []


@pytest_twisted.async_yield_fixture
async def canned():
    ports, factories = [], []

    async def serve(answer, close=True):
        factories.append(Canning(answer, close))
        ports.append(await serverFromString(reactor, "tcp:0:interface=127.0.0.1").listen(factories[-1]))
        return f"http://127.0.0.1:{ports[-1].getHost().port}/migrate/{WRONG}"

    serve.factories = factories
    yield serve
    for port in ports:
        await port.stopListening()
    for factory in factories:
        for one in list(factory.connections):
            one.transport.abortConnection()
        await until(lambda factory=factory: not factory.connections)


@pytest.fixture
def refused():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))  # bound and not listening: refuses, and nobody else gets the port
        yield f"http://127.0.0.1:{sock.getsockname()[1]}/migrate/{WRONG}"


@pytest.fixture
def black_hole():
    """A listener whose queue is full: the kernel drops what comes."""
    with socket.socket() as sock, socket.socket() as first, socket.socket() as second:
        sock.bind(("127.0.0.1", 0))
        sock.listen(0)
        for one in (first, second):
            one.setblocking(False)
            one.connect_ex(sock.getsockname())
        yield f"http://127.0.0.1:{sock.getsockname()[1]}/migrate/{WRONG}"


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest_twisted.ensureDeferred
async def test_the_whole_conversation(served, scheme):
    peer = peer_of(getattr(served, scheme))
    await peer.connect()
    assert peer.destination == f"127.0.0.1:{served.port if scheme == 'http' else served.tls_port}"
    await peer.head()
    await peer.put_metadata(b"<ova/>")
    disk = await peer.get_disk(0)
    assert (disk.url.url, disk.url.password, disk.found, disk.proof) == (
        "iscsi://127.0.0.1:3260/iqn.2026-01.org.example:m1/0",
        "chap-secret-123",
        False,
        None,
    )
    assert (await peer.get_disk(1)).proof.value == "v"
    await peer.put_memory(Writer(1 << 20))
    assert await peer.get_control() == Answer(Outcome.OPEN)
    assert await peer.put_done() == Answer(Outcome.COMMITTED)
    assert await peer.get_control() == Answer(Outcome.COMMITTED)
    assert await peer.delete(Outcome.COMMITTED) == Answer(Outcome.COMMITTED)
    assert served.receiving.events == [
        ("metadata", b"<ova/>"),
        ("disk", 0, "127.0.0.1"),
        ("disk", 1, "127.0.0.1"),
        ("memory",),
        ("done",),
        ("delete", Outcome.COMMITTED),
    ]
    assert len(served.channels) == 2  # one kept connection, and that of the memory
    peer.close()


@pytest_twisted.ensureDeferred
async def test_a_receiver_that_is_busy_says_how_many_come_before(served):
    peer = peer_of(served.http)
    served.receiving.behind = 3
    assert await peer.put_metadata(b"<ova/>") == 3
    served.receiving.behind = 0
    assert await peer.put_metadata(b"<ova/>") == 0
    for nonsense in (-1, "many", True, 1 << 40):
        served.receiving.behind = nonsense
        await fails(peer.put_metadata(b"<ova/>"), PeerSilent)
    peer.close()


@pytest_twisted.ensureDeferred
async def test_an_aborted_migration(served):
    peer = peer_of(served.http)
    assert await peer.delete() == Answer(Outcome.ABORTED, "the sending host gave the migration up")
    assert (await peer.put_done()).outcome is Outcome.ABORTED
    served.receiving.revoked = True
    assert "gave the migration up" in (await fails(peer.put_metadata(b"x"), MigrationAborted)).reason
    assert await peer.delete(Outcome.ABORTED) == Answer(Outcome.ABORTED, "the sending host gave the migration up")
    peer.close()


@pytest_twisted.ensureDeferred
async def test_the_receivers_errors_arrive_as_they_are(served):
    peer = peer_of(served.http)
    for error in (ImportError_("it has no VM"), HandleInvalid("disk", "7")):
        served.receiving.error = error
        told = await fails(peer.put_metadata(b"x"), RemoteError)
        assert (told.failure(), str(told)) == (error.failure(), str(error))
    served.receiving.error = MigrationAborted("no room left")
    assert (await fails(peer.get_disk(0), MigrationAborted)).reason == "no room left"
    served.receiving.error = ZeroDivisionError("secret path /etc/x")
    told = await fails(peer.put_metadata(b"x"), RemoteError)
    assert "its log says why" in str(told) and "secret" not in str(told)
    peer.close()


@pytest_twisted.ensureDeferred
async def test_an_offer_that_has_gone(served):
    peer = peer_of(served.http)
    served.offers.kept.clear()
    await fails(peer.head(), OperationNotAllowed)
    assert "expired" in str(await fails(peer.put_metadata(b"x"), OperationNotAllowed))
    assert (await peer.get_control()).outcome is Outcome.UNKNOWN
    assert (await peer.put_done()).outcome is Outcome.UNKNOWN
    assert (await peer.delete()).outcome is Outcome.UNKNOWN
    peer.close()


@pytest_twisted.ensureDeferred
async def test_dead_uris_before_a_good_one(served, canned, refused, black_hole):
    dead = [
        refused,
        black_hole,
        await canned(None),
        await canned(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"),
        await canned(b"HTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n"),
        await canned(b"HTTP/1.1 204 No Content\r\n\r\n"),
        await canned(b"SSH-2.0-OpenSSH_9.2\r\n"),
        await canned(b""),
        f"https://127.0.0.1:{served.port}/migrate/{WRONG}",
    ]
    peer = peer_of(*dead, served.http)
    await peer.connect()
    assert peer.destination == f"127.0.0.1:{served.port}"
    error = await fails(peer_of(*dead).connect(), NoUriAnswered)
    sentences = error.reports.split(". ")
    says = [
        *["cannot be reached"] * 3,  # refused, silent, connected and silent: the same for who scans ports
        "answered 404",
        "answered 500",
        "answered 204",
        "HTTP",
        "closed",
        "cannot be reached",
    ]
    assert len(sentences) == len(dead)
    for uri, sentence, said in zip(dead, sentences, says, strict=True):
        assert sentence.startswith(uri.split("/migrate")[0] + ": ") and said in sentence, sentence
    peer.close()


@pytest_twisted.ensureDeferred
async def test_redirects_are_not_followed(served, canned):
    away = f"HTTP/1.1 307 Go\r\nLocation: {served.http}\r\nContent-Length: 0\r\n\r\n".encode()
    uri = await canned(away)
    assert "answered 307" in (await fails(peer_of(uri).connect(), NoUriAnswered)).reports
    await fails(peer_of(uri).put_metadata(b"<ova/>"), PeerSilent)
    await fails(peer_of(uri).put_memory(Writer(10)), PeerSilent)
    assert (served.receiving.touched, served.receiving.events) == (0, [])


@pytest_twisted.ensureDeferred
async def test_fail_over_and_back(served, refused):
    other = served.https
    peer = peer_of(refused, served.http, other)
    await peer.connect()
    assert await peer.fail_over()
    assert peer.destination == f"127.0.0.1:{served.tls_port}"
    assert await peer.fail_over()
    assert peer.destination == f"127.0.0.1:{served.port}"
    assert not await peer_of(served.http).fail_over()
    assert not await peer_of(served.http, refused).fail_over()
    peer.close()


@pytest_twisted.ensureDeferred
async def test_after_a_restart_the_uri_that_works_is_found_again(served, canned, refused):
    """A sender in doubt does not begin with HEAD: whatever it asks must not depend on the first URI of the list."""
    elsewhere = await canned(b"HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n")
    for before in (refused, elsewhere):
        peer = peer_of(before, served.http)
        assert (await peer.get_control()).outcome is not Outcome.UNKNOWN
        assert peer.destination in served.http
        await peer.put_done()
        peer.close()
        peer = peer_of(before, served.http)
        assert (await peer.delete(acknowledge=Outcome.COMMITTED)).outcome is not Outcome.UNKNOWN
        peer.close()
    served.offers.kept.clear()
    peer = peer_of(refused, served.http)
    assert (await peer.delete()).outcome is Outcome.UNKNOWN
    peer.close()
    peer = peer_of(refused, refused)
    await fails(peer.delete(), PeerSilent)
    peer.close()


@pytest_twisted.ensureDeferred
async def test_control_is_asked_of_all(served, canned, refused):
    served.receiving.answer = Answer(Outcome.ABORTED, "cancelled")
    unknown = await canned(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
    broken = await canned(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
    peer = peer_of(refused, unknown, broken, served.http)
    assert await peer.get_control() == Answer(Outcome.ABORTED, "cancelled")
    assert (await peer_of(refused, unknown, broken).get_control()).outcome is Outcome.UNKNOWN
    told = await fails(peer_of(refused, broken).get_control(), PeerSilent)
    assert "cannot be reached" in str(told) and "no decision" in str(told)
    peer.close()


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{",
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nyes",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]",
        b'HTTP/1.1 200 OK\r\nContent-Length: 21\r\n\r\n{"outcome":"unknown"}',
        b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" + b" " * 100_000,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n30000\r\n" + b" " * 0x30000 + b"\r\n0\r\n\r\n",
        b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 6\r\n\r\n<html>",
        b'HTTP/1.1 409 No\r\nContent-Length: 32\r\n\r\n{"code":"X","params":["a","b"]}  ',
        None,
        b"",
    ],
)
@pytest_twisted.ensureDeferred
async def test_what_is_no_decision_decides_nothing(canned, answer):
    peer = peer_of(await canned(answer), times=MigrationTimes(connect=0.5, request=0.5, heartbeat_lost=0.5))
    for call in (peer.put_done, peer.get_control, peer.delete):
        await fails(call(), PeerSilent)


@pytest_twisted.ensureDeferred
async def test_a_kept_connection_that_the_receiver_closed_is_no_silence(served):
    peer = peer_of(served.http)
    await peer.head()
    for channel in served.channels:
        channel.transport.abortConnection()
    assert (await peer.put_done()).outcome is Outcome.COMMITTED
    assert served.receiving.events == [("done",)]
    peer.close()


@pytest_twisted.ensureDeferred
async def test_a_connection_that_breaks_twice_is_silence(canned):
    uri = await canned(b"")
    await fails(peer_of(uri).put_done(), PeerSilent)
    assert len(canned.factories[0].seen) == 2


@pytest_twisted.ensureDeferred
async def test_a_request_can_be_cancelled(canned):
    peer = peer_of(await canned(None), times=MigrationTimes(request=30))
    asking = Deferred.fromCoroutine(peer.put_metadata(b"x"))
    await until(lambda: canned.factories[0].seen)
    asking.cancel()
    await fails(asking, CancelledError)
    await until(lambda: not canned.factories[0].connections)
    await sleep(0.05)
    assert len(canned.factories[0].seen) == 1


# -- TLS -----------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_another_certificate_than_the_pinned_one(served, tmp_path):
    right = served.identity.fingerprint()
    wrong = served.https.replace(right, right[:-1] + ("0" if right[-1] != "0" else "1"))
    told = await fails(peer_of(wrong).connect(), NoUriAnswered)
    assert "not the one that the URI names" in told.reports
    writer = Writer(10)
    told = await fails(peer_of(wrong).put_memory(writer), PeerSilent)
    assert "not the one that the URI names" in str(told) and writer.began == 0
    assert served.offers.asked == []


@pytest_twisted.ensureDeferred
async def test_without_a_fingerprint_the_authorities_decide(served):
    plain = served.https.partition("#")[0]
    told = await fails(peer_of(plain).connect(), NoUriAnswered)
    assert "not one that this host trusts" in told.reports
    assert served.offers.asked == []


@pytest_twisted.ensureDeferred
async def test_with_an_authority_the_name_decides(served):
    from twisted.internet.ssl import Certificate, trustRootFromCertificates

    root = trustRootFromCertificates([Certificate.loadPEM(served.identity.certificate_path.read_bytes())])
    plain = served.https.partition("#")[0]
    for host, known in (("127.0.0.1", True), ("localhost", True), ("127.0.0.2", False)):
        peer = peer_of(plain.replace("127.0.0.1", host), trust_root=root)
        if known:
            await peer.connect()
            await peer.put_memory(Writer(1000))
        else:
            await fails(peer.connect(), NoUriAnswered)
        peer.close()


@pytest_twisted.ensureDeferred
async def test_ipv6():
    from twisted.web.resource import Resource

    from xapi_migrate.uris.request import MigrationSite
    from xapi_migrate.uris.tree import MigrationTree

    from .doubles import Offers, Receiving

    offers = Offers()
    capability = offers.add(Receiving())
    site = MigrationSite(Resource(), MigrationTree(offers, 1000, reactor, 10))
    port = await serverFromString(reactor, r"tcp:0:interface=\:\:1").listen(site)
    peer = peer_of(f"http://[::1]:{port.getHost().port}/migrate/{capability.text}")
    try:
        await peer.connect()
        assert (await peer.get_disk(0)).url.url.startswith("iscsi://[::1]:")
        await peer.put_memory(Writer(1000))
    finally:
        peer.close()
        await port.stopListening()


def test_uris_are_read_before_anything_is_sent():
    with pytest.raises(UriInvalid):
        peer_of(f"http://h:1/migrate/{Capability.new().text}", "http://h:1/")
    with pytest.raises(NoUriAnswered):
        peer_of()


@pytest_twisted.ensureDeferred
async def test_the_identity_is_made_once(tmp_path):
    first, again = HostIdentity.load(tmp_path), HostIdentity.load(tmp_path)
    assert first.fingerprint() == again.fingerprint() != HostIdentity.load(tmp_path / "b").fingerprint()
    assert first.key_path.stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "tls").stat().st_mode & 0o777 == 0o700


@pytest_twisted.ensureDeferred
async def test_no_secret_is_in_any_event_or_error(served, events, refused):
    """Success, refusals, breaks and bugs: the capability and the CHAP password are nowhere."""
    from io import StringIO

    from xapi_migrate.logs import text_observer

    secret, written = served.capability.text, StringIO()
    observer = text_observer(written)
    peer = peer_of(served.http, refused.replace(WRONG, secret))
    errors = []
    await peer.connect()
    await peer.get_disk(0)
    await peer.put_memory(Writer(1 << 20))
    for error in (ImportError_("bad"), ZeroDivisionError("oops")):
        served.receiving.error = error
        for call in (peer.put_metadata(b"x"), peer.get_disk(0), peer.put_memory(Writer(10)), peer.put_done()):
            try:
                await call
            except Exception as why:
                errors.append(why)
    await peer.fail_over()
    served.offers.kept.clear()
    for call in (peer.head(), peer_of(refused.replace(WRONG, secret)).connect()):
        try:
            await call
        except Exception as why:
            errors.append(why)
    assert len(errors) == 10 and events
    for event in events:
        observer(event)
    shown = "".join(f"{one!r} {one} {vars(one)} {getattr(one, 'failure', list)()}" for one in errors)
    for text in (repr(events), shown, written.getvalue()):
        assert secret not in text
        assert served.receiving.password not in text
    assert "ZeroDivisionError" in written.getvalue()
    peer.close()
