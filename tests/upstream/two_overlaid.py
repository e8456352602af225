"""Two servers, each behind an overlay: clients are led to the overlays."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tests.upstream.overlaid import overlaid
from tests.xenapi.two_servers import TwoServers, two_servers


@asynccontextmanager
async def two_overlaid(tmp_path: Path) -> AsyncIterator[TwoServers]:
    async with (
        two_servers(tmp_path) as world,
        overlaid(world.source.url) as source,
        overlaid(world.destination.url) as destination,
    ):
        world.source.port, world.destination.port = source.port, destination.port
        yield world
