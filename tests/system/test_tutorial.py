"""docs/writing-a-backend.md, done as it says, in a virtual environment of its own."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import sysconfig
import time
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.system
ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "writing-a-backend.md"
PIP = """#!/bin/sh
# this machine's pip, without fetching anything
first=$1; shift
exec {python} -m pip --python {clean} --disable-pip-version-check "$first" --no-deps -q "$@"
"""


class Desk:
    """A folder to work in, and the commands of a virtual environment to which xapi_migrate's has been added."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        environment = folder / "venv"
        venv.create(environment, with_pip=False)
        self.bin = environment / "bin"
        site = next((environment / "lib").glob("python*/site-packages"))
        ours = [sysconfig.get_paths()["purelib"]]
        (site / "ours.pth").write_text("".join(f"import site; site.addsitedir({path!r})\n" for path in ours))
        clean = self.bin / "python"
        self._program("pip", PIP.format(python=sys.executable, clean=clean))
        self._program("xapi-migrate", f'#!/bin/sh\nexec {clean} -m xapi_migrate.cli "$@"\n')
        self._lab: subprocess.Popen[bytes] | None = None

    def _program(self, name: str, text: str) -> None:
        (self.bin / name).write_text(text)
        (self.bin / name).chmod(0o755)

    @property
    def environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL"))}
        return {**kept, "PATH": f"{self.bin}:{os.environ['PATH']}"}

    def do(self, commands: str) -> str:
        done = subprocess.run(
            ["sh", "-e", "-c", commands], cwd=self.folder, env=self.environment, capture_output=True, text=True,
            timeout=240, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{commands}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def begin(self, command: str) -> None:
        """In another terminal."""
        log = self.folder / "terminal"
        with log.open("wb") as terminal:
            self._lab = subprocess.Popen(
                ["sh", "-c", f"exec {command}"], cwd=self.folder, env=self.environment, stdout=terminal
            )
        deadline = time.monotonic() + 120
        while "Ctrl-C ends the lab" not in log.read_text():
            assert self._lab.poll() is None and time.monotonic() < deadline, "the lab did not come up"
            time.sleep(0.1)

    def close(self) -> None:
        if self._lab is not None:
            self._lab.send_signal(signal.SIGINT)
            self._lab.wait(60)


@pytest.fixture
def desk(short_tmp: Path) -> Iterator[Desk]:
    made = Desk(short_tmp)
    yield made
    made.close()


def test_it_can_be_followed(desk: Desk) -> None:
    printed = ""
    files: dict[str, str] = {}
    for language, block in re.findall(r"^```(\w+)\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL):
        if language == "python":
            name, _, code = block.removeprefix("# ").partition("\n")
            files[name] = f"{files[name]}\n{code}" if name in files else code
            (desk.folder / name).write_text(files[name])
        elif " lab " in block:
            desk.begin(block.strip())
        else:
            printed = desk.do(block)
        if "sm-check" in block and language == "sh":
            assert re.fullmatch(r"shelf 0.1: all \d\d checks passed\.", printed.splitlines()[-1])
    lines = printed.splitlines()
    assert [line for line in lines if "[" not in line] == ["host2 Running", "host1 Running"]
    hosts = [json.loads(line.replace("'", '"')) for line in lines if "[" in line]
    # both disks of the guest are on the receiver's shelf, and no longer on the sender's
    assert hosts == [["host2", "host2"], ["host1", "host1"]]
