"""PUT memory over real loopback sockets: the bytes, the two ways, the fallbacks."""

from __future__ import annotations

import pytest
import pytest_twisted
from twisted.internet import reactor

from xapi_migrate.config import MigrationTimes
from xapi_migrate.uris.peer import HttpPeer

from .doubles import Writer

SIZE = (64 << 20) + 12345
TIMES = MigrationTimes(connect=2, request=5)

pytestmark = pytest.mark.system


def peer_of(*uris, times=TIMES):
    return HttpPeer(reactor, uris, times, "m1")


@pytest.mark.parametrize(
    "scheme, sender_takes, receiver_takes, ways",
    [
        ("http", True, True, ["socket"]),
        ("http", True, False, ["426", "body"]),
        ("http", False, True, ["body"]),
        ("https", True, True, ["body"]),
    ],
)
@pytest_twisted.ensureDeferred
async def test_the_stream_arrives_whole(served, scheme, sender_takes, receiver_takes, ways):
    served.receiving.takes_socket = receiver_takes
    peer = peer_of(getattr(served, scheme))
    writer = Writer(SIZE, takes_socket=sender_takes)
    await peer.put_memory(writer)
    reader = served.receiving.reader
    assert reader.moved == SIZE
    assert reader.hash.digest() == writer.hash.digest()
    assert served.receiving.events == [("memory",)]
    assert writer.began == 1
    peer.close()
