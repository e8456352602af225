"""`xapi-migrate demo`, whole."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

pytestmark = pytest.mark.system


def test_the_demo_says_that_all_went_well() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "xapi_migrate.cli", "demo"], capture_output=True, text=True, timeout=110, check=False,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"demo is Running on host2 now: moved in [0-9.]+ s, stopped for [0-9]+ ms\.", done.stdout)
    assert done.stdout.splitlines()[-4:] == [
        "  sequence: unbroken", "  guest's memory and disks: no complaint", "  lost writes: none",
        "  left on host1: nothing",
    ]  # fmt: skip
