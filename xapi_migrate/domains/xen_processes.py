"""The processes that talk to libxl for the daemon (xen_call, xen_watch), seen from the daemon."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.internet import defer
from twisted.internet.error import ProcessExitedAlready
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.protocol import ProcessProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure

from xapi_migrate.domains.interfaces import HostMemory
from xapi_migrate.domains.xen_call import STREAM_FD
from xapi_migrate.moment import Moment

_WORDS = 2000


class XenProcess(ProcessProtocol):
    """One of them. `lines` is called with each line that it prints; it ends by itself, or when `give_up` closes its
    stdin."""

    def __init__(self, reactor: Any, module: str, *arguments: str, lines: Callable[[str], None], fd: int = -1) -> None:
        self._lines = lines
        self._buffer = b""
        self._errors = b""
        self.ended: Moment[str] = Moment()
        """"" when it ended well, what it said of the failure otherwise."""
        argv = [sys.executable, "-m", f"{__package__}.{module}", *arguments]
        pipes: dict[int, Any] = {0: "w", 1: "r", 2: "r"}
        if fd >= 0:
            pipes[STREAM_FD] = fd
        reactor.spawnProcess(self, argv[0], argv, env=os.environ, childFDs=pipes)

    def feed(self, data: bytes) -> None:
        transport: Any = self.transport
        if not self.ended.happened:
            transport.write(data)

    def give_up(self) -> None:
        """Close its stdin: a stream ends early, libxl cleans up behind it, and the process ends."""
        transport: Any = self.transport
        transport.closeStdin()

    def kill(self) -> None:
        transport: Any = self.transport
        try:
            transport.signalProcess("KILL")
        except ProcessExitedAlready:
            pass

    def outReceived(self, data: bytes) -> None:
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        for line in lines:
            self._lines(line.decode("utf-8", "replace"))

    def errReceived(self, data: bytes) -> None:
        self._errors = (self._errors + data)[-_WORDS:]

    def processEnded(self, reason: Failure) -> None:
        code = getattr(reason.value, "exitCode", None)
        words = "; ".join(line.strip() for line in self._errors.decode("utf-8", "replace").splitlines() if line.strip())
        self.ended.happen("" if code == 0 else words or f"the process that talks to libxl ended ({reason.value})")


async def call(reactor: Any, verb: str, name: str, folder: Path, limit: float) -> str:
    """One call that has no stream: "" or why it failed. It is not broken off when nobody waits any more: libxl would
    leave half of it behind."""
    process = XenProcess(reactor, "xen_call", verb, name, str(folder), lines=lambda line: None)
    try:
        return await process.ended.wait().addTimeout(limit, reactor)
    except defer.TimeoutError:
        process.kill()
        return f"libxl took longer than {limit:g} seconds"


class XenWatch:
    """What Xen's domains do: `changed` is called with name -> word whenever something may have changed."""

    log = Logger()

    def __init__(self, reactor: Any, limit: float, retry: float, changed: Callable[[dict[str, str]], None]) -> None:
        self._reactor = reactor
        self._limit = limit
        self._retry = retry
        self._changed = changed
        self._process: XenProcess | None = None
        self.memory = HostMemory(0, 0)
        """The last that was told."""
        self._number = 0
        self._asked: dict[int, defer.Deferred[dict[str, str]]] = {}
        self._again: IDelayedCall | None = None
        self._closed = False

    async def ask(self) -> dict[str, str]:
        """Name -> word of all domains, of a moment after this call. OSError when Xen does not say."""
        process = self._process or self._start()
        self._number += 1
        number = self._number
        answer: defer.Deferred[dict[str, str]] = defer.Deferred()
        self._asked[number] = answer
        process.feed(b"\n")
        try:
            return await answer.addTimeout(self._limit, self._reactor)
        except defer.TimeoutError:
            raise OSError(f"Xen did not say within {self._limit:.0f} seconds which domains there are") from None

    def _start(self) -> XenProcess:
        self._number = 0
        self._process = process = XenProcess(self._reactor, "xen_watch", lines=self._said)
        process.ended.wait().addCallback(self._ended)
        return process

    async def close(self) -> None:
        self._closed = True
        if self._again is not None and self._again.active():
            self._again.cancel()
        if self._process is not None:
            process = self._process
            process.give_up()
            await process.ended.wait()

    def _said(self, line: str) -> None:
        told = json.loads(line)
        number, domains = told["asked"], told["domains"]
        self.memory = HostMemory(*told["memory"])
        self._changed(domains)
        for asked in [asked for asked in self._asked if asked <= number]:
            answer = self._asked.pop(asked)
            if not answer.called:
                answer.callback(domains)

    def _ended(self, words: str) -> None:
        self._process = None
        reason = words or "the watcher ended"
        asked, self._asked = self._asked, {}
        for answer in asked.values():
            if not answer.called:
                answer.errback(OSError(reason))
        if not self._closed:
            self.log.error("Xen's domains are not watched, until it begins anew: {reason}", reason=reason)
            self._again = self._reactor.callLater(self._retry, lambda: self._process or self._start())
