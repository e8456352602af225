"""docs/operations.md: `pip install . ./plugins/sm_file` into a virtual environment, where pip puts the plug-ins into
the same folder as Twisted's own (an editable install, such as `make setup`'s, does not)."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

import twisted

pytestmark = pytest.mark.system
ROOT = Path(__file__).resolve().parents[2]
NOT_COPIED = shutil.ignore_patterns(".*", "*.egg-info", "build", "tests", "__pycache__")


@pytest.fixture
def installed(short_tmp: Path) -> Path:
    """The folder of commands of a virtual environment with Twisted and what was installed from a copy of the tree.
    What else is needed is borrowed from the environment of the tests, without its editable installs."""
    environment = short_tmp / "venv"
    venv.create(environment, with_pip=False)
    site = next((environment / "lib").glob("python*/site-packages"))
    shutil.copytree(Path(twisted.__file__).parent, site / "twisted", ignore=shutil.ignore_patterns("test"))
    (site / "borrowed.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    tree = short_tmp / "tree"
    shutil.copytree(ROOT, tree, ignore=NOT_COPIED)
    pip = [sys.executable, "-m", "pip", "--python", str(environment / "bin/python"), "--disable-pip-version-check"]
    done = subprocess.run(
        [*pip, "install", "-q", "--no-deps", str(tree), str(tree / "plugins/sm_file")],
        cwd=short_tmp, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return environment / "bin"


def said(*argv: str | Path) -> str:
    done = subprocess.run(argv, cwd="/", capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_backends_and_the_daemon_are_found(installed: Path) -> None:
    assert "file  0.1.0" in said(installed / "xapi-migrate", "sm-list")
    assert "twisted" not in said(installed / "xapi-migrate", "sm-list")
    assert "--show-config" in said(installed / "python", "-m", "twisted", "xapi-migrate", "--help")
