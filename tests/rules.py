"""What holds for every test, here and in plugins/: none hangs, leaves a process or a mount behind, or drops an error.

Loaded by setup.cfg (-p), since the plugins' tests are beside this folder and not below it.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from twisted.internet import defer
from twisted.logger import LogEvent, globalLogPublisher

from tests.leftovers import end_leftovers, standing

# The same examples in each run, for a failure must come back when it is looked for; none fails for being slow.
settings.register_profile("rules", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("rules")

LIMIT = 120.0
"""Seconds that an asynchronous test may take unless it carries @pytest.mark.limit(seconds)."""

_dropped: list[str] = []
_first_seen: dict[str, str] = {}
"""What stands below the session's folder after a test -> that test."""


def _note_dropped(event: LogEvent) -> None:
    failure = event.get("log_failure")
    if failure is not None and event.get("log_namespace") == "twisted.internet.defer":
        _dropped.append(failure.getTraceback())


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "limit(seconds): how long this asynchronous test may take")
    globalLogPublisher.addObserver(_note_dropped)


@pytest.hookimpl(trylast=True)
def pytest_unconfigure() -> None:
    """A thread that somebody left would keep Python from ending, after all results are out."""
    globalLogPublisher.removeObserver(_note_dropped)
    left = [thread for thread in threading.enumerate() if thread is not threading.main_thread() and not thread.daemon]
    for thread in left:
        thread.join(2)
    stacks = sys._current_frames()
    for thread in [thread for thread in left if thread.is_alive() and thread.ident in stacks]:
        where = "".join(traceback.format_stack(stacks[thread.ident or 0]))
        print(f"a thread was left running by this session: {thread.name}\n{where}", flush=True)
    if any(thread.is_alive() for thread in left):
        os._exit(pytest.ExitCode.TESTS_FAILED)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Iterator[None]:
    """Cancel an asynchronous test that takes too long: it then fails with TimeoutError where it waited."""
    function = pyfuncitem.obj
    if getattr(function, "_pytest_twisted_mark", "") != "async_test" or hasattr(function, "hypothesis"):
        return (yield)
    marker = pyfuncitem.get_closest_marker("limit")
    limit = float(marker.args[0]) if marker else LIMIT

    @functools.wraps(function)
    def limited(**kwargs: Any) -> defer.Deferred[Any]:
        from twisted.internet import reactor

        return defer.Deferred.fromCoroutine(function(**kwargs)).addTimeout(limit, reactor)

    limited._pytest_twisted_mark = ""  # type: ignore[attr-defined]
    pyfuncitem.obj = limited
    try:
        return (yield)
    finally:
        pyfuncitem.obj = function


@pytest.fixture(autouse=True)
def _no_dropped_errors() -> Iterator[None]:
    yield
    if _dropped:
        said = "\n".join(_dropped)
        _dropped.clear()
        pytest.fail(f"an error was dropped (by this test or one before it):\n{said}", pytrace=False)


@pytest.fixture
def short_tmp() -> Iterator[Path]:
    """A folder with a short path, for the 108 bytes of a unix socket's name. What still runs or is mounted below
    it at the end fails the test."""
    folder = Path(tempfile.mkdtemp(prefix="x", dir="/tmp")).resolve()
    yield folder
    left = end_leftovers(folder)
    shutil.rmtree(folder, ignore_errors=True)
    if left:
        pytest.fail("left behind: " + "; ".join(left), pytrace=False)


@pytest.fixture
def small_disk(short_tmp: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m,mode=700", "tmpfs", str(short_tmp)], check=True)
    try:
        yield short_tmp
    finally:
        subprocess.run(["umount", str(short_tmp)], check=True)


def _base(config: pytest.Config) -> Path | None:
    """The folder of all temporary folders of this session, if there is one yet."""
    return getattr(getattr(config, "_tmp_path_factory", None), "_basetemp", None)


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item) -> None:
    """Note what a test with real processes left to the session: a lab that others share, or a leak."""
    base = _base(item.config)
    if base is not None and item.get_closest_marker("system"):
        for sentence in standing(base):
            _first_seen.setdefault(sentence, item.nodeid)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Nothing may stand below pytest's own temporary folder; `rules/left` of the cache says what did."""
    base = _base(session.config)
    left = end_leftovers(base) if base is not None else []
    said = [f"{sentence} (first seen after {_first_seen.get(sentence, 'the last test')})" for sentence in left]
    cache = getattr(session.config, "cache", None)  # there is none with -p no:cacheprovider
    if cache is not None:
        cache.set("rules/left", said)
    if said:
        reporter = session.config.pluginmanager.get_plugin("terminalreporter")
        if reporter is not None:
            reporter.write_line("left behind by this session: " + "; ".join(said), red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
