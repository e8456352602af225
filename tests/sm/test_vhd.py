"""A VHD as receiver: QEMU's driver knows neither discards nor holes."""

from __future__ import annotations

from pathlib import Path

import pytest
import pytest_twisted

from tests.sm.two_hosts import MIB, begin_copy, compare, image, make_disk, two_hosts, until
from xapi_migrate.sm.interfaces import CopyState
from xapi_migrate.sm.timeouts import SMTimeouts

pytestmark = pytest.mark.system
SIZE = 128 * MIB


@pytest.mark.parametrize("sender", ["raw", "vhd"])
@pytest_twisted.ensureDeferred
async def test_what_is_empty_takes_no_room(short_tmp: Path, sender: str) -> None:
    """Its holes are written as zeroes, and the file has holes there."""
    async with two_hosts(short_tmp, sender, "vhd", SMTimeouts()) as (ours, theirs):
        vdi = await make_disk(ours, SIZE, 4 * MIB)
        fresh, url = await begin_copy(ours, theirs, vdi, SIZE)
        assert url.url.startswith("nbds://")
        await until(ours, "copy-1", CopyState.READY)
        await ours.sr.copy_finish("copy-1")
        await theirs.sr.vdi_close_url(fresh, "migration-1")
        assert await compare(image(ours, vdi), image(theirs, fresh)) == ""
        assert image(theirs, fresh).stat().st_blocks * 512 < 16 * MIB
        await ours.sr.copy_cancel("copy-1")
