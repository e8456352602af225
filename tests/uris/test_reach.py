"""Where a sender lets itself be sent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.address import IPv4Address

from tests.uris.test_peer import TIMES, fails
from xapi_migrate.config import Config
from xapi_migrate.errors import NoUriAnswered, OperationNotAllowed, PeerSilent
from xapi_migrate.uris.peer import HttpPeer
from xapi_migrate.uris.reach import Reach, Resolver

DEFAULT = Reach.all_but(Config(Path("/x")).denied_networks)


@pytest.mark.parametrize(
    "address",
    [
        "169.254.169.254", "0.0.0.0", "0.1.2.3", "224.0.0.1", "255.255.255.255", "::", "fe80::1", "fe80::1%eth0",
        "ff02::1", "::ffff:169.254.169.254", "2002:a9fe:a9fe::1", "64:ff9b::a9fe:a9fe",
        "64:ff9b:1::a9fe:a9fe", "2001:0:a9fe:a9fe::1", "localhost", "", "1", "127.1",
    ],
)  # fmt: skip
def test_nobody_is_sent_there(address: str) -> None:
    assert not DEFAULT.allows(address)


@pytest.mark.parametrize("address", ["10.0.0.1", "192.0.2.1", "127.0.0.1", "::1", "2001:db8::1", "::ffff:10.0.0.1"])
def test_hosts_are_reached(address: str) -> None:
    assert DEFAULT.allows(address)
    assert not Reach.all_but(["0.0.0.0/0", "::/0"]).allows(address)


def test_what_is_no_network_is_said_at_once() -> None:
    with pytest.raises(ValueError, match="has host bits set"):
        Reach.all_but(["10.1.2.3/8"])


class Changing:
    """A resolver whose answer is another one each time, as that of a name that rebinds."""

    def __init__(self, *answers: list[str]) -> None:
        self.answers = list(answers)

    def resolveHostName(self, receiver: Any, name: str, port: int, *_: Any) -> None:
        receiver.resolutionBegan(None)
        for address in self.answers.pop(0):
            receiver.addressResolved(IPv4Address("TCP", address, port))
        receiver.resolutionComplete()


@attrs.define
class Heard:
    addresses: list[str] = attrs.Factory(list)
    ended: bool = False

    def resolutionBegan(self, _: Any) -> None:
        pass

    def addressResolved(self, address: Any) -> None:
        self.addresses.append(f"{address.host}:{address.port}")

    def resolutionComplete(self) -> None:
        self.ended = True


def resolved(resolver: Resolver, name: str, port: int = 80) -> list[str]:
    heard = Heard()
    resolver.resolveHostName(heard, name, port)
    assert heard.ended
    return heard.addresses


def test_a_name_means_the_same_host_for_ever() -> None:
    resolver = Resolver(Changing(["10.0.0.1", "169.254.169.254"], ["169.254.169.254"], ["10.0.0.3"]), DEFAULT)
    assert resolved(resolver, "receiver") == ["10.0.0.1:80"]
    assert resolved(resolver, "receiver") == ["10.0.0.1:80"]
    assert resolved(resolver, "other") == []
    assert resolved(resolver, "other") == ["10.0.0.3:80"]


@pytest.mark.system
@pytest_twisted.ensureDeferred
async def test_a_denied_network_is_not_connected_to(served: Any) -> None:
    reach = Reach.all_but(["127.0.0.0/8"])
    denied = HttpPeer(reactor, [served.http], TIMES, reach=reach)
    named = HttpPeer(reactor, [served.http.replace("127.0.0.1", "localhost")], TIMES, reach=reach)
    for peer in (denied, named):
        error = await fails(peer.connect(), NoUriAnswered)
        assert "cannot be reached" in error.reports
    assert served.receiving.touched == 0
    allowed = HttpPeer(reactor, [served.http], TIMES, reach=DEFAULT)
    await allowed.connect()
    await allowed.put_metadata(b"<ova/>")
    denied_disk = HttpPeer(reactor, [served.http], TIMES)
    await denied_disk.connect()
    denied_disk._reach = reach  # as if the receiver's disk were elsewhere
    error = await fails(denied_disk.get_disk(0), PeerSilent)
    assert "does not connect to" in str(error)
    assert (await allowed.get_disk(0)).url.url.startswith("iscsi://127.0.0.1:")
    for peer in (denied, named, allowed, denied_disk):
        peer.close()


@pytest.mark.system
@pytest_twisted.ensureDeferred
async def test_behind_https_a_disk_in_clear_is_refused(served: Any) -> None:
    careful = HttpPeer(reactor, [served.https], TIMES, insecure_storage=False)
    await careful.connect()
    error = await fails(careful.get_disk(0), OperationNotAllowed)
    assert "takes disks in clear only" in str(error)
    plain = HttpPeer(reactor, [served.http], TIMES, insecure_storage=False)
    await plain.connect()
    await plain.get_disk(0)
    for peer in (careful, plain):
        peer.close()
