"""The fault matrix in several lanes side by side: most of a case is waiting. `python -m tests.faults.lanes
[PYTEST-ARGUMENT ...]`; LANES=3 in the environment for three of them.

Each lane is a pytest of its own, with a temporary folder and a lab of its own, and takes every Nth case of the same
list. Each case is told when it ends. The last line says how many of all ended right, and the exit status the same.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

from tests.leftovers import end_leftovers, end_run

ROOT = Path(__file__).resolve().parent.parent.parent
ALL = ["-q", "-m", "system", "tests/faults"]
NO_TESTS = 5
"""pytest's exit status when it selected no test."""
SLOWEST = 10


class Lane:
    """A pytest of its own. `news` gives what it told since it was asked last."""

    def __init__(self, number: int, of: int, arguments: list[str]) -> None:
        self.name = f"lane {number + 1}"
        self.folder = Path(tempfile.mkdtemp(prefix="xl", dir="/tmp")).resolve()
        self.log = self.folder / "log"
        self._report = self.folder / "report"
        self._report.touch()
        self._read = 0
        self.cases: set[str] = set()
        self.failed: set[str] = set()
        tmp = self.folder / "t"
        tmp.mkdir()
        told = {"FAULTS": "all", "LANE": f"{number}/{of}", "LANE_REPORT": str(self._report), "TMPDIR": str(tmp)}
        # the cache is off: two that write it at once would spoil it
        argv = [sys.executable, "-m", "pytest", "-p", "tests.faults.lane", "-p", "no:cacheprovider", *arguments]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                argv, cwd=ROOT, env={**os.environ, **told}, stdin=subprocess.DEVNULL, stdout=log,
                stderr=subprocess.STDOUT, process_group=0,
            )  # fmt: skip

    def news(self) -> list[dict[str, Any]]:
        """Lines of lane.py."""
        with self._report.open() as file:
            file.seek(self._read)
            lines = file.read()
        whole = lines[: lines.rfind("\n") + 1]
        self._read += len(whole.encode())
        return [json.loads(line) for line in whole.splitlines()]

    def close(self) -> list[str]:
        """Take away what it left; a sentence for each that should not be there."""
        left = end_leftovers(self.folder)
        if not os.environ.get("FAULTS_KEEP"):
            shutil.rmtree(self.folder, ignore_errors=True)
        return left


class Tally:
    """What all lanes came to. `problems` are sentences about what is no case's failure."""

    def __init__(self) -> None:
        self.cases: set[str] = set()
        self.failed: set[str] = set()
        self.seconds: dict[str, float] = {}
        self.problems: list[str] = []

    @property
    def passed(self) -> int:
        return len(self.seconds.keys() - self.failed)

    @property
    def right(self) -> bool:
        return bool(self.cases) and self.passed == len(self.cases) and not self.problems

    def hear(self, lane: Lane, told: dict[str, Any]) -> None:
        if "cases" in told:
            lane.cases = set(told["cases"])
            self.cases |= lane.cases
            return
        case, again = told["case"], told["case"] in self.seconds
        self.seconds[case] = told["seconds"]
        if not told["passed"]:
            lane.failed.add(case)
            self.failed.add(case)
        what = "" if told["passed"] else "FAILED " + ("at its end " if again else "")
        said = told["said"].partition(": ")[2] if told["passed"] else f"\n{told['said']}"
        place = f"{len(self.seconds):4} of {len(self.cases)}"
        print(f"{place} {lane.name} {told['seconds']:5.1f} s {what}{_short(case)} {said}", flush=True)

    def ended(self, lane: Lane) -> None:
        """It ended by itself."""
        status = lane.process.returncode
        expected = 1 if lane.failed else 0 if lane.cases else NO_TESTS
        if status != expected or not lane.cases <= self.seconds.keys():
            end = lane.log.read_text(errors="replace")[-3000:]
            self.problems.append(f"{lane.name}: pytest ended with status {status}; it said:\n{end}")

    def show(self, took: float) -> None:
        """The slowest, then what failed with the command for each, then N of N."""
        print(f"\nthe slowest of {len(self.seconds)}, which took {sum(self.seconds.values()):.0f} s together:")
        for case, seconds in sorted(self.seconds.items(), key=lambda item: -item[1])[:SLOWEST]:
            print(f"{seconds:7.1f} s {_short(case)}")
        for problem in self.problems:
            print(f"problem: {problem}")
        for case in sorted(self.failed):
            print(f"failed: FAULTS=all .venv/bin/python -m pytest '{case}'")
        missing = len(self.cases - self.seconds.keys())
        if missing:
            print(f"{missing} were not run")
        print(f"{took / 60:.1f} minutes, load {' '.join(f'{load:.0f}' for load in os.getloadavg())}")
        print(f"fault matrix: {self.passed} of {len(self.cases)} ended right", flush=True)


def _short(case: str) -> str:
    return case.partition("[")[2].rstrip("]") if "test_struck[" in case else case.rpartition("/")[2]


class Lanes:
    """`with Lanes(2, arguments) as lanes: lanes.run()`; whatever happens, none of them is left."""

    def __init__(self, of: int, arguments: list[str]) -> None:
        self.tally = Tally()
        self._lanes: list[Lane] = []
        self._of = of
        self._arguments = arguments

    def __enter__(self) -> Self:
        return self

    def run(self) -> None:
        for number in range(self._of):
            self._lanes.append(Lane(number, self._of, self._arguments))
        running = list(self._lanes)
        while running:
            time.sleep(0.2)
            ended = [lane for lane in running if lane.process.poll() is not None]
            for lane in running:
                self._hear(lane)
            for lane in ended:
                running.remove(lane)
                self.tally.ended(lane)

    def _hear(self, lane: Lane) -> None:
        for told in lane.news():
            self.tally.hear(lane, told)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):  # ending them takes its time, and has to be done
            signal.signal(number, signal.SIG_IGN)
        for lane in self._lanes:
            interrupted = lane.process.poll() is None
            if interrupted:
                end_run(lane.process, 60)
                self._hear(lane)
            left = lane.close()
            if left and not interrupted:
                self.tally.problems.append(f"{lane.name} left behind: {'; '.join(left)}")


def _interrupted(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main(arguments: list[str]) -> int:
    of = int(os.environ.get("LANES", "2"))
    for number in (signal.SIGINT, signal.SIGTERM):  # a shell may have had the first ignored
        signal.signal(number, _interrupted)
    began = time.monotonic()
    lanes = Lanes(of, [*ALL, *arguments])
    status = 1
    print(f"fault matrix: {of} lanes", flush=True)
    try:
        with lanes:
            lanes.run()
    except KeyboardInterrupt:
        lanes.tally.problems.append("it was interrupted")
        status = 130
    lanes.tally.show(time.monotonic() - began)
    return 0 if lanes.tally.right else status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
