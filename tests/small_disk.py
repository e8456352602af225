"""What fills the file system of the fixture `small_disk`."""

from __future__ import annotations

from pathlib import Path

import pytest


def fill(folder: Path) -> None:
    """Until not one byte more can be written."""
    with pytest.raises(OSError, match="No space left"), (folder / "filler").open("wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass
