"""The daemon's command line, and the service around the daemon."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import defer
from twisted.internet.testing import MemoryReactorClock
from twisted.python.usage import UsageError

from xapi_migrate._tap import DaemonService, Options, makeService
from xapi_migrate.errors import InternalError


def parsed(*arguments: str) -> Options:
    options = Options()
    options.parseOptions(arguments)
    return options


def test_options_win_over_the_file(tmp_path: Path) -> None:
    path = tmp_path / "daemon.toml"
    path.write_text('state_dir = "/a"\nlisten = ["tcp:1"]\niscsi_port = 5\n[times]\npoll = 9\n')
    config = parsed(
        "--config", str(path), "--listen", "tcp:2", "--listen", "tls:3", "--schemes", "http, https", "--set", "poll=1",
        "--auth", "file:/etc/users", "--auth", "unix:root,me", "--addresses", "10.0.0.1",
        "--domains", "qemu", "--database", "sqlite:///x",
    ).config_value  # fmt: skip
    assert (config.state_dir, config.listen, config.iscsi_port) == (Path("/a"), ("tcp:2", "tls:3"), 5)
    assert (config.schemes, config.addresses, config.times.poll) == (("http", "https"), ("10.0.0.1",), 1.0)
    assert (config.auth, config.domains, config.database) == (
        ("file:/etc/users", "unix:root,me"),
        "qemu",
        "sqlite:///x",
    )


@pytest.mark.parametrize(
    "arguments",
    [(), ("--state-dir", "/x", "--set", "pol=1"), ("--state-dir", "/x", "--auth", "pam"), ("--config", "/no/file")],
)
def test_arguments_that_cannot_be_used(arguments: tuple[str, ...]) -> None:
    with pytest.raises(UsageError):
        parsed(*arguments)


@pytest.mark.parametrize("program", [["-m", "twisted", "xapi-migrate"], ["-m", "xapi_migrate.cli", "serve"]])
def test_show_config_from_both_programs(program: list[str], tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, *program, "--state-dir", "/x", "--show-config"], cwd=tmp_path, capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith('state_dir = "/x"\n')


def test_help_of_serve() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "xapi_migrate.cli", "serve", "--help"], capture_output=True, text=True, timeout=60,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0
    assert "xapi-migrate serve" in done.stdout.splitlines()[0]
    assert "--state-dir" in done.stdout


class Reactor(MemoryReactorClock):
    """Runs what is called when running at once, and counts stops."""

    stops = 0

    def callWhenRunning(self, function: Any, *args: Any, **kwargs: Any) -> None:
        function(*args, **kwargs)

    def stop(self) -> None:
        self.stops += 1


class Daemon:
    def __init__(self, events: list[str]) -> None:
        self._events = events

    async def close(self) -> None:
        self._events.append("closed")


@pytest.fixture
def events() -> list[str]:
    return []


@pytest.fixture
def opening(monkeypatch: pytest.MonkeyPatch) -> list[defer.Deferred[Any]]:
    """What `open_daemon` waits for, call by call."""
    waiting: list[defer.Deferred[Any]] = []

    async def open_daemon(config: Any, reactor: Any) -> Any:
        waiting.append(defer.Deferred())
        return await waiting[-1]

    module = ModuleType("xapi_migrate.daemon")
    module.open_daemon = open_daemon  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "xapi_migrate.daemon", module)
    return waiting


def service(reactor: Reactor) -> DaemonService:
    return makeService(parsed("--state-dir", "/x"), reactor)


def test_its_time_is_steady_whoever_brings_the_reactor(
    opening: list[defer.Deferred[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`xapi-migrate serve` brings its own, `twist xapi-migrate` none."""
    reactor: Any = Reactor()
    service(reactor)
    before = reactor.seconds()
    assert abs(before - time.time()) < 60, "it is the clock's at the start"
    monkeypatch.setattr(time, "time", lambda: before + 3600)
    assert reactor.seconds() < before + 60


@pytest_twisted.ensureDeferred
async def test_opens_and_closes(opening: list[defer.Deferred[Any]], events: list[str]) -> None:
    reactor = Reactor()
    running = service(reactor)
    running.startService()
    opening[0].callback(Daemon(events))
    assert events == []
    await running.stopService()
    assert (events, reactor.stops, running.problem) == (["closed"], 0, "")


@pytest_twisted.ensureDeferred
async def test_stopping_while_it_opens_cancels(opening: list[defer.Deferred[Any]]) -> None:
    reactor = Reactor()
    running = service(reactor)
    running.startService()
    await running.stopService()
    assert opening[0].called
    assert (reactor.stops, running.problem) == (0, "")


@pytest_twisted.ensureDeferred
async def test_a_daemon_that_cannot_open_stops_the_process(opening: list[defer.Deferred[Any]]) -> None:
    reactor = Reactor()
    running = service(reactor)
    running.startService()
    opening[0].errback(InternalError("the disk is gone"))
    assert reactor.stops == 1
    assert running.problem == "The daemon could not start: the disk is gone"
    await running.stopService()
