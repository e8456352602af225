"""How long storage may take: every figure of the storage layer. Seconds unless said otherwise."""

from __future__ import annotations

import math

import attrs

from ..config import Config

NOPS = 3
"""So many questions in a row that an initiator leaves unanswered end its session."""
_AFTER = 3.0
"""Seconds for which stale writes are waited for beyond that."""


@attrs.frozen
class SMTimeouts:
    """The comments are the manual."""

    # One call of a storage backend (create, scan, ...). Past it the call fails; the backend may repeat it.
    backend: float = 120.0
    # From starting a qemu-storage-daemon or tgtd until it answers.
    start: float = 10.0
    # Between two attempts to start a datapath in the place of one that died: the first pause. It doubles each time.
    revive: float = 1.0
    # The longest such pause.
    revive_at_most: float = 30.0
    # As long has a datapath that was started so to live before its disk is said to work again.
    revived: float = 5.0
    # One command to a datapath or a copier. Draining a busy disk counts, so it is generous.
    command: float = 60.0
    # Reading the identity of a LUN for the same-disk test.
    identity: float = 10.0
    # A copier opening its LUN: TCP connect, CHAP, READ CAPACITY. Past it the copier is killed.
    attach: float = 15.0
    # How often a running copy is looked at.
    poll: float = 0.5
    # A copy that is not idle and has not moved for this long has a dead copier: it is killed and replaced.
    stall: float = 10.0
    # How often the copier of one copy is replaced without a byte of progress in between; then the copy fails.
    replacements: int = 3
    # After a copier was killed: how long its successor waits at most for the kernel to deliver or give up what the dead
    # one had sent. A stale write that overtakes a new one would spoil the copy. Longer than the target's NOP limit.
    stale_writes: float = 12.0
    # How long the datapath waits for a new copier before it gives the copy up.
    reconnect: int = 120
    # VDI.deactivate: how long each of "drain" and "finish the copy" may take before the copier is killed.
    guard: float = 10.0
    # Closing a LUN: how long a command in flight may take before its session is cut.
    close_lun: float = 5.0
    # Between two flushes of an image that is being filled. What is left for the last one keeps the guest waiting.
    flush: float = 0.5
    # iSCSI NOP of the target: sessions whose initiator does not answer nop_count times are reaped.
    nop_interval: int = 3
    # See nop_interval.
    nop_count: int = NOPS
    # How long a copy may get no nearer to its end because the guest writes faster than it copies.
    falling_behind: float = 20.0
    # Then the guest's writes are slowed down more and more, else the copy fails.
    slow_guests: bool = True
    # Bytes per second that one copy may read in its bulk pass, 0: as fast as it goes.
    copy_speed: int = 0


def configured(config: Config) -> SMTimeouts:
    """With what the configuration says of them."""
    times = config.times
    interval = math.ceil(times.iscsi_silence / NOPS)
    return SMTimeouts(
        falling_behind=times.falling_behind, slow_guests=config.slow_guests, stall=times.stall, guard=times.guard,
        nop_interval=interval, stale_writes=interval * NOPS + _AFTER,
    )  # fmt: skip
