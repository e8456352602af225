"""PUT memory when something goes wrong on the way, seen from the wire and from the sender."""

from __future__ import annotations

import socket
import struct
import threading

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred

from xapi_migrate.config import MigrationTimes
from xapi_migrate.errors import DomainError, MigrationAborted, PeerSilent, RemoteError, WrongMoment
from xapi_migrate.uris import memory_socket
from xapi_migrate.uris.peer import HttpPeer

from . import raw
from .doubles import Reader, Receiving, Writer, sleep, until

TIMES = MigrationTimes(connect=2, request=5)
MIB = 1 << 20
WAYS = pytest.mark.parametrize("scheme, takes_socket", [("http", True), ("http", False), ("https", False)])

pytestmark = pytest.mark.system


def peer_of(*uris):
    return HttpPeer(reactor, uris, TIMES, "m1")


def stream(data):
    return struct.pack("!Q", len(data)) + data


async def fails(awaitable, *kinds):
    with pytest.raises(kinds) as caught:
        await awaitable
    return caught.value


# -- the wire ------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_the_connection_serves_on_after_an_upgrade(served):
    client = await raw.connect(served.port)
    for data in (b"x" * MIB, b"y"):
        served.receiving.reader = Reader()
        client.send(raw.upgrade(served.path))
        await client.sees(b"HTTP/1.1 101 Switching Protocols\r\n")
        await client.sees(b"\r\n\r\n")
        client.send(stream(data))
        await client.sees(b"HTTP/1.1 200 OK\r\n")
        await client.sees(b"\r\n\r\n")
        assert served.receiving.reader.moved == len(data)
        client.send(raw.head(served.path))
        await client.sees(b"HTTP/1.1 200 OK\r\n")
        await client.sees(b"\r\n\r\n")
    assert client.got == b""
    await client.close()


@pytest_twisted.ensureDeferred
async def test_bytes_before_101_are_refused(served):
    client = await raw.connect(served.port)
    client.send(raw.upgrade(served.path) + b"early")
    await client.sees(b"HTTP/1.1 400 ")
    await client.ends()
    assert served.receiving.events == []


@pytest_twisted.ensureDeferred
async def test_a_chunked_sender_waits_for_100_until_the_hypervisor_has_its_end(served):
    may_take = Deferred()

    class Slow(Reader):
        async def read(self, memory):
            await may_take
            await super().read(memory)

    served.receiving.reader = Slow()
    client = await raw.connect(served.port)
    client.send(raw.chunked(served.path))
    await sleep(0.2)
    assert client.got == b""
    may_take.callback(None)
    await client.sees(b"HTTP/1.1 100 Continue\r\n\r\n")
    client.send(raw.chunk(stream(b"abc")) + b"0\r\n\r\n")
    await client.sees(b"HTTP/1.1 200 OK\r\n")
    await client.sees(b"\r\n\r\n")
    client.send(raw.head(served.path))
    await client.sees(b"HTTP/1.1 200 OK\r\n")
    await client.close()


@pytest_twisted.ensureDeferred
async def test_the_body_may_end_long_after_the_hypervisor_has_read_all(served):
    class Late(Reader):
        """Says that it is done before it closes its end."""

        def _read(self, sock):
            self.kept = sock.dup()
            super()._read(sock)

    served.receiving.reader = Late()
    client = await raw.connect(served.port)
    client.send(raw.chunked(served.path, expect=False) + raw.chunk(stream(b"abc")))
    await until(lambda: served.receiving.reader.moved == 3)
    await sleep(0.1)
    served.receiving.reader.kept.close()
    await sleep(0.1)
    assert client.got == b""
    client.send(b"0\r\n\r\n")
    await client.sees(b"HTTP/1.1 200 OK\r\n")
    await client.close()


