"""Finding and ending what a lab's hosts leave: only what is surely theirs."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest
from pytest_twisted import ensureDeferred
from twisted.internet import reactor

from tests.leftovers import end_leftovers
from xapi_migrate.processes import child, remains
from xapi_migrate.processes.child import RECORD, ProcessName, boot_id, start_time


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(["sleep", "60"])
    yield process
    process.kill()
    process.wait()


def name_of(process: subprocess.Popen[bytes]) -> ProcessName:
    return ProcessName(process.pid, start_time(process.pid) or 0, boot_id())


def record(folder: Path, name: ProcessName) -> None:
    folder.mkdir(parents=True)
    (folder / RECORD).write_text(json.dumps(attrs.asdict(name)))


def test_children_are_found_by_their_records(short_tmp: Path, sleeper: subprocess.Popen[bytes]) -> None:
    record(short_tmp / "host1" / "domains" / "a", name_of(sleeper))
    assert remains.children(short_tmp) == {name_of(sleeper): short_tmp / "host1" / "domains" / "a"}


def test_a_recycled_pid_is_nobody(short_tmp: Path, sleeper: subprocess.Popen[bytes]) -> None:
    record(short_tmp / "a", attrs.evolve(name_of(sleeper), started=1))
    record(short_tmp / "b", attrs.evolve(name_of(sleeper), boot="another"))
    (short_tmp / "c").mkdir()
    (short_tmp / "c" / RECORD).write_text("{")
    assert remains.children(short_tmp) == {}


@pytest.mark.system
@ensureDeferred
async def test_what_has_no_record_yet_is_known_by_where_it_was_started(
    short_tmp: Path, sleeper: subprocess.Popen[bytes]
) -> None:
    folder = short_tmp / "host1" / "datapaths" / "a"
    script = "sleep 100 & wait"
    started = await child.spawn(reactor, folder, ["sh", "-c", script])
    beside = subprocess.Popen(["sleep", "60"], cwd=folder)
    try:
        assert remains.strays(short_tmp) == {}
        (folder / RECORD).unlink()
        assert remains.strays(short_tmp) == remains.children(short_tmp) == {started.name: folder}
        assert remains.strays(folder) == remains.strays(short_tmp / "host2") == {}
        assert remains.end_strays(short_tmp) == [f"process {started.pid} in {folder}"]
        assert not started.name.alive()
        assert beside.poll() is sleeper.poll() is None
    finally:
        beside.kill()
        beside.wait()
        end_leftovers(short_tmp)  # the script's own child


def test_end_kills_and_reaps(sleeper: subprocess.Popen[bytes]) -> None:
    name = name_of(sleeper)
    assert remains.end([name]) is True
    assert not name.alive()
    assert remains.end([name]) is True


def test_end_does_not_touch_a_stranger(sleeper: subprocess.Popen[bytes]) -> None:
    assert remains.end([attrs.evolve(name_of(sleeper), started=1)]) is True
    assert sleeper.poll() is None


def test_end_says_when_a_process_stays() -> None:
    script = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('x', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    try:
        assert remains.end([name_of(process)], signal.SIGTERM, patience=0.2) is False
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_command_line_is_found_word_for_word(short_tmp: Path) -> None:
    argv = [sys.executable, "-c", "import time; time.sleep(60)", str(short_tmp / "daemon.toml")]
    process = subprocess.Popen(argv)
    try:
        deadline = time.monotonic() + 10
        while not remains.with_command_line(argv) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert remains.with_command_line(argv) == [name_of(process)]
        assert remains.with_command_line([*argv, "more"]) == []
        assert remains.with_command_line(argv[:-1]) == []
    finally:
        process.kill()
        process.wait()


@pytest.mark.system
def test_mounts_below_a_folder_are_undone(short_tmp: Path) -> None:
    for name in ("outer", "beside it"):
        (short_tmp / name).mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(short_tmp / name)], check=True)
    (short_tmp / "outer" / "inner").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(short_tmp / "outer" / "inner")], check=True)
    assert set(remains.mounts(short_tmp)) == {str(short_tmp / name) for name in ("outer", "outer/inner", "beside it")}
    assert remains.mounts(short_tmp / "out") == []
    remains.unmount(short_tmp)
    assert remains.mounts(short_tmp) == []
