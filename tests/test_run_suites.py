"""The runner of `make test`: it counts, and no way of failing passes for success."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "run_suites.py"


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """The script as a module; its reports go below tmp_path."""
    spec = importlib.util.spec_from_file_location("run_suites", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "run_suites", module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "REPORTS", tmp_path / "reports")
    return module


def result_of(runner: ModuleType, folder: Path, test: str, budget: float = 60) -> tuple[int, int, str]:
    path = folder / "test_inner.py"
    path.write_text(test)
    result = runner.run(runner.Suite("inner", "not system", budget), ["-q", str(path)])
    return result.passed, result.failed, result.problem


def test_counts(runner: ModuleType, tmp_path: Path) -> None:
    test = "import pytest\ndef test_a(): pass\ndef test_b(): pass\ndef test_c(): assert 0\n"
    test += "@pytest.fixture\ndef broken(): raise ValueError\ndef test_d(broken): pass\n"
    assert result_of(runner, tmp_path, test) == (2, 2, "")


def test_a_test_that_fails_once_is_unsteady_and_one_that_fails_twice_has_failed(
    runner: ModuleType, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "test_inner.py"
    path.write_text(
        f"import pathlib\nwas = pathlib.Path({str(tmp_path)!r}) / 'was'\n"
        "def test_once():\n    first = not was.exists()\n    was.touch()\n    assert not first\n"
        "def test_always():\n    assert 0\ndef test_never():\n    pass\n"
    )
    suite = runner.Suite("inner", "not system", 60)
    result = runner.run_twice(suite, ["-q", str(path)])
    assert (result.passed, result.failed) == (2, 1)
    assert [name.rpartition("::")[2] for name in result.unsteady] == ["test_once"]
    assert [name.rpartition("::")[2] for name in result.failures] == ["test_always"]
    monkeypatch.setattr(runner, "SUITES", (suite,))
    (tmp_path / "was").unlink()
    assert runner.main(["inner", "--", "-q", str(path)]) == 1
    said = capfd.readouterr().out
    assert "test_once failed, and passed when it was run again" in said
    assert said.endswith("\n2 passed, 1 failed\n")


def test_many_failures_are_not_run_again(runner: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "test_inner.py"
    path.write_text("import pytest\n@pytest.mark.parametrize('n', range(13))\ndef test_a(n):\n    assert 0\n")
    result = runner.run_twice(runner.Suite("inner", "not system", 60), ["-q", str(path)])
    assert (result.passed, result.failed) == (0, 13)
    assert not (runner.REPORTS / "inner-again.xml").exists()


def test_a_file_that_cannot_be_read_is_a_failure(runner: ModuleType, tmp_path: Path) -> None:
    passed, failed, _ = result_of(runner, tmp_path, "import no_such_module\n")
    assert (passed, failed) == (0, 1)


def test_a_hang_ends_with_a_sentence(runner: ModuleType, tmp_path: Path) -> None:
    test = "import time\ndef test_a():\n    time.sleep(60)\n"
    passed, _, problem = result_of(runner, tmp_path, test, budget=3)
    assert passed == 0
    assert problem == "suite inner took more than its 3 s and was ended"


def test_a_process_left_behind_is_a_problem(runner: ModuleType, tmp_path: Path) -> None:
    test = "import os, subprocess\ndef test_a():\n    subprocess.Popen(['sleep', '60'], cwd=os.environ['TMPDIR'])\n"
    passed, _, problem = result_of(runner, tmp_path, test)
    assert passed == 1
    assert "suite inner left behind: process" in problem


def test_what_tests_left_to_their_session_is_a_problem(runner: ModuleType, tmp_path: Path) -> None:
    test = "import subprocess\ndef test_a(tmp_path):\n    subprocess.Popen(['sleep', '60'], cwd=tmp_path)\n"
    (tmp_path / "test_inner.py").write_text(test)
    result = runner.run(runner.Suite("inner", "not system", 60), ["-p", "tests.rules", str(tmp_path)])
    assert result.passed == 1
    assert "suite inner: process" in result.problem
    assert "sleep 60" in result.problem


def test_pytest_that_dies_is_a_problem(runner: ModuleType, tmp_path: Path) -> None:
    passed, _, problem = result_of(runner, tmp_path, "import os\ndef test_a():\n    os._exit(0)\n")
    assert passed == 0
    assert "wrote no report" in problem


def test_no_suite_of_that_name(runner: ModuleType) -> None:
    assert runner.main(["quick"]) == 2


def test_no_test_at_all_is_no_success(
    runner: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(runner, "run_twice", lambda suite, extra: runner.Result(suite, 0, 0, 0.0))
    assert runner.main(["fast"]) == 1
    assert capsys.readouterr().out.endswith("\n0 passed, 0 failed\n")


def test_a_suite_that_is_to_be_named_runs_only_then(
    runner: ModuleType, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "test_inner.py"
    path.write_text("def test_a(): pass\n")
    suites = (runner.Suite("usual", "not system", 60), runner.Suite("rare", "not system", 60, named=True))
    monkeypatch.setattr(runner, "SUITES", suites)
    for names, ran in (([], 1), (["rare"], 1), (["usual", "rare"], 2)):
        assert runner.main([*names, "--", "-q", str(path)]) == 0
        said = capfd.readouterr().out
        assert said.endswith(f" minutes\n{ran} passed, 0 failed\n")
