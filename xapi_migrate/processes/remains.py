"""What daemons leave on the machine when they have gone: processes and mounts below a folder.

A process is only ended where its name is sure: its `process.json` (pid, start time, boot), the environment that it was
started with, or a command line that is the daemon's word for word.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from .child import RECORD, STARTED_IN, ProcessName, boot_id, start_time


def children(folder: Path) -> dict[ProcessName, Path]:
    """The processes alive that were started below the folder, and where each works."""
    return {**_recorded(folder), **strays(folder)}


def strays(folder: Path) -> dict[ProcessName, Path]:
    """Those that have no record: the daemon was killed when it had just started them. While a daemon runs, also what it
    is starting at this moment."""
    recorded, place, found = _recorded(folder), folder.resolve(), {}
    for entry in Path("/proc").iterdir():
        where = _started_in(entry) if entry.name.isdigit() else None
        if where is None or place not in where.parents:
            continue
        pid, started = int(entry.name), start_time(int(entry.name))
        name = ProcessName(pid, started or 0, boot_id())
        if started is not None and name not in recorded:
            found[name] = where
    return found


def end_strays(folder: Path) -> list[str]:
    """Kill them; one sentence for each. Nobody had been told yet that they run."""
    found = strays(folder)
    end(found)
    return [f"process {name.pid} in {where}" for name, where in found.items()]


def _started_in(process: Path) -> Path | None:
    """The folder that a process was started in by a daemon, not by such a process."""
    try:
        if os.getsid(int(process.name)) != int(process.name):
            return None
        environment = (process / "environ").read_bytes().split(b"\0")
    except OSError:
        return None
    mark = f"{STARTED_IN}=".encode()
    return next((Path(os.fsdecode(one.removeprefix(mark))) for one in environment if one.startswith(mark)), None)


def _recorded(folder: Path) -> dict[ProcessName, Path]:
    found = {}
    for record in folder.rglob(RECORD):
        try:
            name = ProcessName(**json.loads(record.read_text()))
        except (OSError, ValueError, TypeError):
            continue
        if name.alive():
            found[name] = record.parent
    return found


def with_command_line(argv: Sequence[str]) -> list[ProcessName]:
    """The processes whose command line is exactly this one."""
    wanted = b"".join(os.fsencode(word) + b"\0" for word in argv)
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            same = (entry / "cmdline").read_bytes() == wanted
        except OSError:
            continue
        started = start_time(int(entry.name))
        if same and started is not None:
            found.append(ProcessName(int(entry.name), started, boot_id()))
    return found


def end(names: Iterable[ProcessName], how: signal.Signals = signal.SIGKILL, patience: float = 10.0) -> bool:
    """Send the signal to each and wait; True when all of them are gone."""
    names = list(names)
    for name in names:
        _signal(name, how)
    deadline = time.monotonic() + patience
    while any(_alive(name) for name in names):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def fate(name: ProcessName) -> str:
    """What a process that was started here does, or how it ended, for an error message."""
    try:
        pid, status = os.waitpid(name.pid, os.WNOHANG)
        if pid:
            return f"status {os.waitstatus_to_exitcode(status)}"
        state = Path(f"/proc/{name.pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        return f"state {state} in {Path(f'/proc/{name.pid}/wchan').read_text()}"
    except OSError:
        return "nothing is known of it"


def mounts(folder: Path) -> list[str]:
    """Mount points at or below the folder, deepest first."""
    place = str(folder.resolve())
    points = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        point = line.split()[4].encode().decode("unicode_escape")
        if point == place or point.startswith(f"{place}/"):
            points.append(point)
    return sorted(points, key=len, reverse=True)


def unmount(folder: Path) -> None:
    """Undo all mounts at or below the folder."""
    for point in mounts(folder):
        subprocess.run(["umount", "--lazy", point], check=False, capture_output=True)


def _signal(name: ProcessName, how: signal.Signals) -> None:
    try:
        pidfd = os.pidfd_open(name.pid)
    except ProcessLookupError:
        return
    try:
        if name.alive():
            signal.pidfd_send_signal(pidfd, how)
    except ProcessLookupError:
        pass
    finally:
        os.close(pidfd)


def _alive(name: ProcessName) -> bool:
    """Zombies of our own are reaped here, and count as gone."""
    try:
        os.waitpid(name.pid, os.WNOHANG)
    except ChildProcessError:
        pass
    return name.alive()
