"""Telling a network where a guest is now, in the guest's name: RARP frames, as QEMU sends them for its own guests.

The frame leaves by the bridge itself, to all of its ports: what stands behind them learns the new way.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable
from typing import Any

from twisted.internet import task
from twisted.logger import Logger

from xapi_migrate.domains.interfaces import DomainNic

PAUSES = (0.05, 0.15, 0.25, 0.35, 0.45)
"""Seconds before each of the frames: switches may be busy with the move themselves."""
_RARP = 0x8035

_log = Logger()


def frame(mac: str) -> bytes:
    """A reverse ARP request of the interface for its own address, to everybody."""
    address = bytes.fromhex(mac.replace(":", ""))
    request = b"\x00\x01\x08\x00\x06\x04\x00\x03" + (address + bytes(4)) * 2
    return (b"\xff" * 6 + address + _RARP.to_bytes(2, "big") + request).ljust(60, b"\0")


async def announce(reactor: Any, nics: Iterable[DomainNic]) -> None:
    """Send them for each interface that is on a bridge. What cannot be sent is logged: the guest's first own frame says
    the same."""
    connected = [nic for nic in nics if nic.bridge]
    for pause in PAUSES if connected else ():
        await task.deferLater(reactor, pause)
        for nic in connected:
            try:
                with socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK) as out:
                    out.bind((nic.bridge, 0))
                    out.send(frame(nic.mac))
            except OSError as failure:
                _log.warn(
                    "{mac} is not announced on {bridge}: {reason}", mac=nic.mac, bridge=nic.bridge, reason=failure
                )
