"""The base URI itself: HEAD (1.5 and the heartbeat), GET (for people and scripts), DELETE."""

from __future__ import annotations

from ..migration.interfaces import Outcome
from . import wire
from .reply import JSON, Reply, refused
from .verb import Call

ACKNOWLEDGED = {one.value: one for one in (Outcome.COMMITTED, Outcome.ABORTED)}
GIVEN_UP = "the sending host gave the migration up"


async def head(call: Call) -> Reply:
    """Alive: 200, any number of times. 410 once the receiver has aborted, so that the sender need not wait for its
    copies to fail."""
    return Reply(410 if call.receiving.control().outcome is Outcome.ABORTED else 200)


async def get(call: Call) -> Reply:
    """Protocol version, state, last step, outcome and number of disks, as JSON."""
    return Reply(200, wire.encode(call.receiving.status()), JSON)


async def delete(call: Call) -> Reply:
    """Abort if nothing is decided yet; 200 and what holds, and a repeat gets the same. With the header
    `Acknowledge: committed` (or aborted), if that is what holds, the receiver may forget the migration, and a repeat
    gets 404."""
    acknowledge: Outcome | None = None
    if call.acknowledge:
        try:
            acknowledge = ACKNOWLEDGED[call.acknowledge]
        except KeyError:
            return refused(400, "Acknowledge names the outcome: committed or aborted.")
    return Reply(200, wire.answer_body(await call.receiving.delete(GIVEN_UP, acknowledge)), JSON)
