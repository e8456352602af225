"""The commit rule under the model checker: what commit.pml promises, and that each rule is needed.

Every run is an own pan (the program that spin writes); they share the machine's cores and each
test waits for its own.  The statistics of every run are printed (`pytest -s -m model`).
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest

pytestmark = pytest.mark.model

MODEL = Path(__file__).with_name("commit.pml")
SECONDS = 400  # for one program; only a hang reaches it
DEPTH = 200_000
LIVE = ("LIVE",)
SMALL = ("NO_HOST_CRASH", "NO_STRAY_404")

LIVENESS: dict[str, tuple[str, ...]] = {
    "clean": (*LIVE, "NO_STRAY_404"),
    "runs_once": (*LIVE, "NO_HOST_CRASH"),
}
TWO, NONE, FENCE = "ONLY=1", "ONLY=2", "ONLY=3"
SAYS = {TWO: "never two", NONE: "never none", FENCE: "the second fence"}
# A rule broken: the one property that is watched, and what is left out of the world meanwhile (less to search).
BROKEN_SAFETY: dict[str, tuple[str, ...]] = {
    "NO_FSYNC_COMMIT": (NONE, "NO_STRAY_404"),
    "NO_FSYNC_DONE": (TWO, "NO_STRAY_404"),
    "NO_FSYNC_ON_RESTART": (NONE, "NO_STRAY_404"),
    "ABORT_DOES_NOT_WIN": (TWO, *SMALL),
    "NO_ASK_BEFORE_START": (TWO, *SMALL),
    "RESUME_ON_TIMEOUT": (TWO, *SMALL),
    "UNKNOWN_IS_ABORTED": (TWO, "NO_HOST_CRASH"),
    "ABORT_BEFORE_DEACTIVATE": (FENCE, *SMALL),
}
BROKEN_LIVENESS: dict[str, tuple[str, tuple[str, ...]]] = {
    "ASK_ONLY": ("owned", SMALL),
    "DELETE_IS_ACK": ("owned", SMALL),
    "OPEN_BY_LOOKS": ("owned", SMALL),
    "ACK_BEFORE_JOURNAL": ("owned", ("NO_STRAY_404",)),
    "ACK_BEFORE_UNPAUSE": ("runs_once", SMALL),
}
REACHED = re.findall(r"^ltl (reach_\w+)", MODEL.read_text(), re.MULTILINE)


class Verdict(NamedTuple):
    """What one run of the checker said; `stored` in states, `seconds` of the search alone."""

    errors: int
    stored: int
    depth: int
    seconds: float
    output: str
    cause: str


def run(command: list[str], directory: Path) -> str:
    done = subprocess.run(
        command, cwd=directory, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=SECONDS
    )
    assert done.returncode == 0, f"{command[0]} failed:\n{done.stdout}"
    return done.stdout


def build(directory: Path, defines: tuple[str, ...], *, compiler: tuple[str, ...]) -> None:
    """Write and compile the checker; -o3 keeps statements apart, so that "unreached" is exact."""
    directory.mkdir()
    (directory / MODEL.name).write_text(MODEL.read_text())
    run(["spin", "-o3", *(f"-D{name}" for name in defines), "-a", MODEL.name], directory)
    run(["cc", "-O2", "-w", "-DNOREDUCE", *compiler, "-o", "pan", "pan.c"], directory)


def search(directory: Path, *options: str) -> Verdict:
    began = time.monotonic()
    output = run(["./pan", f"-m{DEPTH}", "-w22", *options], directory)
    seconds = time.monotonic() - began
    assert "max search depth too small" not in output, output
    assert "out of memory" not in output and "truncated" not in output, output
    errors, stored = re.search(r"errors: (\d+)", output), re.search(r"(\d+) states, stored", output)
    depth = re.search(r"depth reached (\d+)", output)
    assert errors and stored and depth, output
    return Verdict(int(errors[1]), int(stored[1]), int(depth[1]), seconds, output, violated(directory, output, options))


def violated(directory: Path, output: str, options: tuple[str, ...]) -> str:
    """The property that failed, in the model's own words: the comment on the assertion's line."""
    if "acceptance cycle" in output:
        return "for ever"
    if "assertion violated" not in output or "-N" in options:
        return ""
    replayed = subprocess.run(
        ["spin", "-T", "-k", f"{MODEL.name}.trail", *defines_of(directory), MODEL.name],
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=SECONDS,
    ).stdout
    found = re.search(rf"{MODEL.name}:(\d+), Error: assertion violated", replayed)
    assert found, replayed
    return MODEL.read_text().splitlines()[int(found[1]) - 1].partition("/*")[2].removesuffix("*/").strip()


def defines_of(directory: Path) -> list[str]:
    return [f"-D{name}" for name in directory.name.split("+") if name.isupper()]


def check_safety(directory: Path, defines: tuple[str, ...]) -> Verdict:
    build(directory, defines, compiler=("-DSAFETY",))
    return search(directory)


def check_liveness(directory: Path, claim: str, defines: tuple[str, ...]) -> Verdict:
    build(directory, defines, compiler=("-DNFAIR=5",))
    return search(directory, "-a", "-f", "-N", claim)


def check_reached(directory: Path) -> dict[str, Verdict]:
    build(directory, ("REACH",), compiler=())
    return {claim: search(directory, "-a", "-N", claim) for claim in REACHED}


Runs = dict[str, "Future[Verdict]"]


@pytest.fixture(scope="module")
def pool() -> Iterator[ThreadPoolExecutor]:
    workers = ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1))
    yield workers
    workers.shutdown(wait=True, cancel_futures=True)


@pytest.fixture(scope="module")
def runs(pool: ThreadPoolExecutor, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Every run with a single verdict, started at once, the longest first."""
    base = tmp_path_factory.mktemp("commit")
    started: Runs = {}
    for claim, world in LIVENESS.items():
        started[claim] = pool.submit(check_liveness, base / "+".join((claim, *world)), claim, world)
    started["safety"] = pool.submit(check_safety, base / "safety", ())
    for rule, (claim, world) in BROKEN_LIVENESS.items():
        broken = (*LIVE, rule, *world)
        started[rule] = pool.submit(check_liveness, base / "+".join(broken), claim, broken)
    for rule, world in BROKEN_SAFETY.items():
        broken = (rule, *world)
        started[rule] = pool.submit(check_safety, base / "+".join(broken), broken)
    return started