@pytest_twisted.ensureDeferred
async def test_a_body_of_known_length_is_streamed_too(served):
    client = await raw.connect(served.port)
    body = stream(b"z" * (3 * MIB))
    client.send(f"PUT {served.path}/memory HTTP/1.1\r\nHost: r\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
    await client.sees(b"HTTP/1.1 200 OK\r\n")
    assert served.receiving.reader.moved == 3 * MIB
    await client.close()


@pytest_twisted.ensureDeferred
async def test_without_body_and_upgrade_there_is_nothing_to_receive(served):
    client = await raw.connect(served.port)
    client.send(f"PUT {served.path}/memory HTTP/1.1\r\nHost: r\r\nContent-Length: 0\r\n\r\n".encode())
    await client.sees(b"HTTP/1.1 400 ")
    assert served.receiving.events == []
    await client.close()


@pytest_twisted.ensureDeferred
async def test_a_long_stream_is_not_idle(served):
    served.site.timeOut = 0.3
    client = await raw.connect(served.port)
    client.send(raw.chunked(served.path, expect=False) + raw.chunk(struct.pack("!Q", 4)))
    await sleep(0.8)
    client.send(raw.chunk(b"late") + b"0\r\n\r\n")
    await client.sees(b"HTTP/1.1 200 OK\r\n")
    await client.ends(2)  # and afterwards it is, again


@pytest.mark.parametrize("way", [raw.upgrade, raw.chunked])
@pytest_twisted.ensureDeferred
async def test_a_sender_that_vanishes_ends_the_receiving_hypervisors_stream(served, way):
    client = await raw.connect(served.port)
    client.send(way(served.path))
    await client.sees(b"\r\n\r\n")
    data = stream(bytes(5 * MIB))[: 2 * MIB]
    client.send(data if way is raw.upgrade else raw.chunk(data))
    await until(lambda: served.receiving.reader.moved > MIB)
    await client.close()
    reader = served.receiving.reader
    await until(lambda: reader.sock.fileno() == -1)
    assert reader.moved < 5 * MIB


@pytest.mark.parametrize("way", [raw.upgrade, raw.chunked])
@pytest_twisted.ensureDeferred
async def test_the_answer_of_a_failed_stream_reaches_a_sender_that_goes_on_sending(served, way):
    served.receiving.reader = Reader(stop_after=MIB)
    client = await raw.connect(served.port)
    client.send(way(served.path))
    await client.sees(b"\r\n\r\n")
    data = stream(bytes(50 * MIB))[: 3 * MIB]
    client.send(data if way is raw.upgrade else raw.chunk(data))
    # the rest of the stream must never be read as requests
    await client.sees(b"HTTP/1.1 500 ")
    await client.sees(b"Connection: close\r\n")
    await client.sees(b"it does not know this device")
    assert b"HTTP/1.1" not in client.got
    await client.close()


@pytest_twisted.ensureDeferred
async def test_bytes_that_the_daemon_does_not_see_are_signs_of_life(served, monkeypatch):
    monkeypatch.setattr(memory_socket, "LOOK", 0.1)
    client = await raw.connect(served.port)
    client.send(raw.upgrade(served.path))
    await client.sees(b"\r\n\r\n")
    await sleep(0.25)
    client.send(struct.pack("!Q", 3))
    before = served.receiving.touched
    await until(lambda: served.receiving.touched > before)
    quiet = served.receiving.touched
    await sleep(0.4)
    assert served.receiving.touched == quiet  # silence is none
    client.send(b"abc")
    await client.sees(b"HTTP/1.1 200 OK\r\n")
    await client.close()


@pytest_twisted.ensureDeferred
async def test_a_silent_connection_is_broken_by_the_kernel(served):
    """Both ends ask for it, before the hypervisors get the socket."""
    expected = [10_000, 1, 5]
    sent = []

    class Asking(Writer):
        async def begin(self, fd):
            await super().begin(fd)
            sent.extend(
                self.sock.getsockopt(*option)
                for option in (
                    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT),
                    (socket.SOL_SOCKET, socket.SO_KEEPALIVE),
                    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE),
                )
            )

    await peer_of(served.http).put_memory(Asking(MIB))
    assert served.receiving.reader.options == sent == expected


# -- the sender ----------------------------------------------------------------------------------


@WAYS
@pytest_twisted.ensureDeferred
async def test_a_refusal_before_the_stream(served, scheme, takes_socket):
    served.receiving.error = WrongMoment("PUT memory", "CopyingDisks")
    writer = Writer(MIB, takes_socket)
    peer = peer_of(getattr(served, scheme))
    error = await fails(peer.put_memory(writer), RemoteError)
    assert error.failure() == ["OPERATION_NOT_ALLOWED", str(served.receiving.error)]
    assert writer.began == 0


@WAYS
@pytest_twisted.ensureDeferred
async def test_an_early_error_breaks_the_stream_and_is_told(served, scheme, takes_socket):
    served.receiving.reader = Reader(stop_after=MIB)
    writer = Writer(512 * MIB, takes_socket, hashed=False)
    peer = peer_of(getattr(served, scheme))
    error = await fails(peer.put_memory(writer), RemoteError)
    assert "it does not know this device" in str(error)
    await until(lambda: writer.sock.fileno() == -1)
    assert writer.moved < 500 * MIB


