"""Passwords are not guessed quickly, and who tries takes no thread and no memory from others."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import pytest_twisted
from twisted.internet import defer, threads
from twisted.internet.task import Clock

from tests.xenapi.live import PASSWORD, USER, live
from xapi_migrate.errors import SessionAuthenticationFailed
from xapi_migrate.together import started
from xapi_migrate.xenapi import passwords
from xapi_migrate.xenapi.brake import LoginBrake
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
