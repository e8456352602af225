"""No two daemons work in one state folder."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import pytest_twisted
from twisted.internet import defer
from twisted.internet.task import Clock

from xapi_migrate.processes.folder_lock import PATIENCE, FolderLock, FolderTaken


def taken(folder: Path, clock: Clock) -> tuple[FolderLock, defer.Deferred[None]]:
    lock = FolderLock(folder)
    return lock, defer.Deferred.fromCoroutine(lock.take(clock))


@pytest_twisted.ensureDeferred
async def test_the_next_one_waits_a_little_for_the_end_of_the_first(tmp_path: Path) -> None:
    clock = Clock()
    first, begun = taken(tmp_path, clock)
    assert begun.called
    second, waiting = taken(tmp_path, clock)
    assert not waiting.called
    first.release()
    clock.advance(0.2)
    await waiting
    third, waiting = taken(tmp_path, clock)
    for _ in range(int(PATIENCE / 0.1) + 2):
        clock.advance(0.1)
    with pytest.raises(FolderTaken, match=f"process {os.getpid()}.* works in {tmp_path}"):
        await waiting
    second.release()


@pytest.mark.system
def test_a_second_daemon_touches_nothing(tmp_path: Path) -> None:
    """It would abort what the first one receives, and then fail at the port, or not even there."""
    holder = subprocess.Popen(
        [sys.executable, "-c", "import fcntl, os, signal, sys; file = open(sys.argv[1], 'w'); "
         "fcntl.flock(file, fcntl.LOCK_EX); print(os.getpid(), file=file, flush=True); print('held', flush=True); "
         "signal.pause()", str(tmp_path / "lock")],
        stdout=subprocess.PIPE,
    )  # fmt: skip
    serve = [sys.executable, "-m", "xapi_migrate.cli", "serve", "--state-dir", str(tmp_path), "--listen",
             "tcp:0:interface=127.0.0.1"]  # fmt: skip
    try:
        assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
        done = subprocess.run(serve, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 1
        assert f"Another daemon (process {holder.pid}) works in {tmp_path}" in done.stderr
        assert "Traceback" not in done.stdout
        assert sorted(path.name for path in tmp_path.iterdir()) == ["lock", "migrations"]
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        assert holder.stdout is not None
        holder.stdout.close()
