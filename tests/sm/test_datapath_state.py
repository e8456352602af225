"""What a datapath's folder keeps: also where the file system is full."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from xapi_migrate.sm.datapath_state import DOMAIN, RESERVED, DatapathOf, Kept, read_state, save_state


@pytest.fixture
def small_disk(short_tmp: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m,mode=700", "tmpfs", str(short_tmp)], check=True)
    try:
        yield short_tmp
    finally:
        subprocess.run(["umount", str(short_tmp)], check=True)


def kept(active: bool, path: str = "/image") -> Kept:
    return Kept(DatapathOf("sr", "vdi", path, "raw", 1 << 20, False), {DOMAIN: active}, closed=not active)


def test_a_full_disk_does_not_keep_a_disk_from_its_guest(small_disk: Path) -> None:
    """It was deactivated to move and is activated again, for the migration failed."""
    save_state(small_disk, kept(True))
    with pytest.raises(OSError, match="No space left"), (small_disk / "filler").open("wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass
    for active in (False, True, False):
        save_state(small_disk, kept(active))
        assert read_state(small_disk) == kept(active)


def test_a_long_record_is_followed_by_a_short_one(tmp_path: Path) -> None:
    for path in ("/image", "/" + "x" * 2 * RESERVED, "/image"):
        save_state(tmp_path, kept(True, path))
        assert read_state(tmp_path) == kept(True, path)


def test_what_a_crash_has_left_of_a_draft_is_written_over(tmp_path: Path) -> None:
    (tmp_path / "state.json.new").write_bytes(b"{" * 3 * RESERVED)
    save_state(tmp_path, kept(False))
    assert read_state(tmp_path) == kept(False)
