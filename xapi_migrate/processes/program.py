"""Run a program to its end, and kill it when nobody waits for it any more."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import attrs
from twisted.internet import defer
from twisted.internet.error import ProcessExitedAlready
from twisted.internet.protocol import ProcessProtocol

MOST = 16 << 20
"""Bytes of output that are kept; the rest is dropped."""


@attrs.frozen
class Ended:
    """How a program ended: `code` as a shell gives it, 128 and the signal where there was one."""

    code: int
    stdout: bytes
    stderr: bytes

    @property
    def complaint(self) -> str:
        """What it said, for people."""
        said = (self.stderr.strip() or self.stdout.strip()).decode("utf-8", "replace")
        return said[-2000:] or f"exit code {self.code}"


class _Program(ProcessProtocol):
    def __init__(self, stdin: bytes) -> None:
        self._stdin = stdin
        self._said: dict[int, bytearray] = {1: bytearray(), 2: bytearray()}
        self.ended: defer.Deferred[Ended] = defer.Deferred(lambda _: self._kill())

    def connectionMade(self) -> None:
        assert self.transport is not None
        self.transport.write(self._stdin)
        self.transport.closeStdin()

    def childDataReceived(self, childFD: int, data: bytes) -> None:
        if len(self._said[childFD]) < MOST:
            self._said[childFD] += data

    def processEnded(self, reason: Any) -> None:
        code = reason.value.exitCode
        if code is None:
            code = 128 + (reason.value.signal or 0)
        if not self.ended.called:
            self.ended.callback(Ended(code, bytes(self._said[1]), bytes(self._said[2])))

    def _kill(self) -> None:
        assert self.transport is not None
        try:
            self.transport.signalProcess("KILL")
        except ProcessExitedAlready:
            pass


async def run(
    reactor: Any, argv: Sequence[str], stdin: bytes = b"", environment: Mapping[str, str] | None = None
) -> Ended:
    """Run `argv`, found on the PATH, with this environment in addition to ours. A program that is not there ends with
    an exit code and says so. Cancelled, it is killed."""
    program = _Program(stdin)
    env = {**os.environ, "LC_ALL": "C", **(environment or {})}
    reactor.spawnProcess(program, argv[0], list(argv), env=env)
    return await program.ended
