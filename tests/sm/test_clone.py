"""Storage that was cloned: an SR and a VDI with the same uuids at both hosts, and other bytes."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import pytest_twisted

from tests.sm.two_hosts import MIB, Host, image, make_disk, open_sr, two_hosts
from xapi_migrate.sm.interfaces import CopyState

pytestmark = pytest.mark.system

SIZE = 8 * MIB
OTHER = b"not what is on the original"


@pytest.mark.parametrize("secure", [False, True], ids=["iscsi", "nbd-tls"])
@pytest.mark.parametrize("kind", ["raw", "qcow2"])
@pytest_twisted.ensureDeferred
async def test_a_clone_is_not_taken_for_the_same_disk(tmp_path: Path, kind: str, secure: bool) -> None:
    async with two_hosts(tmp_path, kind, kind) as (ours, theirs):
        vdi = await make_disk(ours, SIZE, filled=MIB)
        place = theirs.folder / "clone"
        shutil.copytree(ours.folder / "sr", place)
        clone = Host(theirs.services, open_sr(theirs.services, place, kind, ours.sr.uuid), theirs.folder)
        shared = Host(theirs.services, open_sr(theirs.services, ours.folder / "sr", kind, ours.sr.uuid), theirs.folder)
        copied = next(path for path in place.iterdir() if path.stem == vdi)
        with copied.open("r+b") as file:
            file.seek(-len(OTHER), 2)
            file.write(OTHER)
        before = copied.read_bytes(), image(ours, vdi).read_bytes()
        assert before[0] != before[1]
        for host, same in ((clone, False), (shared, True)):
            await host.sr.attach()
            assert [info.uuid for info in await host.sr.scan()] == [vdi]
            # as the receiver offers a disk that it has found
            url = await host.sr.vdi_dummy_url(vdi, SIZE, "migration-1", "127.0.0.1", secure)
            proof = await host.sr.same_disk_proof("migration-1")
            await ours.sr.vdi_copy(vdi, url, "copy-1", proof)
            status = await ours.sr.copy_state("copy-1")
            assert status.same_disk is same
            if same:
                assert status.state is CopyState.FINISHED
            else:
                assert status.state is CopyState.FAILED and "clones, not the same storage" in status.error
            await ours.sr.copy_cancel("copy-1")
            await host.sr.forget_proof("migration-1")
            await host.sr.vdi_close_url(vdi, "migration-1")
        assert (copied.read_bytes(), image(ours, vdi).read_bytes()) == before
