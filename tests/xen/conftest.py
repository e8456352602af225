"""For the machine of `make test-xen`."""

from __future__ import annotations

import pytest


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """A failure is shown when it happens: the machine may be ended before the summary."""
    if report.failed:
        print(f"\n{report.longreprtext}", flush=True)
