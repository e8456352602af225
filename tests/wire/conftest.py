"""The server of the raw tests."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_twisted

from tests.wire.talk import Wire
from tests.xenapi.live import USER, live


@pytest_twisted.async_yield_fixture(scope="module")
async def wire(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Wire]:
    """One server for the module: what tests change, they make."""
    folder: Path = tmp_path_factory.mktemp("wire")
    async with live(folder) as here:
        yield Wire(here, here.server.sessions.open(USER, "here"))
