"""PUT and GET control (5.1)."""

from __future__ import annotations

from . import wire
from .reply import JSON, Reply, decision, refused
from .verb import Call

DONE = b"done"
BODY_LIMIT = 64


async def put(call: Call) -> Reply:
    """The body is exactly `done`. 200 committed or 410 aborted; a repeat gets the same."""
    if call.body != DONE:
        return refused(400, "The body of PUT control must be exactly: done")
    return decision(await call.receiving.put_done())


async def get(call: Call) -> Reply:
    """What has been decided so far; always 200."""
    return Reply(200, wire.answer_body(call.receiving.control()), JSON)
