"""The rules that tests/rules.py lays on every test are themselves tested: each of them can fail."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from tests.leftovers import end_leftovers, processes

ROOT = Path(__file__).resolve().parent.parent


def run(folder: Path, test: str) -> subprocess.CompletedProcess[str]:
    """Run one test file in a session of its own, under the rules of this project."""
    (folder / "test_inner.py").write_text(test)
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-c", str(ROOT / "setup.cfg"), f"--rootdir={folder}",
         f"--confcutdir={folder}", "-p", "tests.rules", f"--basetemp={folder}/base", str(folder / "test_inner.py")],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip


def wait_for(folder: Path) -> None:
    for _ in range(100):
        if processes(folder):
            return
        time.sleep(0.02)
    raise AssertionError("the process did not come up")


def test_a_process_that_works_in_the_folder_is_found_and_ended(short_tmp: Path) -> None:
    process = subprocess.Popen(["sleep", "60"], cwd=short_tmp)
    wait_for(short_tmp)
    assert list(processes(short_tmp)) == [process.pid]
    assert end_leftovers(short_tmp) == [f"process {process.pid}: sleep 60 "]
    assert process.wait(5) == -9
    assert end_leftovers(short_tmp) == []


def test_a_process_that_names_the_folder_is_found(short_tmp: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", f"unix:{short_tmp}/socket"])
    try:
        wait_for(short_tmp)
        assert list(processes(short_tmp)) == [process.pid]
    finally:
        process.kill()
        process.wait()


def test_a_hanging_asynchronous_test_fails(short_tmp: Path) -> None:
    done = run(
        short_tmp,
        "import pytest, pytest_twisted\n"
        "from twisted.internet import defer\n"
        "@pytest.mark.limit(0.2)\n"
        "@pytest_twisted.ensureDeferred\n"
        "async def test_hangs():\n"
        "    await defer.Deferred()\n"
        "@pytest_twisted.ensureDeferred\n"
        "async def test_works():\n"
        "    await defer.succeed(None)\n",
    )
    assert done.returncode == 1, done.stdout
    assert "TimeoutError" in done.stdout
    assert "1 failed, 1 passed" in done.stdout


def test_a_failing_asynchronous_test_fails(short_tmp: Path) -> None:
    done = run(
        short_tmp,
        "import pytest_twisted\n@pytest_twisted.ensureDeferred\nasync def test_fails():\n    assert 'one' == 'two'\n",
    )
    assert done.returncode == 1, done.stdout
    assert "assert 'one' == 'two'" in done.stdout


def test_a_dropped_error_fails(short_tmp: Path) -> None:
    done = run(
        short_tmp,
        "import gc\nfrom twisted.internet import defer\n"
        "def test_drops():\n    defer.fail(ValueError('nobody listened'))\n    gc.collect()\n",
    )
    assert done.returncode == 1, done.stdout
    assert "nobody listened" in done.stdout


def test_a_process_left_in_short_tmp_fails(short_tmp: Path) -> None:
    done = run(
        short_tmp,
        "import subprocess\ndef test_leaves(short_tmp):\n    subprocess.Popen(['sleep', '60'], cwd=short_tmp)\n",
    )
    assert done.returncode == 1, done.stdout
    assert "left behind: process" in done.stdout


def test_a_process_left_in_tmp_path_fails_the_session(short_tmp: Path) -> None:
    done = run(
        short_tmp,
        "import subprocess\ndef test_leaves(tmp_path):\n    subprocess.Popen(['sleep', '60'], cwd=tmp_path)\n",
    )
    assert done.returncode == 1, done.stdout
    assert "left behind by this session: process" in done.stdout


def test_who_left_it_is_named(short_tmp: Path) -> None:
    done = run(
        short_tmp,
        "import pytest, subprocess\npytestmark = pytest.mark.system\n"
        "def test_is_tidy(tmp_path):\n    pass\n"
        "def test_leaves(tmp_path):\n    subprocess.Popen(['sleep', '60'], cwd=tmp_path)\n"
        "def test_is_tidy_too(tmp_path):\n    pass\n",
    )
    assert done.returncode == 1, done.stdout
    assert "sleep 60  (first seen after test_inner.py::test_leaves)" in done.stdout


def test_a_thread_left_running_fails_the_session_and_does_not_hold_it_up(short_tmp: Path) -> None:
    done = run(
        short_tmp,
        "from threading import Thread\nimport time\n"
        "def test_leaves():\n    Thread(target=time.sleep, args=[600], name='lazy').start()\n",
    )
    assert done.returncode == 1, done.stdout
    assert "1 passed" in done.stdout
    assert "a thread was left running by this session: lazy" in done.stdout
