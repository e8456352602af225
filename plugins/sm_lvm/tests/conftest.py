"""The stand-in for LVM's commands, in front of the real ones."""

from __future__ import annotations

from pathlib import Path

import pytest
from fake_group import FakeGroup, make_group


@pytest.fixture
def group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeGroup:
    """Empty; see `make_group`."""
    made, environment = make_group(tmp_path)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return made
