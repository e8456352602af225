"""Processes that outlive the daemon: started, found again, never mistaken, never left behind."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import pytest
from pytest_twisted import ensureDeferred
from twisted.internet import defer, reactor, task

from xapi_migrate.processes import child
from xapi_migrate.processes.in_thread import in_thread

pytestmark = pytest.mark.system


def gone(pid: int) -> bool:
    """Not even a zombie is left."""
    return not Path(f"/proc/{pid}").exists()


@ensureDeferred
async def test_a_process_is_started_and_killed(short_tmp):
    process = await child.spawn(reactor, short_tmp / "p", ["sleep", "100"])
    assert process.alive
    assert Path(f"/proc/{process.pid}/cwd").readlink() == short_tmp / "p"
    assert os.getsid(process.pid) == process.pid
    await process.kill()
    assert not process.alive
    assert gone(process.pid)
    await process.kill()
    await process.ended()


@ensureDeferred
async def test_its_end_is_noticed_and_its_last_words_kept(short_tmp):
    argv = [sys.executable, "-c", "import sys; sys.exit('x' * 3000 + ' no such disk')"]
    process = await child.spawn(reactor, short_tmp / "p", argv)
    await process.ended()
    assert len(process.errors()) <= 2000
    assert process.errors().endswith("no such disk")
    assert gone(process.pid)


@ensureDeferred
async def test_a_process_that_ends_at_once_leaves_no_zombie(short_tmp):
    for number in range(10):
        process = await child.spawn(reactor, short_tmp / str(number), ["true"])
        await process.ended()
        assert gone(process.pid)


@ensureDeferred
async def test_a_program_that_is_not_there(short_tmp):
    with pytest.raises(OSError, match="no-such-program"):
        await child.spawn(reactor, short_tmp / "p", ["no-such-program"])
    assert child.find(reactor, short_tmp / "p") is None


@ensureDeferred
async def test_found_again(short_tmp):
    first = await child.spawn(reactor, short_tmp / "p", ["sleep", "100"])
    first.abandon()
    second = child.find(reactor, short_tmp / "p")
    assert second is not None
    assert second.pid == first.pid
    ended = second.ended()
    os.kill(second.pid, signal.SIGKILL)
    await ended
    assert child.find(reactor, short_tmp / "p") is None


@ensureDeferred
async def test_a_folder_has_one_process(short_tmp):
    first = await child.spawn(reactor, short_tmp / "p", ["sleep", "100"])
    second = await child.spawn(reactor, short_tmp / "p", ["sleep", "100"])
    try:
        assert second.alive and not first.alive
        assert child.find(reactor, short_tmp / "p").pid == second.pid
    finally:
        await second.kill()


@ensureDeferred
async def test_a_recycled_pid_is_not_mistaken(short_tmp):
    process = await child.spawn(reactor, short_tmp / "p", ["sleep", "100"])
    record = short_tmp / "p" / child.RECORD
    good = json.loads(record.read_text())
    for wrong in ({"started": good["started"] + 1}, {"boot": "another"}, {"pid": os.getpid()}):
        record.write_text(json.dumps({**good, **wrong}))
        assert child.find(reactor, short_tmp / "p") is None
    record.write_text("{")
    assert child.find(reactor, short_tmp / "p") is None
    await process.kill()


@ensureDeferred
async def test_given_up_while_it_starts(short_tmp):
    starting = defer.Deferred.fromCoroutine(child.spawn(reactor, short_tmp / "p", ["sleep", "100"]))
    starting.cancel()
    with pytest.raises(defer.CancelledError):
        await starting
    assert child.find(reactor, short_tmp / "p") is None  # short_tmp sees what runs


@ensureDeferred
async def test_waiting_for_the_end_can_be_given_up(short_tmp):
    process = await child.spawn(reactor, short_tmp / "p", ["sleep", "100"])
    waiting = process.ended()
    waiting.cancel()
    with pytest.raises(defer.CancelledError):
        await waiting
    await process.kill()


@ensureDeferred
async def test_work_in_a_thread_ends_before_its_cancellation_is_told():
    done = []

    def work():
        import time

        time.sleep(0.2)
        done.append(True)

    working = defer.Deferred.fromCoroutine(in_thread(work))
    await task.deferLater(reactor, 0.01)
    working.cancel()
    with pytest.raises(defer.CancelledError):
        await working
    assert done == [True]


@ensureDeferred
async def test_an_error_in_a_thread_is_told():
    with pytest.raises(ZeroDivisionError):
        await in_thread(lambda: 1 // 0)
    assert await in_thread(divmod, 7, 2) == (3, 1)
