"""A daemon among storage backends that are broken: it says which and why, and serves with the others."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import XenAPI

pytestmark = pytest.mark.system

DRIVER = """
from xapi_migrate.testing.folder_backend import FolderDriver
class Driver(FolderDriver):
    name = {name!r}
    generation = {generation}
driver = Driver()
"""


def until(what: object, process: subprocess.Popen[str], log: Path) -> None:
    deadline = time.monotonic() + 60
    while not what():  # type: ignore[operator]
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)


def test_the_daemon_goes_on_and_names_them(short_tmp: Path) -> None:
    plugins = short_tmp / "site" / "twisted" / "plugins"
    plugins.mkdir(parents=True)
    (plugins / "sm_torn_plugin.py").write_text("import there_is_no_such_module")
    (plugins / "sm_old_plugin.py").write_text(DRIVER.format(name="old", generation=0))
    (plugins / "sm_other_plugin.py").write_text(DRIVER.format(name="file", generation=1))
    (plugins / "sm_good_plugin.py").write_text(DRIVER.format(name="good", generation=1))
    (plugins / "dropin.cache").mkdir()  # can be neither read nor written
    state, log = short_tmp / "state", short_tmp / "log"
    state.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(plugins.parents[1]), "XAPI_MIGRATE_PASSWORD": "secret"}
    command = [sys.executable, "-m", "xapi_migrate.cli"]
    (short_tmp / "password").write_text("secret\n")
    user = [*command, "user-set", "root", "--users", str(state / "users")]
    subprocess.run([*user, "--password-file", str(short_tmp / "password")], env=environment, check=True, timeout=60)
    serve = [*command, "serve", "--state-dir", str(state), "--listen", "tcp:0:interface=127.0.0.1"]
    with log.open("w") as output:
        process = subprocess.Popen(serve, env=environment, stdout=output, stderr=output, text=True)
    try:
        until(lambda: _port(process.pid), process, log)
        said = log.read_text()
        for name, reason in (
            ("sm_torn_plugin", "there_is_no_such_module"),
            ("old", "generation 0"),
            ("file", "there are two of this name"),
        ):
            assert re.search(rf"backend {name} cannot be used: .*{reason}", said), said
        session = XenAPI.Session(f"http://127.0.0.1:{_port(process.pid)}")
        session.login_with_password("root", "secret", "1.0", "test")
        types = session.xenapi.SR.get_supported_types()
        assert {"file", "good"} <= set(types) and "old" not in types
        (short_tmp / "sr").mkdir()
        (host,) = session.xenapi.host.get_all()
        config = {"location": str(short_tmp / "sr")}
        sr = session.xenapi.SR.create(host, config, "0", "works", "", "good", "user", False, {})
        assert session.xenapi.SR.get_VDIs(sr) == []
    finally:
        process.terminate()
        assert process.wait(60) == 0


def _port(pid: int) -> int:
    """The one that the process listens on, 0 if it does not yet."""
    found = subprocess.run(["ss", "-Hltnp"], capture_output=True, text=True, check=True).stdout
    ports = [re.search(r":(\d+)\s", line) for line in found.splitlines() if f"pid={pid}," in line]
    return int(ports[0][1]) if ports and ports[0] else 0
