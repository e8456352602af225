from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def place(short_tmp: Path) -> Path:
    """A folder whose path alone is longer than a unix socket's address may be."""
    folder = short_tmp / ("a-long-name-" * 12)
    folder.mkdir()
    return folder
