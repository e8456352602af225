"""VDI.copy where the offer is https: NBD over TLS, with a guest that writes all the time."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path

import attrs
import pytest
import pytest_twisted
from twisted.internet import protocol, reactor, task, threads
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP4ServerEndpoint, connectProtocol

from tests.sm.test_restart import SLOW, restart
from tests.sm.two_hosts import MIB, begin_copy, command_lines, compare, guest_on, image, make_disk, two_hosts, until
from xapi_migrate.errors import SrBackendFailure
from xapi_migrate.sm.addresses import NBDAddress, read_address
from xapi_migrate.sm.interfaces import CopyState, TargetUrl

pytestmark = pytest.mark.system
SIZE = 128 * MIB
SECRET = b"what nobody on the network may read. "


@pytest.mark.parametrize("receiver", ["raw", "qcow2"])
@pytest_twisted.ensureDeferred
async def test_it_is_equal_and_the_key_is_nowhere_to_be_seen(tmp_path: Path, receiver: str) -> None:
    async with two_hosts(tmp_path, "raw", receiver) as (ours, theirs):
        vdi = await make_disk(ours, SIZE, filled=32 * MIB)
        async with guest_on(ours, vdi) as guest:
            guest.start()
            fresh, url = await begin_copy(ours, theirs, vdi, SIZE, secure=True)
            lines = command_lines()
            await until(ours, "copy-1", CopyState.READY)
            keys = {path: path.stat().st_mode for path in files_with(tmp_path, url.password)}
            await guest.stop()
            await ours.sr.vdi_deactivate(vdi)
            assert (await ours.sr.copy_state("copy-1")).state is CopyState.FINISHED
            await theirs.sr.vdi_close_url(fresh, "migration-1")
        assert guest.written > 10 and guest.failed == 0
        assert "nbdkit" in lines and url.password not in lines
        assert len(keys) >= 3 and all(mode & 0o077 == 0 for mode in keys.values()), keys
        await ours.services.copies.tidied(vdi)
        assert await compare(image(ours, vdi), image(theirs, fresh)) == ""
        await ours.sr.copy_cancel("copy-1")
        assert files_with(tmp_path, url.password) == []


def files_with(folder: Path, text: str) -> list[Path]:
    """The small files that hold it."""
    small = (path for path in folder.rglob("*") if path.is_file() and path.stat().st_size < MIB)
    return [path for path in small if text.encode() in path.read_bytes()]


class Eavesdropper(protocol.Protocol):
    """Half of a relay that keeps what goes through it."""

    def __init__(self, heard: bytearray, peer: Eavesdropper | None = None) -> None:
        self.heard = heard
        self.peer = peer

    def dataReceived(self, data: bytes) -> None:
        self.heard += data
        assert self.peer is not None and self.peer.transport is not None
        self.peer.transport.write(data)

    def connectionLost(self, reason: object = None) -> None:
        if self.peer is not None and self.peer.transport is not None:
            self.peer.transport.loseConnection()


class Relay(protocol.Factory):
    def __init__(self, port: int) -> None:
        self.port = port
        self.heard = bytearray()

    def buildProtocol(self, addr: object) -> Eavesdropper:
        near = _Near(self.heard)
        near.port = self.port
        return near


class _Near(Eavesdropper):
    port = 0

    def connectionMade(self) -> None:
        assert self.transport is not None
        self.transport.pauseProducing()
        far = Eavesdropper(self.heard, self)
        connecting = connectProtocol(TCP4ClientEndpoint(reactor, "127.0.0.1", self.port), far)

        def joined(far: Eavesdropper) -> None:
            assert self.transport is not None
            self.peer = far
            self.transport.resumeProducing()

        connecting.addCallback(joined)
        connecting.addErrback(lambda _: self.transport and self.transport.loseConnection())


@pytest.mark.parametrize("secure", [True, False])
@pytest_twisted.ensureDeferred
async def test_who_listens_hears_nothing(tmp_path: Path, secure: bool) -> None:
    """In the clear the same listener hears the disk's content, so it would notice."""
    async with two_hosts(tmp_path) as (ours, theirs):
        vdi = await make_disk(ours, 16 * MIB)
        async with guest_on(ours, vdi) as guest:
            await guest.client.write(MIB, (SECRET * 2000)[:65536])
            fresh = "11111111-2222-4333-8444-555555555555"
            await theirs.sr.vdi_create(fresh, 16 * MIB)
            url = await theirs.sr.vdi_get_url(fresh, "migration-1", "127.0.0.1", secure)
            relay = Relay(read_address(url.url).port)
            port = await TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1").listen(relay)
            try:
                through = url.url.replace(f":{relay.port}/", f":{port.getHost().port}/")
                await ours.sr.vdi_copy(vdi, attrs.evolve(url, url=through), "copy-1", None)
                await until(ours, "copy-1", CopyState.READY)
                await ours.sr.copy_cancel("copy-1")
            finally:
                await port.stopListening()
            assert (SECRET in relay.heard) is not secure
            assert len(relay.heard) > 65536
        await theirs.sr.vdi_close_url(fresh, "migration-1")


