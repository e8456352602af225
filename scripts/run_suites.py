"""Run the tests in suites, each with a budget of time, and add up what came out.

A suite that takes longer than its budget is ended: a hang fails with a sentence instead of taking the
machine until somebody looks. Its temporary files are below a folder of its own, so what it leaves
behind after that can be found and ended too.

Tests that failed, if they are few, are run once more when their suite has ended: real processes on a shared machine can
be starved for longer than any limit is worth. One that passes then is no failure, but it is named as unsteady, for
somebody to mend.

    run_suites.py [SUITE ...] [-- PYTEST-ARGUMENT ...]
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
REPORTS = ROOT / ".cache"
sys.path.insert(0, str(ROOT))

from tests.leftovers import end_leftovers, end_run  # noqa: E402

NO_TESTS = 5
"""pytest's exit status when it selected no test."""
RUN_AGAIN = 12
"""More failures than these are no accident."""


@dataclass(frozen=True)
class Suite:
    """Tests with one marker expression, and how many seconds they may take on two slow cores. `named`: it runs only
    when it is asked for."""

    name: str
    marker: str
    budget: float
    named: bool = False


SUITES = (
    Suite("fast", "not system and not model", 900),
    Suite("model", "model", 420),
    Suite("system", "system and not model and not every_cell", 2100),
    Suite("every-cell", "every_cell", 1800, named=True),
)


@dataclass(frozen=True)
class Result:
    """What one suite came to; `problem` is a sentence when something other than a test failed."""

    suite: Suite
    passed: int
    failed: int
    seconds: float
    problem: str = ""
    failures: tuple[str, ...] = ()
    unsteady: tuple[str, ...] = ()


def run_twice(suite: Suite, arguments: list[str]) -> Result:
    """Run one suite, and those of its tests that failed a second time."""
    result = run(suite, arguments)
    if result.problem or not 0 < result.failed == len(result.failures) <= RUN_AGAIN:
        return result
    again = run(suite, [*arguments, "--last-failed", "--last-failed-no-failures=none"], again=True)
    if again.problem or again.passed + again.failed < result.failed:
        return result
    return replace(
        result,
        passed=result.passed + again.passed,
        failed=again.failed,
        seconds=result.seconds + again.seconds,
        failures=again.failures,
        unsteady=tuple(name for name in result.failures if name not in again.failures),
    )


def run(suite: Suite, arguments: list[str], *, again: bool = False) -> Result:
    """Run one suite with pytest in a process group of its own; its output goes straight through."""
    report = REPORTS / f"{suite.name}{'-again' if again else ''}.xml"
    cache = REPORTS / f"{suite.name}.cache"
    REPORTS.mkdir(exist_ok=True)
    if not again:
        shutil.rmtree(cache, ignore_errors=True)
    report.unlink(missing_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="xm", dir="/tmp"))
    argv = [sys.executable, "-m", "pytest", "-m", suite.marker, f"--junit-xml={report}", *arguments]
    argv += ["-o", f"cache_dir={cache}"]
    print(f"== suite {suite.name}: at most {suite.budget:.0f} s", flush=True)
    begin = time.monotonic()
    problem = ""
    process = subprocess.Popen(argv, cwd=ROOT, env={**os.environ, "TMPDIR": str(folder)}, process_group=0)
    try:
        status = process.wait(suite.budget)
    except subprocess.TimeoutExpired:
        status = -1
        problem = f"suite {suite.name} took more than its {suite.budget:.0f} s and was ended"
        end_run(process)
    except KeyboardInterrupt:
        end_run(process)
        raise
    finally:
        failures = tuple(_noted(cache, "cache/lastfailed"))
        left_behind = _noted(cache, "rules/left")
        left = end_leftovers(folder)
        shutil.rmtree(folder, ignore_errors=True)
    if left and not problem:
        problem = f"suite {suite.name} left behind: " + "; ".join(left)
    seconds = time.monotonic() - begin
    passed, failed = _counts(report)
    if not report.exists() and not problem:
        problem = f"suite {suite.name}: pytest ended with status {status} and wrote no report"
    elif status not in (0, NO_TESTS) and not failed and not problem:
        problem = f"suite {suite.name}: " + ("; ".join(left_behind) or f"pytest ended with status {status}")
    return Result(suite, passed, failed, seconds, problem, failures)


def _noted(cache: Path, name: str) -> list[str]:
    """What a run noted in pytest's cache: node ids (cache/lastfailed), what it left behind (rules/left)."""
    noted = cache / "v" / name
    return list(json.loads(noted.read_text())) if noted.exists() else []


def _counts(report: Path) -> tuple[int, int]:
    """(passed, failed) of a junit report; a skipped test counts as neither."""
    if not report.exists():
        return 0, 0
    suites = ElementTree.parse(report).getroot().findall("testsuite")
    total, bad, skipped = (
        sum(int(suite.get(name, "0")) for suite in suites for name in names)
        for names in (("tests",), ("failures", "errors"), ("skipped",))
    )
    return max(0, total - bad - skipped), bad


def main(arguments: list[str]) -> int:
    names, extra = arguments, []
    if "--" in arguments:
        at = arguments.index("--")
        names, extra = arguments[:at], arguments[at + 1 :]
    unknown = set(names) - {suite.name for suite in SUITES}
    if unknown:
        print(f"no suite named {', '.join(sorted(unknown))}; there are {', '.join(s.name for s in SUITES)}")
        return 2
    # A test that is run a second time has to be in the sample again.
    os.environ.setdefault("FAULTS_SEED", str(random.randrange(10_000)))
    print(f"seed of the fault matrix's sample: FAULTS_SEED={os.environ['FAULTS_SEED']}")
    chosen = [suite for suite in SUITES if suite.name in names or (not names and not suite.named)]
    results = [run_twice(suite, extra) for suite in chosen]
    print()
    for result in results:
        print(f"{result.suite.name}: {result.passed} passed, {result.failed} failed in {result.seconds:.0f} s")
    for name in (name for result in results for name in result.unsteady):
        print(f"unsteady: {name} failed, and passed when it was run again")
    print(f"{sum(result.seconds for result in results) / 60:.1f} minutes")
    problems = [result.problem for result in results if result.problem]
    for problem in problems:
        print(f"problem: {problem}")
    passed = sum(result.passed for result in results)
    failed = sum(result.failed for result in results) + len(problems)
    print(f"{passed} passed, {failed} failed")
    return 1 if failed or not passed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
