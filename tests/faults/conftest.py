"""One ground for all cases of this folder."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.faults.ground import Ground


@pytest.fixture(scope="session")
def ground() -> Iterator[Ground]:
    ground = Ground()
    try:
        yield ground
    finally:
        ground.close()


def pytest_report_header() -> str:
    """What is run of the matrix."""
    from tests.faults.test_matrix import CASES, RUN, SEED

    part = "all of it" if RUN is CASES else f"a sample, seed {SEED}"
    return f"fault matrix: {len(RUN)} of {len(CASES)} cases, {part}"


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """N of N."""
    reports = [report for key in ("passed", "failed") for report in terminalreporter.stats.get(key, ())]
    ended = [report for report in reports if "test_struck" in report.nodeid]
    if ended:
        right = sum(report.passed for report in ended)
        terminalreporter.write_line(f"fault matrix: {right} of {len(ended)} cases ended right")
