"""PUT memory (4.1): which of the two ways the stream takes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..migration.interfaces import IReceiving
from . import wire
from .exchange import Exchange, Whole
from .memory_body import CarriedMemory
from .memory_socket import HandedOverMemory
from .reply import Reply, refused

if TYPE_CHECKING:
    from .request import MigrationRequest


def receive(
    request: MigrationRequest, receiving: IReceiving, length: int | None, reactor: Any, silence: int
) -> Exchange:
    """The exchange of a PUT memory whose headers are in.

    With `Upgrade` on plain http the hypervisor takes the TCP socket; else the body, chunked or of a known length,
    is carried to it. 426 tells a sender that asked for the upgrade to send the body instead. `silence`: see
    MigrationTimes.memory_silence.
    """
    if _wants_upgrade(request):
        reply = _why_no_upgrade(request, receiving, length)
        return HandedOverMemory(request, receiving, silence) if reply is None else _refusing(request, reply, length)
    if length == 0:
        return _refusing(request, refused(400, "PUT memory came without a body and without an upgrade."), length)
    return CarriedMemory(request, receiving, reactor, silence)


def _refusing(request: MigrationRequest, reply: Reply, length: int | None) -> Exchange:
    if length != 0:
        request.refuse(reply)
    return Whole(request, 0, lambda body: request.reply(reply))


def _wants_upgrade(request: MigrationRequest) -> bool:
    connection = b",".join(request.requestHeaders.getRawHeaders(b"connection", [])).lower()
    return (
        b"upgrade" in [token.strip() for token in connection.split(b",")]
        and request.requestHeaders.getRawHeaders(b"upgrade") == [wire.UPGRADE]
        and request.clientproto == b"HTTP/1.1"
    )


def _why_no_upgrade(request: MigrationRequest, receiving: IReceiving, length: int | None) -> Reply | None:
    offered = ("Upgrade", wire.UPGRADE.decode())
    if length != 0:
        return refused(400, "A PUT memory that asks for an upgrade has no body.")
    if request.secure:
        return refused(426, "A TLS connection cannot be handed to the hypervisor: send the stream as body.", offered)
    if not receiving.takes_socket:
        return refused(426, "The hypervisor here takes no TCP socket: send the stream as body.", offered)
    return None
