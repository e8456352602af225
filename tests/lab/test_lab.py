"""The lab as its users know it: a command, a description, and nothing left in the end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.leftovers import processes
from xapi_migrate.cli.connection import Server
from xapi_migrate.lab.lab import Lab
from xapi_migrate.processes.remains import mounts
from xapi_migrate.testing.guests import ticker

pytestmark = pytest.mark.system


@contextmanager
def lab(folder: Path, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    """`xapi-migrate lab` with the description that it printed."""
    process = subprocess.Popen(
        [sys.executable, "-m", "xapi_migrate.cli", "lab", "--dir", str(folder), "--json", *arguments],
        stdout=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        lines = []
        for line in process.stdout:
            lines.append(line)
            if line == "}\n":
                break
        yield process, json.loads("".join(lines) or "{}")
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        finally:
            process.kill()
            process.stdout.close()


def console_of(said: dict[str, Any]) -> Path:
    host = said["hosts"][0]
    return Path(host["state_dir"]) / "consoles" / f"{said['vms'][0]['uuid']}.log"


def wait_for_lines(console: Path, count: int) -> list[int]:
    deadline = time.monotonic() + 60
    while len(counters := ticker.read(console).counters) < count:
        assert time.monotonic() < deadline, f"{len(counters)} lines in {console}"
        time.sleep(0.1)
    return counters


def test_a_lab_from_beginning_to_end(short_tmp: Path) -> None:
    with lab(short_tmp / "lab") as (process, said):
        assert json.loads((short_tmp / "lab" / "lab.json").read_text()) == said
        assert (short_tmp / "lab" / "lab.json").stat().st_mode & 0o777 == 0o600
        assert [host["name"] for host in said["hosts"]] == ["host1", "host2"]
        for host in said["hosts"]:
            assert sorted(host["srs"]) == ["local-qcow2", "local-raw"]
            cmdline = Path(f"/proc/{host['pid']}/cmdline").read_bytes().decode().split("\0")
            assert cmdline[:-1] == host["argv"]
            for url in (host["url"], host["https_url"]):
                with Server(url, host["username"], host["password"], ca_file=host["ca_file"]).session() as session:
                    (ref,) = session.xenapi.host.get_all()
                    assert session.xenapi.host.get_name_label(ref) == host["name"]
        (vm,) = said["vms"]
        assert (vm["name_label"], vm["host"]) == ("demo", "host1")
        wait_for_lines(console_of(said), 20)
        second = subprocess.run(
            [sys.executable, "-m", "xapi_migrate.cli", "lab", "--dir", str(short_tmp / "lab")], capture_output=True,
            text=True, timeout=60, check=False,
        )  # fmt: skip
        assert second.returncode == 1
        assert f"(process {process.pid})" in second.stderr
    assert process.returncode == 0
    assert processes(short_tmp) == {}
    assert mounts(short_tmp) == []
    assert not (short_tmp / "lab" / "lab.json").exists()


def test_daemons_may_be_killed_and_started_again_by_anyone(short_tmp: Path) -> None:
    with lab(short_tmp / "lab", "--hosts", "1") as (_, said):
        (host,) = said["hosts"]
        counters = wait_for_lines(console_of(said), 20)
        os.kill(host["pid"], signal.SIGKILL)
        wait_for_lines(console_of(said), len(counters) + 50)  # the guest does not need its daemon
        again = subprocess.Popen(host["argv"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        assert said["vms"][0]["uuid"] in str(wait_for_vms(host))
        assert ticker.read(console_of(said)).breaks == []
    assert again.wait(10) == 0
    assert processes(short_tmp) == {}


def wait_for_vms(host: dict[str, Any]) -> Any:
    deadline = time.monotonic() + 60
    while True:
        try:
            with Server(host["url"], host["username"], host["password"]).session() as session:
                return session.xenapi.VM.get_all_records()
        except Exception:
            assert time.monotonic() < deadline
            time.sleep(0.1)


def test_a_lab_that_was_killed_is_cleaned_up_by_the_next(short_tmp: Path) -> None:
    with lab(short_tmp / "lab", "--hosts", "1") as (process, said):
        wait_for_lines(console_of(said), 5)
        process.kill()
        process.wait()
        first = said["hosts"][0]["pid"]
    assert first in processes(short_tmp)
    with lab(short_tmp / "lab", "--hosts", "1") as (_, said):
        assert first not in processes(short_tmp)
        assert len(wait_for_lines(console_of(said), 5)) >= 5
    assert processes(short_tmp) == {}


def test_other_peoples_folders_are_left_alone(short_tmp: Path) -> None:
    (short_tmp / "precious").write_text("keep")
    done = subprocess.run(
        [sys.executable, "-m", "xapi_migrate.cli", "lab", "--dir", str(short_tmp)], capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "holds other things (precious)" in done.stderr
    assert [path.name for path in short_tmp.iterdir()] == ["precious"]


def test_a_lab_whose_folder_was_taken_away_ends_only_its_own_daemons(short_tmp: Path) -> None:
    """Another lab in a new folder of the same name has daemons with the same command lines."""
    first, second = Lab(short_tmp / "lab", 1), Lab(short_tmp / "lab", 1)
    with first:
        first.folder.rename(short_tmp / "old")
        with second:
            started = first.hosts[0].process
            first.end()
            assert started is not None and not started.alive()
            assert second.hosts[0].alive
            second.hosts[0].wait_ready()
    assert not second.hosts[0].alive
