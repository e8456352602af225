"""Labs of two daemons as tests want them: quick to notice things, in a folder of their own, empty after each test."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from xapi_migrate.lab.lab import Lab

SETTINGS: dict[str, Any] = {
    "heartbeat_interval": 1.0,
    "heartbeat_lost": 6.0,
    "connect": 2.0,
    "request": 20.0,
    "poll": 0.1,
    "ask": 0.5,
    "test_options": True,
}


@contextmanager
def folder() -> Iterator[Path]:
    """With a path that is short enough for unix sockets below it."""
    with tempfile.TemporaryDirectory(prefix="xm-", ignore_cleanup_errors=True) as made:
        yield Path(made)


@contextmanager
def lab(one_pool: bool = False, database: str = "", **settings: Any) -> Iterator[Lab]:
    """One that runs; `settings` beside those of all tests."""
    with folder() as place, Lab(place, settings={**SETTINGS, **settings}, one_pool=one_pool, database=database) as made:
        yield made


def all_run(running: Lab) -> None:
    """Hosts whose daemon a test has ended have one again."""
    for host in running.hosts:
        if not host.alive:
            host.start()
            host.wait_ready()
