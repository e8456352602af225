"""scripts/setup on machines in several states; the machine's own programs are replaced by small scripts that log."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


class Machine:
    """A copy of what setup reads, with stand-ins for the programs that would change the machine."""

    def __init__(self, folder: Path) -> None:
        self.tree = folder / "tree"
        self.bin = folder / "bin"
        self.log = folder / "log"
        self.policy = folder / "policy-rc.d"
        for name in ("scripts/setup", "scripts/apt-packages", "setup.cfg", "pyproject.toml"):
            (self.tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, self.tree / name)
        self.plugin = self.tree / "plugins" / "sm_thing"
        self.plugin.mkdir(parents=True)
        (self.plugin / "setup.cfg").write_text("[metadata]\nname = sm_thing\n")
        self.bin.mkdir()
        (self.tree / ".venv" / "bin").mkdir(parents=True)
        self.program("id", "echo 0")
        self.program("dpkg-query", "echo installed")
        self.program("apt-get", "exit 0")
        self.program("systemctl", "exit 0")
        self.venv_python("install -m 755 /dev/null .venv/bin/xapi-migrate")

    def program(self, name: str, body: str, folder: Path | None = None) -> None:
        path = (folder or self.bin) / name
        path.write_text(f'#!/bin/sh\necho "{name} $*" >>{self.log}\n{body}\n')
        path.chmod(0o755)

    def venv_python(self, pip_install: str) -> None:
        self.program("python", f"case $* in *'pip install'*) {pip_install} ;; esac", self.tree / ".venv" / "bin")

    def setup(self) -> subprocess.CompletedProcess[str]:
        self.log.write_text("")
        environment = {**os.environ, "PATH": f"{self.bin}:{os.environ['PATH']}", "SETUP_POLICY": str(self.policy)}
        argv = ["sh", str(self.tree / "scripts" / "setup")]
        return subprocess.run(argv, env=environment, capture_output=True, text=True, check=False, timeout=60)

    def calls(self, word: str) -> list[str]:
        return [line for line in self.log.read_text().splitlines() if word in line]


@pytest.fixture
def machine(short_tmp: Path) -> Machine:
    return Machine(short_tmp)


def without(package: str) -> str:
    """The body of a dpkg-query that misses one package."""
    return f'case "$*" in *" {package}") exit 1 ;; *) echo installed ;; esac'


def test_the_first_run_installs_the_project_and_its_plugins(machine: Machine) -> None:
    done = machine.setup()
    assert done.returncode == 0, done.stderr
    installs = machine.calls("pip install")
    assert [line.split("--editable ")[1] for line in installs] == [".[test]", "./plugins/sm_thing"]
    assert all("editable_mode=compat" in line for line in installs)
    assert machine.calls("apt-get") == []


def test_the_second_run_does_nothing(machine: Machine) -> None:
    machine.setup()
    done = machine.setup()
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert machine.calls("pip install") == machine.calls("apt-get") == []


@pytest.mark.parametrize("name", ["setup.cfg", "scripts/apt-packages", "plugins/sm_thing/setup.cfg"])
def test_a_change_that_matters_installs_again(machine: Machine, name: str) -> None:
    machine.setup()
    with (machine.tree / name).open("a") as file:
        file.write("\n# changed\n")
    assert machine.setup().returncode == 0
    assert len(machine.calls("pip install")) == 2


def test_only_what_is_missing_is_fetched(machine: Machine) -> None:
    machine.program("dpkg-query", without("tgt"))
    done = machine.setup()
    assert done.returncode == 0, done.stderr
    (call,) = machine.calls("apt-get")
    assert call.split()[-1] == "tgt"
    assert "qemu" not in call


def test_node_from_elsewhere_does(machine: Machine) -> None:
    machine.program("dpkg-query", 'case "$*" in *" nodejs"|*" npm") exit 1 ;; *) echo installed ;; esac')
    for name in ("node", "npm"):
        machine.program(name, "exit 0")
    assert machine.setup().returncode == 0
    assert machine.calls("apt-get") == []


def test_no_service_starts_by_being_installed(machine: Machine) -> None:
    machine.program("dpkg-query", without("tgt"))
    machine.program("apt-get", f"{machine.policy}; test $? = 101")
    assert machine.setup().returncode == 0
    assert not machine.policy.exists()
    assert machine.calls("systemctl") == ["systemctl disable tgt.service"]


def test_a_policy_of_the_machine_stays(machine: Machine) -> None:
    machine.program("dpkg-query", without("nasm"))
    machine.policy.write_text("#!/bin/sh\nexit 101\n")
    assert machine.setup().returncode == 0
    assert machine.policy.exists()
    assert machine.calls("systemctl") == []


def test_package_lists_are_fetched_only_where_that_failed(machine: Machine) -> None:
    machine.program("dpkg-query", without("tgt"))
    machine.program("apt-get", f'case "$1" in update) : >{machine.bin}/lists ;; *) test -e {machine.bin}/lists ;; esac')
    assert machine.setup().returncode == 0
    assert [call.split()[1] for call in machine.calls("apt-get")] == ["install", "update", "install"]


def test_a_package_that_cannot_be_had(machine: Machine) -> None:
    machine.program("dpkg-query", without("tgt"))
    machine.program("apt-get", 'test "$1" = update')
    done = machine.setup()
    assert done.returncode == 1
    assert done.stderr.endswith("setup: these packages could not be installed: tgt\n")
    assert machine.calls("pip") == []


def test_without_root_it_says_what_is_missing(machine: Machine) -> None:
    machine.program("id", "echo 1000")
    machine.program("dpkg-query", without("tgt"))
    done = machine.setup()
    assert done.returncode == 1
    assert done.stderr.endswith("install them as root, then try again: apt-get install tgt\n")
    assert machine.calls("apt-get") == []


def test_pip_that_fails_is_said_and_tried_again(machine: Machine) -> None:
    machine.venv_python("echo no network; exit 1")
    for _ in range(2):
        done = machine.setup()
        assert done.returncode == 1
        assert "no network\nsetup: pip could not install into .venv" in done.stderr
        assert len(machine.calls("pip install")) == 1