@pytest.fixture(scope="module")
def reached(
    runs: Runs, pool: ThreadPoolExecutor, tmp_path_factory: pytest.TempPathFactory
) -> Future[dict[str, Verdict]]:
    return pool.submit(check_reached, tmp_path_factory.mktemp("reach") / "REACH")


def report(name: str, verdict: Verdict) -> None:
    print(
        f"\n{name}: errors {verdict.errors}, {verdict.stored} states, depth {verdict.depth}, "
        f"{verdict.seconds:.1f} s{', ' + verdict.cause if verdict.cause else ''}"
    )


def test_never_two_never_none(runs: Runs) -> None:
    verdict = runs["safety"].result()
    report("safety", verdict)
    assert verdict.errors == 0, verdict.output
    assert verdict.stored > 300_000, "the model has lost most of its behaviour"


def test_every_statement_but_the_forbidden_ones_is_reached(runs: Runs) -> None:
    verdict = runs["safety"].result()
    places = re.findall(r'commit\.pml:(\d+), state \d+, "(.*)"', verdict.output)
    assert [text for _, text in places].count("assert(0)") == MODEL.read_text().count("assert(false)")
    others = [place for place in places if place[1] not in ("-end-", "assert(0)")]
    assert not others, f"never executed: {others}"


@pytest.mark.parametrize("claim", LIVENESS)
def test_it_ends_with_one_owner(claim: str, runs: Runs) -> None:
    verdict = runs[claim].result()
    report(claim, verdict)
    assert verdict.errors == 0, verdict.output
    assert "acceptance   cycles \t+ (fairness enabled)" in verdict.output
    assert verdict.stored > 200_000, "the model has lost most of its behaviour"


@pytest.mark.parametrize("rule", BROKEN_SAFETY)
def test_without_this_rule_the_vm_is_doubled_or_lost(rule: str, runs: Runs) -> None:
    verdict = runs[rule].result()
    report(rule, verdict)
    assert verdict.errors == 1, f"{rule} is harmless in the model, so the model does not test that rule"
    assert verdict.cause == SAYS[BROKEN_SAFETY[rule][0]], verdict.output


@pytest.mark.parametrize("rule", BROKEN_LIVENESS)
def test_without_this_rule_it_never_ends(rule: str, runs: Runs) -> None:
    verdict = runs[rule].result()
    report(rule, verdict)
    assert verdict.errors == 1, f"{rule} is harmless in the model, so the model does not test that rule"
    assert verdict.cause == "for ever", verdict.output


@pytest.mark.parametrize("claim", REACHED)
def test_reached(claim: str, reached: Future[dict[str, Verdict]]) -> None:
    verdict = reached.result()[claim]
    report(claim, verdict)
    assert verdict.errors == 1, f"{claim} cannot happen in the model: it proves nothing about it"
