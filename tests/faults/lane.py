"""One lane of the matrix: a pytest plug-in that runs every Nth case, and tells the runner (lanes.py) of each that ends.

LANE is its number and how many there are ("0/2"), LANE_REPORT a file that it writes a line of JSON to for each case.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

NUMBER, OF = (int(word) for word in os.environ["LANE"].split("/"))
REPORT = Path(os.environ["LANE_REPORT"])


def _tell(**what: Any) -> None:
    with REPORT.open("a") as file:
        file.write(json.dumps(what) + "\n")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """After -k and -m, so that each lane deals from the same list."""
    others = [item for place, item in enumerate(items) if place % OF != NUMBER]
    items[:] = [item for place, item in enumerate(items) if place % OF == NUMBER]
    config.hook.pytest_deselected(items=others)
    _tell(cases=[item.nodeid for item in items])


_seconds: dict[str, float] = {}


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """What it said when it has passed, all of it when it has not. A case whose teardown fails is told of twice."""
    seconds = _seconds[report.nodeid] = _seconds.get(report.nodeid, 0.0) + report.duration
    if report.when == "call" or report.failed:
        text = "\n".join([report.longreprtext, *(f"{name}:\n{text}" for name, text in report.sections)])
        said = text if report.failed else (report.capstdout.strip().splitlines() or [""])[-1]
        _tell(case=report.nodeid, passed=report.passed, seconds=seconds, said=said)
