"""The stand-in for LVM's commands, in front of the real ones."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from fake_group import MIB, FakeGroup


@pytest.fixture
def group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeGroup:
    """Empty, 128 MiB, with a thin pool "pool" of 64 MiB more."""
    home, programs = tmp_path / "lvm", tmp_path / "bin"
    home.mkdir()
    programs.mkdir()
    for name in ("lvm", "blkdiscard"):
        shutil.copy(Path(__file__).with_name("fake_lvm.py"), programs / name)
        (programs / name).chmod(0o755)
    pool = {"size": 64 * MIB, "tags": [], "pool": "", "thin_pool": True, "zero": True}
    state = {"name": "vg0", "size": 192 * MIB, "tags": ["of_somebody"], "volumes": {"pool": pool}}
    (home / "state.json").write_text(json.dumps(state))
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_LVM", str(home))
    return FakeGroup(home)
