"""What stands between the migration engine and the wire.

The sender knows its receiver as an `IPeer`; the receiver is known to its resource tree as an
`IReceiving`. Both can be joined without a network: that is how the simulation runs.
"""

from __future__ import annotations

from collections.abc import Awaitable
from enum import Enum
from typing import Any

import attrs
from zope.interface import Attribute, Interface

from ..sm.interfaces import SameDiskProof, TargetUrl

PROTOCOL_VERSION = 1


class Outcome(Enum):
    """What a receiver has durably decided. open: nothing yet. unknown: it does not know the
    migration (404), which decides nothing."""

    OPEN = "open"
    COMMITTED = "committed"
    ABORTED = "aborted"
    UNKNOWN = "unknown"


@attrs.frozen
class Answer:
    """The receiver's word on the migration; `reason` a sentence where it is aborted."""

    outcome: Outcome
    reason: str = ""


@attrs.frozen
class DiskOffer:
    """The receiver's answer to GET disk/N (steps 2.2 to 2.5): where to copy disk N.

    `vdi_uuid` and `sr_uuid` are the receiver's; `found` says that the receiver sees the very VDI already (the
    URL is then a read-only dummy and `proof` lets the sender check it)."""

    number: int
    vdi_uuid: str
    sr_uuid: str
    virtual_size: int
    url: TargetUrl
    found: bool = False
    proof: SameDiskProof | None = None


class IOutgoingMemory(Interface):
    """The memory stream that the sender puts (step 4.1)."""

    takes_socket: bool = Attribute("the hypervisor can be handed a TCP socket")
    stream: str = Attribute("the name of the stream's format")

    def begin(fd: int) -> Awaitable[None]:
        """The way to the receiver is open: let the hypervisor write to `fd`. Fires when it owns a duplicate."""

    def finished() -> Awaitable[None]:
        """Fires when the hypervisor has written the whole stream; fails if it could not."""


class IIncomingMemory(Interface):
    """The memory stream as it reaches the receiver (step 4.1)."""

    def fileno() -> int:
        """Where the hypervisor reads: the TCP socket itself or one end of a local pair."""

    def taken() -> None:
        """The hypervisor owns its duplicate of the descriptor: tell the sender to begin."""


class IPeer(Interface):
    """The receiver as the sender sees it: one offer, several URIs. All methods raise PeerSilent when no
    whole answer came, and the receiver's own error (RemoteError, MigrationAborted) when it refused."""

    destination: str = Attribute("the current URI's host and port, for messages; never the capability")

    def connect() -> Awaitable[None]:
        """Step 1.5: HEAD each URI in order until one answers 200; it becomes the current one.
        NoUriAnswered tells what each of them did."""

    def head() -> Awaitable[None]:
        """The heartbeat: HEAD the current URI. MigrationAborted when the receiver has given up."""

    def fail_over() -> Awaitable[bool]:
        """Try the other URIs; True when another one has become the current one."""

    def put_metadata(document: bytes) -> Awaitable[int]:
        """Step 2.1. 0 when the receiver has everything ready; else it has kept the document, so many migrations come
        before this one there, and the same is to be sent again. Repeating it with the same document changes nothing."""

    def get_disk(number: int) -> Awaitable[DiskOffer]:
        """Steps 2.2, 2.4. A repeat gives the same VDI, and a URL at the address now in use."""

    def put_memory(memory: IOutgoingMemory) -> Awaitable[None]:
        """Step 4.1; fires when the receiver has answered 200: the domain is there, paused. Cancelling it breaks
        the stream."""

    def put_done() -> Awaitable[Answer]:
        """Step 5.1."""

    def get_control() -> Awaitable[Answer]:
        """Ask all URIs, the current one first, what was decided; the first that knows, else UNKNOWN. PeerSilent when
        none answers."""

    def delete(acknowledge: Outcome | None = None) -> Awaitable[Answer]:
        """Give the migration up; the answer is what was decided. With `acknowledge`: the outcome is known here,
        the receiver may forget the migration."""

    def close() -> None:
        """Let go of all connections."""


class IReceiving(Interface):
    """One incoming migration, as its URIs see it. Each method is one verb; its errors carry their HTTP status."""

    takes_socket: bool = Attribute("the hypervisor can be handed the TCP socket of PUT memory")
    revoked: bool = Attribute("the migration has ended: only HEAD, control and DELETE are answered")

    def touch() -> None:
        """A sign of life came (any request)."""

    def status() -> dict[str, Any]:
        """GET base: protocol version, state, last step, outcome, number of disks; for people and scripts."""

    def put_metadata(document: bytes) -> Awaitable[int]:
        """Step 2.1: 0 when VM and VDIs exist; how many migrations come before this one if, after a moment, it still
        waits for them. ImportError_, VdiNotInMap, SrFull, NotEnoughMemory, IncompatibleHost, OfferTaken."""

    def get_disk(number: int, address: str) -> Awaitable[DiskOffer]:
        """Steps 2.2 to 2.5; `address` is the local address on which the request arrived. WrongMoment before the
        metadata, HandleInvalid for a disk that the VM does not have."""

    def put_memory(memory: IIncomingMemory) -> Awaitable[None]:
        """Steps 4.1, 4.2; fires when the stream is in and the domain paused. WrongMoment if it is not due."""

    def put_done() -> Awaitable[Answer]:
        """Step 5.1. COMMITTED or ABORTED; WrongMoment when the memory of a running VM has not come."""

    def control() -> Answer:
        """What has been decided so far."""

    def delete(reason: str, acknowledge: Outcome | None = None) -> Awaitable[Answer]:
        """Abort if nothing is decided. The answer is what holds; ABORTED only once it is durable and the VM's
        disks are shut here. Only a DELETE that names the outcome (`acknowledge`) lets the receiver forget it: a
        repeated abort whose first answer was lost must find the decision, not a 404 which decides nothing."""


class IOffers(Interface):
    """All incoming migrations of this host."""

    def find(capability: str) -> IReceiving | None:
        """The migration that this capability opens; constant-time; None for unknown, expired and acknowledged ones."""
