"""What strikes a migration. Each blow says where it can fall, and what it does there."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING

import attrs

from tests.faults.points import ALWAYS, CANCELLED, EVERY, Point, Span
from tests.system.deliveries import MEMORY, Fate

if TYPE_CHECKING:
    from tests.faults.ground import Ground
    from xapi_migrate.lab.host import LabHost

LINK_DOWN = 2.5
"""Seconds for which the link is cut or stalled: less than a heartbeat may be lost."""
DISK_FAILS = 2.5
"""Seconds for which a disk answers with I/O errors."""


@attrs.frozen
class Blow:
    """`strike` is called while the daemon of the point's role stands still; `span` says where its victim is there.
    `guest`: what is struck may be the guest itself; where it may then be, by point. `says`: how its client is told of
    it where the migration fails. `daemon`: the role whose daemon has to be started again. `lasts`:
    seconds until the link is mended and the disks work again; `hangs`: for these the daemon stays where it stands."""

    name: str
    strike: Callable[[Ground], None]
    span: Span = ALWAYS
    guest: Callable[[Point], set[str]] | None = None
    says: str = ""
    daemon: str = ""
    lasts: float = 0.0
    hangs: str = ""
    harmless: bool = False

    def falls_on(self, point: Point) -> bool:
        return self.span.holds(point)

    def __str__(self) -> str:
        return self.name.replace(" ", "-")


def _kill(side: str, folder: str) -> Callable[[Ground], None]:
    def strike(ground: Ground) -> None:
        host = ground.sender if side == "sender" else ground.receiver
        pids = sorted(ground.processes(host, folder))
        assert pids, f"no {folder} to kill at the {side}"
        os.kill(pids[EVERY.index(ground.point) % len(pids)], signal.SIGKILL)  # now that of one disk, now of another

    return strike


def hang(side: str, seconds: float) -> Blow:
    """The daemon of one side stands still."""

    def strike(ground: Ground) -> None:
        for process in (ground.sender if side == "sender" else ground.receiver).daemons():
            os.kill(process.pid, signal.SIGSTOP)

    return Blow(f"{side} hangs", strike, lasts=seconds, hangs=side)


def _twice(ground: Ground) -> None:
    """Each request, in turn before, beside and after itself. Which comes first changes from point to point."""
    first = EVERY.index(ground.point)
    turns: dict[str, int] = {}

    def fate(name: str) -> Fate:
        turn = turns[name] = turns.get(name, first) + 1
        # the memory stream needs the connection of the first: what is delivered before it is a failed stream
        ways = (Fate.BESIDE, Fate.AFTER) if name == MEMORY else (Fate.BEFORE, Fate.BESIDE, Fate.AFTER)
        return ways[turn % len(ways)]

    ground.link.requests.deliveries.fate = fate


def _late(ground: Ground) -> None:
    ground.link.requests.deliveries.fate = lambda name: Fate.LATE


def _ask_to_end(host: LabHost) -> None:
    """SIGTERM, as a package's upgrade or a reboot sends it."""
    for process in host.daemons():
        os.kill(process.pid, signal.SIGTERM)


HALTED_THERE, HALTED_HERE = {"halted at the receiver"}, {"halted at the sender"}


def _without_the_senders(point: Point) -> set[str]:
    """As long as its memory is not all at the receiver, the guest dies with it."""
    if point.way == "withdrawn":
        return {"receiver"} if point.name == "InDoubt" else {"receiver", *HALTED_HERE}
    if point.way == "cancelled" or not Span("sender 4.4").holds(point):
        return HALTED_HERE
    return {"receiver"} if Span("sender 4.5").holds(point) else {"receiver", *HALTED_HERE}


def _without_the_receivers(point: Point) -> set[str]:
    """What has been decided is not taken back."""
    decided = point.way == "moved" and Span("receiver before-committed").holds(point)
    return HALTED_THERE if decided else {"sender"}


_UNDONE = ALWAYS.undone
_CANCELLED = tuple(point.words for point in CANCELLED)
_NOT_SHUT = ("sender InDoubt", "sender Withdrawing", "receiver Shutting")
"""What the receiver has ends while it is Shutting, before ABORT is written: at the later points of a withdrawal its
domain, its target and its datapaths are gone."""
_ASKING = Span(last="sender after-ended", undone=_UNDONE, but=("sender Failed",))
"""There are requests to come: the last is the sender's acknowledgement."""
_ANSWERED = ("receiver after-ended",)

_RESTARTED = r"daemon (was restarted|ended)|the sending host gave the migration up|the daemon of"
_GONE = r"closed the connection|does not know this migration|cannot be reached|the receiver's daemon was restarted"
_SERVED = r"What serves disk|tgtd does not answer"
_LINK = r"cannot be (re|opened)|closed the connection|gave no answer|given this migration up|gave it up"
_DISK = "Input/output error"

BLOWS = [
    Blow("sender daemon", lambda ground: ground.sender.kill(), daemon="sender", says=_RESTARTED),
    Blow("receiver daemon", lambda ground: ground.receiver.kill(), daemon="receiver", says=_GONE),
    Blow("sender daemon ends", lambda ground: _ask_to_end(ground.sender), daemon="sender", says=_RESTARTED),
    Blow("receiver daemon ends", lambda ground: _ask_to_end(ground.receiver), daemon="receiver", says=_GONE),
    Blow(
        "sender datapath",
        _kill("sender", "datapaths"),
        Span(last="sender 5.4", undone=_UNDONE, but=_ANSWERED),
        says="its datapath (died|went)",
    ),
    Blow(
        "receiver datapath",
        _kill("receiver", "datapaths"),
        Span("receiver 2.3", undone=(*_CANCELLED, *_NOT_SHUT)),
        says=_SERVED,
    ),
    Blow("copier", _kill("sender", "copiers"), Span("sender 3.3", "sender 4.4", _CANCELLED[:2]), says="The copy of"),
    Blow(
        "target",
        _kill("receiver", "tgt"),
        Span("receiver before-offered", "receiver Activating", (*_CANCELLED, *_NOT_SHUT)),
        says=_SERVED,
    ),
    Blow(
        "sender domain",
        _kill("sender", "domains"),
        Span(last="sender 5.3", undone=_UNDONE, but=_ANSWERED),
        guest=_without_the_senders,
        says="The domain .* could not (be sent|suspend): ",
    ),
    Blow(
        "receiver domain",
        _kill("receiver", "domains"),
        Span("sender 4.3", undone=_NOT_SHUT),
        guest=_without_the_receivers,
        says="The domain .* could not",
    ),
    Blow("link cut", lambda ground: ground.link.take_down(), lasts=LINK_DOWN, says=_LINK),
    Blow("link stall", lambda ground: ground.link.stall(), lasts=LINK_DOWN, says=_LINK),
    Blow("sender disk error", lambda ground: ground.disks[ground.sender.name].fail(), lasts=DISK_FAILS, says=_DISK),
    Blow("receiver disk error", lambda ground: ground.disks[ground.receiver.name].fail(), lasts=DISK_FAILS, says=_DISK),
    Blow("requests twice", _twice, _ASKING, harmless=True),
    Blow("requests late", _late, _ASKING, harmless=True),
]
