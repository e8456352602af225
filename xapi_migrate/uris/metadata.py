"""PUT metadata (2.1)."""

from __future__ import annotations

from . import wire
from .reply import JSON, Reply
from .verb import Call


async def put(call: Call) -> Reply:
    """The VM's metadata document, as bytes. The same again changes nothing, another one is refused with 409. 202: it
    waits its turn, and the same is to be sent again."""
    behind = await call.receiving.put_metadata(call.body)
    return Reply(202, wire.waiting_body(behind), JSON) if behind else Reply(200)
