"""Processes that outlive the daemon and are found again after its restart.

Each has a folder of its own: its working directory (so its sockets have short relative paths), its
stdout and stderr as files (a pipe would kill it with the daemon), and `process.json`, which names it by
pid, start time and boot id, so that a recycled pid is never mistaken for it. What has no record yet is found by its
environment (`remains.strays`).
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import attrs
from twisted.internet import defer
from twisted.internet.interfaces import IReactorFDSet, IReadDescriptor
from zope.interface import implementer

from xapi_migrate.processes.in_thread import in_thread
from xapi_migrate.whole_file import write_whole

RECORD = "process.json"
STARTED_IN = "XAPI_MIGRATE_STARTED_IN"
"""In the environment of each such process: its folder. A daemon that is killed just when it has started one leaves it
without a record; by this the next one knows it."""


def boot_id() -> str:
    """This boot of the machine; a process of another boot is gone for sure."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def of_this_boot(folder: Path) -> bool:
    """Whether the process of this folder, dead or alive, was one of this boot."""
    try:
        return bool(json.loads((folder / RECORD).read_text())["boot"] == boot_id())
    except (OSError, ValueError, KeyError, TypeError):
        return False


def start_time(pid: int) -> int | None:
    """When the process started, in clock ticks since boot; None if there is no such process or it is a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = stat.rsplit(")", 1)[1].split()
    return None if fields[0] in "ZX" else int(fields[19])


def resident(pid: int) -> int:
    """Bytes of memory that the process takes up; 0 if it is gone."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError, ValueError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


@attrs.frozen
class ProcessName:
    """A process that cannot be confused with a later one of the same pid."""

    pid: int
    started: int
    boot: str

    def alive(self) -> bool:
        return self.boot == boot_id() and start_time(self.pid) == self.started


@implementer(IReadDescriptor)
class Child:
    """One such process: `ended` fires when it is gone, whoever started it."""

    def __init__(self, reactor: IReactorFDSet, folder: Path, name: ProcessName) -> None:
        self.folder = folder
        self.name = name
        self._reactor = reactor
        self._waiting: list[defer.Deferred[None]] = []
        self._gone = False
        self._pidfd = -1
        try:
            self._pidfd = os.pidfd_open(name.pid)
        except ProcessLookupError:
            pass
        if self._pidfd < 0 or not name.alive():
            self._reap()
            self.connectionLost(None)
        else:
            reactor.addReader(self)

    @property
    def pid(self) -> int:
        return self.name.pid

    @property
    def alive(self) -> bool:
        return not self._gone and self.name.alive()

    def ended(self) -> defer.Deferred[None]:
        """Fires when the process is gone (at once if it is)."""
        done: defer.Deferred[None] = defer.Deferred(lambda d: self._waiting.remove(d))
        if self._gone:
            done.callback(None)
        else:
            self._waiting.append(done)
        return done

    def kill(self) -> defer.Deferred[None]:
        """SIGKILL by pidfd, so never a stranger; fires when the process is gone."""
        if not self._gone:
            try:
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            except ProcessLookupError:
                pass
        return self.ended()

    def abandon(self) -> None:
        """Stop watching; the process lives on."""
        if not self._gone:
            self._reactor.removeReader(self)
            os.close(self._pidfd)
            self._pidfd = -1
            self._gone = True

    def errors(self) -> str:
        """The end of what it wrote to stderr (at most 2,000 bytes), for an error message."""
        try:
            with (self.folder / "stderr").open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - 2000))
                return file.read(2000).decode("utf-8", "replace").strip()
        except OSError:
            return ""

    # IReadDescriptor: the reactor reads "pidfd is ready" as "the process has ended"
    def fileno(self) -> int:
        return self._pidfd

    def logPrefix(self) -> str:
        return f"child {self.name.pid}"

    def _reap(self) -> None:
        try:
            os.waitpid(self.name.pid, os.WNOHANG)
        except ChildProcessError:
            pass  # started by an earlier daemon

    def doRead(self) -> None:
        self._reap()
        self._reactor.removeReader(self)
        self.connectionLost(None)

    def connectionLost(self, reason: object) -> None:
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1
        self._gone = True
        waiting, self._waiting = self._waiting, []
        for done in waiting:
            done.callback(None)


def _spawn(folder: Path, argv: Sequence[str], env: Mapping[str, str], pass_fds: Sequence[int]) -> ProcessName:
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (folder / "stdout").open("ab") as out, (folder / "stderr").open("ab") as err:
        process = subprocess.Popen(
            argv, cwd=folder, env={**env, STARTED_IN: str(folder.resolve())}, stdin=subprocess.DEVNULL, stdout=out,
            stderr=err, start_new_session=True, pass_fds=pass_fds,
        )  # fmt: skip
    process.returncode = 0  # reaped through the pidfd: subprocess must not wait for it too
    name = ProcessName(process.pid, start_time(process.pid) or 0, boot_id())
    try:
        write_whole(folder / RECORD, json.dumps(attrs.asdict(name)), durable=False)
    except OSError:  # no room for it, say: nobody would find the process again
        os.kill(process.pid, signal.SIGKILL)
        os.waitpid(process.pid, 0)
        raise
    return name


async def spawn(
    reactor: IReactorFDSet,
    folder: Path,
    argv: Sequence[str],
    env: Mapping[str, str] = os.environ,
    pass_fds: Sequence[int] = (),
) -> Child:
    """Start `argv` in `folder` (made if missing). OSError if the program cannot be started, or there is
    no room for its record; then, and when cancelled, nothing runs. A folder has one process: what an earlier daemon was
    just starting in it is ended."""
    before = find(reactor, folder)
    if before is not None:
        await before.kill()
    started: list[ProcessName] = []
    try:
        await in_thread(lambda: started.append(_spawn(folder, argv, env, pass_fds)))
    except defer.CancelledError:
        if started:
            await Child(reactor, folder, started[0]).kill()
        raise
    return Child(reactor, folder, started[0])


def find(reactor: IReactorFDSet, folder: Path) -> Child | None:
    """The process that lives in `folder`, started by this daemon or an earlier one; None if it is gone."""
    try:
        name = ProcessName(**json.loads((folder / RECORD).read_text()))
    except (OSError, ValueError, TypeError):
        return None
    return Child(reactor, folder, name) if name.alive() else None
