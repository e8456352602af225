"""PUT metadata (2.1)."""

from __future__ import annotations

from .reply import Reply
from .verb import Call


async def put(call: Call) -> Reply:
    """The VM's metadata document, as bytes. The same again changes nothing, another one is refused with 409."""
    await call.receiving.put_metadata(call.body)
    return Reply(200)
