"""LVM's commands as child processes: no shell, a limit of time for each, killed when nobody waits any more."""

from __future__ import annotations

import os

from twisted.internet import defer, error, protocol
from twisted.internet import reactor as _reactor
from twisted.internet.interfaces import IProcessTransport
from twisted.python.failure import Failure

from xapi_migrate.errors import SrBackendFailure

LIMIT = 60.0
"""Seconds for one command. A disk that does not answer holds LVM for ever."""
_LAST_WORDS = 3.0
_NOISE = ("WARNING:", "File descriptor ")


async def run(sr: str, program: str, *arguments: str, limit: float = LIMIT) -> str:
    """What it wrote to stdout. SrBackendFailure, which names SR and command; cancelled, the process is killed."""
    what = f"SR {sr} ({' '.join((program, *arguments))})"
    child = _Child()
    # lvm lies in sbin, which a daemon's PATH need not have
    path = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"))
    env = {**os.environ, "PATH": path, "LC_ALL": "C.UTF-8"}
    try:
        _reactor.spawnProcess(child, program, (program, *arguments), env)
    except OSError as failure:
        raise SrBackendFailure(what, f"it cannot be started: {failure}") from failure
    try:
        code = await child.end(limit)
    except (TimeoutError, defer.TimeoutError) as failure:
        raise SrBackendFailure(what, f"no answer for {limit:g} s") from failure
    finally:
        await child.kill()
    if code:
        raise SrBackendFailure(what, child.words() or f"it ended with {code}")
    return child.out.decode("utf-8", "replace")


class _Child(protocol.ProcessProtocol):
    def __init__(self) -> None:
        self.out = b""
        self.err = b""
        self._code: int | str | None = None
        self._waiting: list[defer.Deferred[int | str]] = []

    def end(self, limit: float) -> defer.Deferred[int | str]:
        """Its exit code, or how it ended otherwise. TimeoutError."""
        done: defer.Deferred[int | str] = defer.Deferred(self._waiting.remove)
        if self._code is None:
            self._waiting.append(done)
            done.addTimeout(limit, _reactor)
        else:
            done.callback(self._code)
        return done

    async def kill(self) -> None:
        """Ended when this fires, unless the kernel does not let it go."""
        if self._code is not None:
            return
        assert IProcessTransport.providedBy(self.transport)
        try:
            self.transport.signalProcess("KILL")
            await self.end(_LAST_WORDS)
        except (error.ProcessExitedAlready, TimeoutError, defer.TimeoutError):
            pass

    def words(self) -> str:
        """What it complained of."""
        lines = (line.strip() for line in self.err.decode("utf-8", "replace").splitlines())
        return "; ".join(line for line in lines if line and not line.startswith(_NOISE))[:2000]

    def outReceived(self, data: bytes) -> None:
        self.out += data

    def errReceived(self, data: bytes) -> None:
        self.err += data

    def processEnded(self, reason: Failure) -> None:
        ended = reason.value
        code = getattr(ended, "exitCode", None)
        self._code = f"signal {getattr(ended, 'signal', '?')}" if code is None else code
        waiting, self._waiting = self._waiting, []
        for done in waiting:
            done.callback(self._code)
