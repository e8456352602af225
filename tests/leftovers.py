"""Processes and mounts that stand below a folder: what a test must not leave behind."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

from xapi_migrate.processes.remains import mounts


def _below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(f"{folder}/")


def processes(folder: Path) -> dict[int, str]:
    """pid -> command line of every process that works in the folder or names it in its arguments, except this one."""
    place = str(folder.resolve())
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            if entry.joinpath("stat").read_text().rsplit(")", 1)[1].split()[0] in "ZX":
                continue
            cwd = str((entry / "cwd").readlink()).removesuffix(" (deleted)")
            argv = entry.joinpath("cmdline").read_bytes().decode("utf-8", "replace").split("\0")
        except OSError:
            continue  # ended meanwhile, or a stranger's
        if _below(cwd, place) or any(f"{place}/" in f"{word}/" for word in argv):
            found[int(entry.name)] = " ".join(argv)[:200]
    return found


def _of_process(pid: int, argv: str) -> str:
    return f"process {pid}: {argv}"


def standing(folder: Path) -> list[str]:
    """One sentence for each of those processes and mounts."""
    running = [_of_process(pid, argv) for pid, argv in processes(folder).items()]
    return running + [f"mount {point}" for point in mounts(folder)]


def end_leftovers(folder: Path) -> list[str]:
    """Kill those processes, undo those mounts; the same sentences."""
    said = []
    for pid, argv in processes(folder).items():
        said.append(_of_process(pid, argv))
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
    for point in mounts(folder):
        said.append(f"mount {point}")
        subprocess.run(["umount", "--lazy", point], check=False)
    return said


def end_run(process: subprocess.Popen[bytes], patience: float = 15) -> None:
    """End a pytest that leads a process group: first ask, so that its fixtures clean up, then kill. `patience` in
    seconds."""
    os.killpg(process.pid, signal.SIGINT)
    try:
        process.wait(patience)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