@WAYS
@pytest_twisted.ensureDeferred
async def test_the_receiver_gives_up(served, scheme, takes_socket):
    class Aborted(Reader):
        async def read(self, memory):
            await super().read(memory)
            raise MigrationAborted("an administrator cancelled it there")

    served.receiving.reader = Aborted()
    peer = peer_of(getattr(served, scheme))
    error = await fails(peer.put_memory(Writer(MIB, takes_socket)), MigrationAborted)
    assert error.reason == "an administrator cancelled it there"


@WAYS
@pytest_twisted.ensureDeferred
async def test_cancelling_breaks_the_stream_on_both_sides(served, scheme, takes_socket):
    hold = threading.Event()
    served.receiving.reader = Reader(hold=hold)
    writer = Writer(512 * MIB, takes_socket, hashed=False)
    sending = Deferred.fromCoroutine(peer_of(getattr(served, scheme)).put_memory(writer))
    await until(lambda: writer.began and served.receiving.reader.sock)
    await sleep(0.2)
    sending.cancel()
    await fails(sending, CancelledError)
    await until(lambda: writer.sock.fileno() == -1)
    hold.set()
    await until(lambda: served.receiving.reader.sock.fileno() == -1)
    assert writer.moved < 500 * MIB


@WAYS
@pytest_twisted.ensureDeferred
async def test_the_senders_hypervisor_dies(served, scheme, takes_socket):
    """The receiver must not take the cut stream for a whole one."""
    writer = Writer(4 * MIB, takes_socket, claims=8 * MIB)
    error = await fails(peer_of(getattr(served, scheme)).put_memory(writer), DomainError, RemoteError)
    assert "the process ended" in str(error)
    await until(lambda: served.receiving.reader.sock.fileno() == -1)
    assert served.receiving.reader.moved <= 4 * MIB


@WAYS
@pytest_twisted.ensureDeferred
async def test_the_receivers_daemon_vanishes(served, scheme, takes_socket):
    hold = threading.Event()
    served.receiving.reader = Reader(hold=hold)
    writer = Writer(512 * MIB, takes_socket, hashed=False)
    sending = Deferred.fromCoroutine(peer_of(getattr(served, scheme)).put_memory(writer))
    await until(lambda: writer.began)
    await sleep(0.2)
    for channel in served.channels:
        channel.transport.abortConnection()
    served.receiving.reader.sock.shutdown(2)
    hold.set()
    error = await fails(sending, PeerSilent)
    assert "PUT memory (127.0.0.1:" in str(error)
    await until(lambda: writer.sock.fileno() == -1)


@pytest_twisted.ensureDeferred
async def test_no_final_answer_is_silence(served):
    hold = threading.Event()

    class Never(Reader):
        async def read(self, memory):
            await super().read(memory)
            await Deferred()

    served.receiving.reader = Never()
    peer = HttpPeer(reactor, [served.http], MigrationTimes(connect=1, request=0.3), "m1")
    error = await fails(peer.put_memory(Writer(MIB)), PeerSilent)
    assert "0.3 seconds" in str(error)
    hold.set()


@WAYS
@pytest_twisted.ensureDeferred
async def test_a_slow_receiver_holds_the_sender_back(served, scheme, takes_socket):
    """Nothing between the hypervisors keeps more than buffers: the writer stands still while the reader does."""
    hold = threading.Event()
    served.receiving.reader = Reader(hold=hold)
    writer = Writer(128 * MIB, takes_socket)
    sending = Deferred.fromCoroutine(peer_of(getattr(served, scheme)).put_memory(writer))
    await until(lambda: writer.moved)
    await sleep(0.7)
    stood_at = writer.moved
    await sleep(0.3)
    assert writer.moved == stood_at < 20 * MIB
    hold.set()
    await sending
    assert served.receiving.reader.hash.digest() == writer.hash.digest()


def test_the_double_is_what_it_stands_for():
    from zope.interface.verify import verifyObject

    from xapi_migrate.migration.interfaces import IOutgoingMemory, IPeer, IReceiving

    verifyObject(IReceiving, Receiving())
    verifyObject(IOutgoingMemory, Writer(1))
    verifyObject(IPeer, peer_of("http://h:1/migrate/" + "a" * 43))
