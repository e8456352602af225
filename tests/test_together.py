"""Waiting for a connection that is given up."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import pytest_twisted
from twisted.internet import defer, reactor
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.error import ConnectingCancelledError
from twisted.internet.protocol import Protocol

from xapi_migrate.together import connected, started


@pytest_twisted.ensureDeferred
async def test_a_connecting_that_is_given_up_is_cancelled(tmp_path: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        endpoint = TCP4ClientEndpoint(reactor, *listener.getsockname())
        plain = connectProtocol(endpoint, Protocol())
        plain.cancel()
        with pytest.raises(ConnectingCancelledError):  # what Twisted itself says
            await plain
        connecting = started(connected(connectProtocol(endpoint, Protocol())))
        connecting.cancel()
        with pytest.raises(defer.CancelledError):
            await connecting