def _plain_client(address: NBDAddress) -> bytes:
    """Ask for the export without TLS; what the server says of it."""
    with socket.create_connection((address.address, address.port), 10) as client:
        greeting = client.recv(18, socket.MSG_WAITALL)
        assert greeting.startswith(b"NBDMAGICIHAVEOPT")
        client.sendall(b"\0\0\0\1" + b"IHAVEOPT" + b"\0\0\0\7" + b"\0\0\0\6" + b"\0\0\0\0" + b"\0\0")  # NBD_OPT_GO
        return client.recv(16, socket.MSG_WAITALL)[12:16]


@pytest_twisted.ensureDeferred
async def test_without_encryption_nobody_is_let_in(tmp_path: Path) -> None:
    async with two_hosts(tmp_path) as (_, theirs):
        fresh = "11111111-2222-4333-8444-555555555555"
        await theirs.sr.vdi_create(fresh, 16 * MIB)
        url = await theirs.sr.vdi_get_url(fresh, "migration-1", "127.0.0.1", True)
        address = read_address(url.url)
        assert isinstance(address, NBDAddress)
        assert await threads.deferToThread(_plain_client, address) == b"\x80\0\0\5"  # NBD_REP_ERR_TLS_REQD
        await theirs.sr.vdi_close_url(fresh, "migration-1")
        with pytest.raises(ConnectionRefusedError):
            await threads.deferToThread(_plain_client, address)


@pytest_twisted.ensureDeferred
async def test_both_daemons_restart_in_mid_copy(tmp_path: Path) -> None:
    async with two_hosts(tmp_path, timeouts=SLOW) as (ours, theirs):
        vdi = await make_disk(ours, SIZE, filled=48 * MIB)
        async with guest_on(ours, vdi) as guest:
            guest.pause = 0.05
            guest.start()
            fresh, url = await begin_copy(ours, theirs, vdi, SIZE, secure=True)
            await task.deferLater(reactor, 0.3)
            for host in (ours, theirs):
                alive = host.services.alive()
                await restart(host, "raw")
                assert host.services.alive() == alive
            assert await theirs.sr.vdi_get_url(fresh, "migration-1", "127.0.0.1", True) == url
            await until(ours, "copy-1", CopyState.READY)
            await guest.stop()
            await ours.sr.vdi_deactivate(vdi)
            await theirs.sr.vdi_close_url(fresh, "migration-1")
        await ours.services.copies.tidied(vdi)
        assert await compare(image(ours, vdi), image(theirs, fresh)) == ""


@pytest_twisted.ensureDeferred
async def test_a_server_that_is_killed_is_noticed_and_the_guest_goes_on(tmp_path: Path) -> None:
    async with two_hosts(tmp_path) as (ours, theirs):
        vdi = await make_disk(ours, SIZE, filled=8 * MIB)
        async with guest_on(ours, vdi) as guest:
            guest.start()
            fresh, _ = await begin_copy(ours, theirs, vdi, SIZE, secure=True)
            await until(ours, "copy-1", CopyState.READY)
            (record,) = theirs.services.state_dir.glob("nbd/*/up")
            os.kill(int(record.read_text()), signal.SIGKILL)
            status = await until(ours, "copy-1", CopyState.FAILED)
            assert status.error
            await guest.stop()
            assert guest.failed == 0
        await theirs.sr.vdi_close_url(fresh, "migration-1")
        await ours.sr.copy_cancel("copy-1")


@pytest_twisted.ensureDeferred
async def test_a_server_that_died_is_started_again_where_it_was(tmp_path: Path) -> None:
    async with two_hosts(tmp_path) as (_, theirs):
        fresh = "11111111-2222-4333-8444-555555555555"
        await theirs.sr.vdi_create(fresh, 16 * MIB)
        url = await theirs.sr.vdi_get_url(fresh, "migration-1", "127.0.0.1", True)
        (record,) = theirs.services.state_dir.glob("nbd/*/up")
        os.kill(int(record.read_text()), signal.SIGKILL)
        while theirs.services.alive().targets:
            await task.deferLater(reactor, 0.01)
        assert await theirs.sr.vdi_get_url(fresh, "migration-1", "127.0.0.1", True) == url
        assert len(theirs.services.alive().targets) == 1
        await theirs.sr.vdi_close_url(fresh, "migration-1")
        assert theirs.services.alive().nothing


@pytest_twisted.ensureDeferred
async def test_a_backend_that_cannot_encrypt_is_refused_where_it_must(tmp_path: Path) -> None:
    class Own:
        closed = False

        async def vdi_get_url(self, uuid: str, migration: str, address: str, secure: bool) -> TargetUrl:
            return TargetUrl("iscsi://127.0.0.1:3260/iqn.own:disk/1", "", "")

        async def vdi_close_url(self, uuid: str, migration: str) -> None:
            self.closed = True

    async with two_hosts(tmp_path) as (_, theirs):
        own = Own()
        theirs.sr._backend._backend = own
        assert (await theirs.sr.vdi_get_url("a", "migration-1", "127.0.0.1")).url.startswith("iscsi:")
        with pytest.raises(SrBackendFailure, match="cannot encrypt"):
            await theirs.sr.vdi_get_url("a", "migration-1", "127.0.0.1", True)
        assert own.closed
