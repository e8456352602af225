"""The runner of the matrix: every case runs in one lane, and no way of failing passes for success."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.faults import lanes

ROOT = Path(__file__).resolve().parent.parent.parent


def ran(folder: Path, test: str, of: int = 2) -> lanes.Tally:
    path = folder / "test_inner.py"
    path.write_text(test)
    with lanes.Lanes(of, ["-q", str(path)]) as all_lanes:
        all_lanes.run()
    return all_lanes.tally


def test_each_case_runs_once_and_all_count(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    test = (
        "import pathlib, pytest\n"
        "@pytest.mark.parametrize('n', range(7))\n"
        f"def test_a(n):\n    assert (pathlib.Path({str(tmp_path)!r}) / f'{{n}}').mkdir() is None\n    assert n != 4\n"
        "@pytest.fixture\ndef badly_ended():\n    yield\n    assert 0, 'at the end'\n"
        "def test_b(badly_ended):\n    pass\n"
    )
    tally = ran(tmp_path, test, 3)
    assert (tally.passed, len(tally.cases), tally.problems, tally.right) == (6, 8, [], False)
    tally.show(60)
    said = capsys.readouterr().out
    assert "assert 4 != 4" in said
    assert f"failed: FAULTS=all .venv/bin/python -m pytest '{next(c for c in tally.failed if '[4]' in c)}'" in said
    assert said.endswith("\nfault matrix: 6 of 8 ended right\n")


def test_all_right(tmp_path: Path) -> None:
    """Fewer cases than lanes too."""
    assert ran(tmp_path, "def test_a(): pass\n").right


def test_no_case_is_no_success(tmp_path: Path) -> None:
    assert not ran(tmp_path, "").right


def test_a_lane_that_dies_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    test = "import os\ndef test_a(): pass\ndef test_b(): os._exit(0)\ndef test_c(): pass\ndef test_d(): pass\n"
    tally = ran(tmp_path, test)
    assert (tally.passed, len(tally.cases)) == (2, 4)
    assert "lane 2: pytest ended with status 0" in tally.problems[0]
    tally.show(60)
    assert "\n2 were not run\n" in capsys.readouterr().out


def test_a_process_left_behind_is_told(tmp_path: Path) -> None:
    test = "import os, subprocess\ndef test_a(): subprocess.Popen(['sleep', '60'], cwd=os.environ['TMPDIR'])\n"
    tally = ran(tmp_path, test)
    assert "lane 1 left behind: process" in tally.problems[0]
    assert not tally.right


def test_a_lane_ends_with_the_others_when_interrupted(tmp_path: Path) -> None:
    """Its fixtures clean up, and what they leave goes."""
    up, down = tmp_path / "up", tmp_path / "down"
    (tmp_path / "test_inner.py").write_text(
        "import pathlib, pytest, subprocess, time\n"
        f"@pytest.fixture\ndef lab():\n    pathlib.Path({str(up)!r}).touch()\n    yield\n"
        f"    pathlib.Path({str(down)!r}).touch()\n"
        "def test_a(lab):\n    time.sleep(60)\n"
    )
    argv = [sys.executable, "-c", "import sys\nfrom tests.faults import lanes\nlanes.ALL = ['-q', sys.argv[1]]\n"]
    argv[-1] += "sys.exit(lanes.main([]))"
    with subprocess.Popen([*argv, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        until = time.monotonic() + 60
        while not up.exists():
            assert time.monotonic() < until and process.poll() is None
            time.sleep(0.05)
        os.kill(process.pid, signal.SIGINT)
        assert process.stdout is not None
        said = process.stdout.read()
        assert process.wait(60) == 130
    assert down.exists()
    assert "problem: it was interrupted\n" in said
    assert said.endswith("\nfault matrix: 0 of 1 ended right\n")
