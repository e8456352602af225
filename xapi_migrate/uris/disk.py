"""GET disk/N (2.2 to 2.5)."""

from __future__ import annotations

from . import wire
from .reply import JSON, Reply
from .verb import Call


async def get(call: Call) -> Reply:
    """Where disk N is to be copied, with the CHAP account. A repeat gives the same VDI and a URL at the address that
    the repeat arrived on."""
    offer = await call.receiving.get_disk(call.number, call.address)
    return Reply(200, wire.disk_body(offer), JSON)
