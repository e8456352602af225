"""sm_lvm on real LVM. pytest finds it by its name only: it runs in the virtual machine of `make test-lvm`.

The tests that elsewhere run on the stand-in for LVM's commands are run here as they are: that is what shows that it may
stand in.
"""

from __future__ import annotations

import os
import subprocess
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import pytest_twisted
from real_group import RealGroup, lvm
from sm_lvm.driver import LVMDriver
from test_lvm_contract import test_lvm_backend
from test_lvm_copy import (
    test_a_restarted_daemon_keeps_what_is_attached,
    test_motion_from_and_to_files,
    test_to_files_and_back,
)

from xapi_migrate.errors import SrBackendFailure
from xapi_migrate.sm.interfaces import IAttachesVDIs
from xapi_migrate.testing.sm_contract import SR_CHECKS, SRKit
from xapi_migrate.testing.sr_hosts import two_srs

__all__ = [
    "test_a_restarted_daemon_keeps_what_is_attached",
    "test_lvm_backend",
    "test_motion_from_and_to_files",
    "test_to_files_and_back",
]
MIB = 1 << 20
pytestmark = pytest.mark.limit(600)


@pytest.mark.parametrize("check", SR_CHECKS, ids=lambda check: check.__name__)
@pytest_twisted.ensureDeferred
async def test_lvm_sr(
    check: Callable[[SRKit], Awaitable[None]], group: RealGroup, other_group: RealGroup, short_tmp: Path
) -> None:
    ours, theirs = ((LVMDriver(), lambda _, one=one: {"volume_group": one.name}) for one in (group, other_group))
    async with two_srs(ours, theirs, short_tmp, group.timeouts) as kit:
        await check(kit)


def test_discards_do_not_zero_the_disk(group: RealGroup) -> None:
    """Else nothing here would show that zeroes are written where a file would get holes."""
    lvm("lvcreate", "--yes", "--name", "old", "--size", "8m", "--zero", "n", "--wipesignatures", "n", group.name)
    device, content = Path("/dev") / group.name / "old", os.urandom(8 * MIB)
    device.write_bytes(content)
    subprocess.run(["blkdiscard", device], check=True)
    same = device.read_bytes() == content
    lvm("lvremove", "--yes", f"{group.name}/old")
    assert same


@pytest_twisted.ensureDeferred
async def test_a_volume_that_is_open_stays_active(group: RealGroup) -> None:
    backend, vdi = group.sr(), str(uuid.uuid4())
    await backend.vdi_create(vdi, 8 * MIB)
    assert IAttachesVDIs.providedBy(backend)
    await backend.vdi_attach(vdi)
    with (await backend.vdi_location(vdi)).path.open("rb"):
        await backend.vdi_keep([])
        assert group.active() == [vdi]
        for call in (backend.vdi_detach(vdi), backend.vdi_destroy(vdi)):
            with pytest.raises(SrBackendFailure, match="in use"):
                await call
    await backend.vdi_destroy(vdi)
    assert group.volumes() == {"pool"}
