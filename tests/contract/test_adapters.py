"""The suites' adapters: a backend that breaks the contract fails under each runner, one that keeps it passes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

MODULE = """
from functools import partial
from xapi_migrate.testing.adapters import for_pytest, for_trial
from xapi_migrate.testing.folder_backend import FolderBackend, FolderDriver
from xapi_migrate.testing.sm_contract import BACKEND_CHECKS
from xapi_migrate.testing.sr_hosts import one_sr

if {broken}:
    async def forgetful(self, name, value):
        pass
    FolderBackend.nonce_write = forgetful

KIT = partial(one_sr, FolderDriver(), FolderDriver().scratch)
{use}
"""
TRIAL = "ContractTests = for_trial(BACKEND_CHECKS, KIT)"
PYTEST = "test_contract = for_pytest(BACKEND_CHECKS, KIT)"


def ran(folder: Path, use: str, broken: bool) -> subprocess.CompletedProcess[str]:
    (folder / "test_mine.py").write_text(MODULE.format(use=use, broken=broken))
    runner = ["twisted.trial", "--reactor=default"] if use is TRIAL else ["pytest", "-q", "-p", "no:cacheprovider"]
    argv = [sys.executable, "-m", *runner, "test_mine" if use is TRIAL else "test_mine.py"]
    return subprocess.run(argv, cwd=folder, capture_output=True, text=True, timeout=100, check=False)


@pytest.mark.parametrize("use", [TRIAL, PYTEST], ids=["trial", "pytest"])
def test_both_runners_tell_a_good_backend_from_a_bad_one(tmp_path: Path, use: str) -> None:
    done = ran(tmp_path, use, broken=False)
    assert done.returncode == 0, done.stdout + done.stderr
    done = ran(tmp_path, use, broken=True)
    assert done.returncode != 0
    assert "check_backend_nonce" in done.stdout and "check_backend_full" not in done.stdout.split("FAIL", 1)[1]
