"""Passwords are not guessed quickly, and who tries takes no thread and no memory from others."""

from __future__ import annotations

import threading
from itertools import count
from pathlib import Path

import pytest
import pytest_twisted
from twisted.internet import defer, threads
from twisted.internet.task import Clock

from tests.xenapi.live import PASSWORD, USER, live
from xapi_migrate.errors import SessionAuthenticationFailed
from xapi_migrate.together import started
from xapi_migrate.xenapi import passwords
from xapi_migrate.xenapi.brake import STRANGERS_AT_ONCE, STRANGERS_SECONDS, LoginBrake
from xapi_migrate.xenapi.hashing import AT_ONCE, MOST_WAITING


@pytest.mark.parametrize(
    ("mine", "held_up"),
    [("2001:db8:1:2:{:x}::1", True), ("::ffff:192.0.2.1", True), ("2001:db8:1:{:x}::1", False), ("192.0.2.{}", False)],
)
def test_one_host_of_many_addresses_is_one(mine: str, held_up: bool) -> None:
    clock = Clock()
    brake = LoginBrake(clock)
    for number in range(1, 9):
        source = mine.format(number)
        assert brake.wait(source) is not None
        brake.ended(source, False)
    clock.advance(0.1)
    turn = brake.wait(mine.format(100).replace("::ffff:", ""))
    assert turn is not None
    assert turn.called is not held_up


def test_who_guesses_from_everywhere_is_limited_and_keeps_out_nobody_who_is_known() -> None:
    clock = Clock()
    clock.advance(1e9)
    brake = LoginBrake(clock)
    brake.welcome("192.0.2.1")
    networks, looked_at = count(1), 0

    def log_in(source: str, good: bool | None) -> bool:
        """Whether it was looked at now."""
        turn = brake.wait(source)
        if turn is not None:
            assert turn.called
            brake.ended(source, good)
        return turn is not None

    assert log_in("198.51.100.1", True)  # once, before that
    for _ in range(3600):
        looked_at += sum(log_in(f"2001:db8:0:{next(networks):x}::1", False) for _ in range(3))
        clock.advance(1)
    assert looked_at == pytest.approx(STRANGERS_AT_ONCE + 3600 / STRANGERS_SECONDS, abs=2)
    while log_in(f"2001:db8:0:{next(networks):x}::1", False):
        pass  # the last that may be looked at now
    for _ in range(2 * STRANGERS_AT_ONCE):
        assert log_in("192.0.2.1", True) and log_in("198.51.100.1", True)
    assert not log_in("203.0.113.2", True)
    clock.advance(2 * STRANGERS_SECONDS)
    assert log_in("203.0.113.2", True)
    clock.advance(STRANGERS_AT_ONCE * STRANGERS_SECONDS)
    for number in range(2 * STRANGERS_AT_ONCE):  # who logs in as he should has guessed nothing
        assert log_in(f"2001:db8:1:{number:x}::1", None if number % 2 else True)


def test_guesses_that_are_being_looked_at_count() -> None:
    brake = LoginBrake(Clock())
    turns = [brake.wait(f"2001:db8:0:{number:x}::1") for number in range(2 * STRANGERS_AT_ONCE)]
    assert sum(turn is not None for turn in turns) == STRANGERS_AT_ONCE


@pytest_twisted.ensureDeferred
async def test_who_has_a_session_is_known_after_a_restart_of_the_daemon(tmp_path: Path) -> None:
    async with live(tmp_path) as here:
        sessions = here.server.sessions
        sessions.open(USER, "192.0.2.1")
        sessions.stop()
        sessions._brake = LoginBrake(Clock())
        sessions.start()
        for number in range(STRANGERS_AT_ONCE):
            sessions._brake.wait(f"2001:db8:0:{number:x}::1")
        with pytest.raises(SessionAuthenticationFailed):
            await sessions.login(USER, PASSWORD, "198.51.100.1")
        assert await sessions.login(USER, PASSWORD, "192.0.2.1")


@pytest_twisted.ensureDeferred
async def test_log_ins_wait_for_few_threads_and_not_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    let_on, checked = threading.Event(), []

    def slow(password: str, hashed: str) -> bool:
        checked.append(password)
        return let_on.wait(60)

    async with live(tmp_path) as here:
        monkeypatch.setattr(passwords, "verify", slow)
        login = here.server.sessions.login
        try:
            waiting = [started(login(USER, PASSWORD, f"192.0.2.{n}")) for n in range(AT_ONCE + MOST_WAITING)]
            with pytest.raises(SessionAuthenticationFailed) as refused:
                await login(USER, PASSWORD, "198.51.100.1")
            assert "Too many log-ins" in refused.value.failure()[-1]
            # the journal, for one, finds a thread
            assert await threads.deferToThread(lambda: "done") == "done"
            assert len(checked) <= AT_ONCE
        finally:
            let_on.set()
            sessions = await defer.gatherResults(waiting)
        assert len(set(sessions)) == AT_ONCE + MOST_WAITING
        # who was not looked at has guessed nothing
        assert await login(USER, PASSWORD, "198.51.100.1")
