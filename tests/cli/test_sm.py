"""sm-check and sm-new."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.cli.conftest import Run

PLUGIN = """
from xapi_migrate.testing.folder_backend import FolderBackend, FolderDriver
class Backend(FolderBackend):
    async def nonce_read(self, name):
        return "always"
class Driver(FolderDriver):
    name = "forgetful"
    def open_sr(self, config):
        from pathlib import Path
        return Backend(config.uuid, Path(config.device_config["location"]))
driver = Driver()
"""


@pytest.fixture
def plugins(tmp_path: Path, environment: dict[str, str]) -> Path:
    """A folder whose drop-ins the command finds."""
    folder = tmp_path / "site" / "twisted" / "plugins"
    folder.mkdir(parents=True)
    environment["PYTHONPATH"] = str(tmp_path / "site")
    return folder


@pytest.mark.system
def test_a_backend_that_keeps_the_contract(run: Run) -> None:
    done = run("sm-check", "file", "--device-config", "location={folder}", "--device-config", "format=qcow2")
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.fullmatch(r"file 0.1.0: all \d\d checks passed\.", done.stdout.splitlines()[-1])


@pytest.mark.system
def test_one_that_does_not(run: Run, plugins: Path) -> None:
    (plugins / "forgetful.py").write_text(PLUGIN)
    done = run("sm-check", "forgetful", "--json")
    assert done.returncode == 1, done.stderr
    failed = {verdict["check"]: verdict for verdict in json.loads(done.stdout) if verdict["failure"]}
    assert "check_backend_nonce" in failed and "check_same_disk" in failed and "check_gate" not in failed
    assert "sm_contract_backend.py:" in failed["check_backend_nonce"]["failure"]


def test_an_sr_with_vdis_in_it_is_not_touched(run: Run, tmp_path: Path) -> None:
    vdi = tmp_path / "11111111-2222-4333-8444-555555555555.raw"
    vdi.write_bytes(bytes(512))
    done = run("sm-check", "file", "--device-config", f"location={tmp_path}")
    assert done.returncode == 1 and "is no scratch SR" in done.stdout and " ok " not in done.stdout
    assert vdi.exists()


def test_a_broken_one_is_told_with_its_reason(run: Run, plugins: Path) -> None:
    (plugins / "sm_torn_plugin.py").write_text("import there_is_no_such_module")
    (plugins / "dropin.cache").write_bytes(b"rubbish")
    done = run("sm-check", "torn")
    assert done.returncode == 1 and "there_is_no_such_module" in done.stderr
    listed = {row["type"]: row["problem"] for row in json.loads(run("sm-list", "--json").stdout)}
    assert listed["file"] == "" and "there_is_no_such_module" in listed["sm_torn_plugin"]
    assert (plugins / "dropin.cache").read_bytes() == b"rubbish"


def test_wrong_arguments(run: Run, tmp_path: Path) -> None:
    assert "No storage backend named nothing" in run("sm-check", "nothing").stderr
    assert run("sm-check", "file", "--device-config", "location").returncode == 2
    for name in ("Upper", "a-b", "7up", "../up", "_a"):
        assert run("sm-new", name, "--into", str(tmp_path)).returncode == 2
    assert list(tmp_path.iterdir()) == []


def test_a_new_backend_does_not_replace_anything(run: Run, tmp_path: Path) -> None:
    assert run("sm-new", "sm_thing", "--into", str(tmp_path)).returncode == 0
    assert "is there already" in run("sm-new", "thing", "--into", str(tmp_path)).stderr
    driver = (tmp_path / "sm_thing" / "sm_thing" / "driver.py").read_text()
    assert "class ThingDriver" in driver and "Folder" not in driver
