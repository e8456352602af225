"""A file is what it was or what it is to be, for its owner alone, and outlives a loss of power where that matters."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.small_disk import fill
from xapi_migrate.whole_file import write_whole


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was made durable and renamed, in order, by name."""
    seen: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def sync(descriptor: int) -> None:
        seen.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        fsync(descriptor)

    def rename(self: Path, target: Path) -> Path:
        seen.append(f"{self.name} to {target.name}")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(Path, "replace", rename)
    return seen


def test_it_is_on_disk_before_it_has_its_name_and_the_name_is_too(tmp_path: Path, done: list[str]) -> None:
    path = tmp_path / "note"
    write_whole(path, "é")
    assert done == ["note.new", "note.new to note", tmp_path.name]
    assert path.read_text("utf-8") == "é"
    write_whole(path, b"\0\xff", durable=False)
    assert done[3:] == ["note.new to note"] and path.read_bytes() == b"\0\xff"


@pytest.mark.parametrize("umask", [0, 0o077])
@pytest.mark.parametrize("mode", [0o600, 0o644, 0o755])
def test_its_mode_is_what_was_asked_for(tmp_path: Path, mode: int, umask: int) -> None:
    path = tmp_path / "note"
    for leftover in (path, tmp_path / "note.new"):  # a draft that everybody may read, of a daemon that was killed
        leftover.write_text("secret")
        leftover.chmod(0o666)
    before = os.umask(umask)
    try:
        write_whole(path, "x", mode)
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == mode
    assert list(tmp_path.iterdir()) == [path]


def test_a_draft_is_its_owners_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[int] = []
    chmod = os.fchmod

    def note(descriptor: int, mode: int) -> None:
        modes.append(os.fstat(descriptor).st_mode & 0o777)
        chmod(descriptor, mode)

    monkeypatch.setattr(os, "fchmod", note)
    before = os.umask(0)
    try:
        write_whole(tmp_path / "note", "x", 0o644)
    finally:
        os.umask(before)
    assert modes == [0o600]


def test_where_there_is_no_room_the_old_one_stays_and_no_draft(small_disk: Path) -> None:
    path = small_disk / "note"
    write_whole(path, "old")
    fill(small_disk)
    with pytest.raises(OSError, match=f"No space left on device: '{small_disk}'"):
        write_whole(path, "new" * 10_000)
    assert path.read_text() == "old"
    assert not (small_disk / "note.new").exists()
