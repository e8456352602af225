"""What the folders of datapaths and copies keep, also where the file system is full."""

from __future__ import annotations

from pathlib import Path

from twisted.internet import defer
from twisted.internet.task import Clock

from tests.small_disk import fill
from xapi_migrate.sm import copy_account as copying
from xapi_migrate.sm.behind import Behind
from xapi_migrate.sm.copy import Copy
from xapi_migrate.sm.copy_account import CopyOf, keep_copy, read_copy
from xapi_migrate.sm.datapath_state import DOMAIN, DatapathOf, Kept, read_state, save_state
from xapi_migrate.sm.interfaces import CopyState, CopyStatus, TargetUrl
from xapi_migrate.sm.timeouts import SMTimeouts
from xapi_migrate.sm.with_room import RESERVED


def kept(active: bool, path: str = "/image") -> Kept:
    return Kept(DatapathOf("sr", "vdi", path, "raw", 1 << 20, False), {DOMAIN: active}, closed=not active)


def test_a_full_disk_does_not_keep_a_disk_from_its_guest(small_disk: Path) -> None:
    """It was deactivated to move and is activated again, for the migration failed."""
    save_state(small_disk, kept(True))
    fill(small_disk)
    for active in (False, True, False):
        save_state(small_disk, kept(active))
        assert read_state(small_disk) == kept(active)


def test_a_full_disk_does_not_keep_a_copy_from_its_end(small_disk: Path) -> None:
    of, url = CopyOf("ref", "sr", "vdi"), TargetUrl("iscsi://127.0.0.1:3260/iqn/1", "user", "x" * 64)
    keep_copy(small_disk, copying.Kept(of, url, CopyStatus(CopyState.READY, 1, 2), True))
    fill(small_disk)
    end = copying.Kept(of, None, CopyStatus(CopyState.FINISHED, 2, 2), True)
    keep_copy(small_disk, end)
    assert read_copy(small_disk) == end
    assert (small_disk / "copy.json").stat().st_mode & 0o777 == 0o600


def test_the_end_of_a_copy_is_told_though_it_cannot_be_written(tmp_path: Path) -> None:
    """Or a roll-back would wait for it, and the guest for that."""

    async def release() -> None:
        pass

    copy = Copy(Clock(), tmp_path, CopyOf("ref", "sr", "vdi"), SMTimeouts(), Behind(Clock()), release)
    waiting: defer.Deferred[None] = defer.Deferred()
    copy._ended.append(waiting)
    (tmp_path / "copy.json.new").mkdir()
    copy._end("cancelled")
    assert waiting.called
    assert copy.over


def test_a_long_record_is_followed_by_a_short_one(tmp_path: Path) -> None:
    for path in ("/image", "/" + "x" * 2 * RESERVED, "/image"):
        save_state(tmp_path, kept(True, path))
        assert read_state(tmp_path) == kept(True, path)


def test_what_a_crash_has_left_of_a_draft_is_written_over(tmp_path: Path) -> None:
    (tmp_path / "state.json.new").write_bytes(b"{" * 3 * RESERVED)
    save_state(tmp_path, kept(False))
    assert read_state(tmp_path) == kept(False)
