"""A process whose record cannot be written: it would be found by nobody, so it must not run."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from xapi_migrate.processes import child

PID = 1 << 30


class Started:
    """In the place of a process."""

    pid = PID
    returncode: int | None = None

    def __init__(self, *argv: Any, **how: Any) -> None:
        pass


def test_what_cannot_be_recorded_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[tuple[str, int, int]] = []
    monkeypatch.setattr(subprocess, "Popen", Started)
    monkeypatch.setattr(os, "kill", lambda pid, number: ended.append(("kill", pid, number)))
    monkeypatch.setattr(os, "waitpid", lambda pid, how: ended.append(("wait", pid, how)))
    (tmp_path / "process.json.new").mkdir()  # as little can be written there as to a full disk
    with pytest.raises(OSError, match="Is a directory"):
        child._spawn(tmp_path, ["sleep", "100"], {}, ())
    assert ended == [("kill", PID, signal.SIGKILL), ("wait", PID, 0)]
