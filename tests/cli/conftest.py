"""Two stand-in servers, and the command run against them as a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from tests.cli.standin import PASSWORD, StandIn, serving

Result = subprocess.CompletedProcess[str]
Run = Callable[..., Result]


@pytest.fixture
def calls() -> list[str]:
    """The calls that any stand-in received, in order."""
    return []


@pytest.fixture
def sender(calls: list[str]) -> Iterator[StandIn]:
    with serving(StandIn("T", calls)) as standin:
        yield standin


@pytest.fixture
def receiver(calls: list[str]) -> Iterator[StandIn]:
    with serving(StandIn("R", calls)) as standin:
        yield standin


@pytest.fixture
def environment() -> dict[str, str]:
    """The variables that a command is run with."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("XAPI_MIGRATE")}
    return {**kept, "XAPI_MIGRATE_PASSWORD": PASSWORD, "XAPI_MIGRATE_TO_PASSWORD": PASSWORD, "COLUMNS": "100"}


@pytest.fixture
def run(environment: dict[str, str]) -> Run:
    """Run xapi-migrate with these arguments."""

    def run(*arguments: str) -> Result:
        return subprocess.run(
            [sys.executable, "-m", "xapi_migrate.cli", *arguments], env=environment, capture_output=True, text=True,
            stdin=subprocess.DEVNULL, timeout=60, check=False,
        )  # fmt: skip

    return run
