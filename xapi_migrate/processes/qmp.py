"""QMP, the JSON protocol of QEMU's monitors: one command at a time in order, events in between,
descriptors by SCM_RIGHTS."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.internet import defer, task
from twisted.internet.endpoints import UNIXClientEndpoint
from twisted.internet.error import ConnectError, ConnectionDone, ConnectionLost
from twisted.internet.protocol import Factory
from twisted.protocols.basic import LineReceiver
from twisted.python.failure import Failure

from xapi_migrate.together import connected

Event = dict[str, Any]
GREETING = 2.0
"""Seconds to wait for a monitor's greeting before it is asked anew."""


class QMPError(Exception):
    """QEMU refused a command; the text is its own."""

    def __init__(self, command: str, error: dict[str, Any]) -> None:
        super().__init__(f"{command}: {error.get('desc', error)}")
        self.kind = str(error.get("class", ""))


class QMP(LineReceiver):
    """One connection. QEMU serves one client at a time; a second one waits in silence."""

    delimiter = b"\n"
    MAX_LENGTH = 16 << 20

    def __init__(self, clock: Any) -> None:
        self._clock = clock
        self._pending: dict[int, tuple[str, defer.Deferred[Any]]] = {}
        self._sequence = 0
        self._watchers: list[Callable[[str, Event], None]] = []
        self._lost: Failure | None = None
        self.ready: defer.Deferred[QMP] = defer.Deferred()
        self.closed: defer.Deferred[None] = defer.Deferred()

    def watch(self, callback: Callable[[str, Event], None]) -> Callable[[], None]:
        """`callback(name, data)` at each event; the returned function ends it."""
        self._watchers.append(callback)
        return lambda: self._watchers.remove(callback) if callback in self._watchers else None

    def event(self, predicate: Callable[[str, Event], bool]) -> defer.Deferred[Event]:
        """Fires with the data of the first later event for which the predicate holds; fails with the connection."""
        done: defer.Deferred[Event] = defer.Deferred(lambda _: stop())

        def seen(name: str, data: Event) -> None:
            if not done.called and (name == "" or predicate(name, data)):
                stop()
                if name == "":
                    done.errback(self._lost or Failure(ConnectionDone()))
                else:
                    done.callback(data)

        stop = self.watch(seen)
        return done

    def execute(
        self,
        command: str,
        arguments: dict[str, Any] | None = None,
        *,
        fd: int = -1,
        timeout: float = 60.0,
        oob: bool = False,
    ) -> defer.Deferred[Any]:
        """Run a command. `fd` travels with it and must stay open until this fires. QMPError when refused,
        TimeoutError when there is no answer in time, ConnectionDone when QEMU is gone."""
        if self._lost is not None:
            return defer.fail(self._lost)
        self._sequence += 1
        number = self._sequence
        done: defer.Deferred[Any] = defer.Deferred(lambda _: self._forget(number))
        self._pending[number] = (command, done)
        message: dict[str, Any] = {"exec-oob" if oob else "execute": command, "id": number}
        if arguments:
            message["arguments"] = arguments
        transport: Any = self.transport  # a unix transport: it alone can send descriptors
        if fd >= 0:
            transport.sendFileDescriptor(fd)
        transport.write(json.dumps(message).encode() + b"\n")

        def late(_: object, seconds: float) -> None:
            raise TimeoutError(f"{command}: no answer within {seconds:g} seconds")

        done.addTimeout(timeout, self._clock, late)
        return done

    def _forget(self, number: int) -> None:
        self._pending.pop(number, None)

    def lineReceived(self, line: bytes) -> None:
        if not line.strip():
            return
        message = json.loads(line)
        if "QMP" in message:
            oob = {"enable": ["oob"]} if "oob" in message["QMP"].get("capabilities", ()) else None
            self.execute("qmp_capabilities", oob).addCallbacks(lambda _: self.ready.callback(self), self._refused)
        elif "event" in message:
            self._tell(str(message["event"]), message.get("data", {}))
        else:
            command, done = self._pending.pop(message.get("id"), ("", None))
            if done is None:
                return  # the answer to a command that was given up
            if "error" in message:
                done.errback(QMPError(command, message["error"]))
            else:
                done.callback(message.get("return"))

    def _refused(self, failure: Failure) -> None:
        if not self.ready.called:
            self.ready.errback(failure)

    def _tell(self, name: str, data: Event) -> None:
        for watcher in list(self._watchers):
            watcher(name, data)

    def connectionLost(self, reason: Failure | None = None) -> None:
        self._lost = reason or Failure(ConnectionDone())
        pending, self._pending = self._pending, {}
        for _, done in pending.values():
            done.errback(self._lost)
        self._refused(self._lost)
        self._tell("", {})
        self.closed.callback(None)

    def close(self) -> None:
        """Let go of the monitor; the program behind it goes on."""
        if self.transport is not None:
            self.transport.loseConnection()


class _Quiet(Factory):
    """Makes one QMP without a line in the log for its beginning and its end."""

    noisy = False

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor

    def buildProtocol(self, addr: object) -> QMP:
        return QMP(self._reactor)


async def connect(reactor: Any, path: Path, alive: Callable[[], bool], timeout: float = 10.0) -> QMP:
    """Connect to a monitor that may not have made its socket yet.

    The socket is reached through its folder's descriptor, because a unix address holds 108 bytes and a state
    folder may be deep. ConnectionError when the program died (`alive` said no), TimeoutError.
    """
    deadline = reactor.seconds() + timeout
    folder = -1
    try:
        while True:
            try:
                if folder < 0:
                    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
                endpoint = UNIXClientEndpoint(reactor, f"/proc/self/fd/{folder}/{path.name}")
                return await _greeted(reactor, await connected(endpoint.connect(_Quiet(reactor))), deadline)
            except (ConnectError, ConnectionDone, ConnectionLost, OSError) as failure:
                if not alive():
                    raise ConnectionError(f"{path.parent.name} ended before its monitor answered") from failure
                if reactor.seconds() > deadline:
                    said = "no greeting from" if isinstance(failure, TimeoutError) else "no monitor at"
                    raise TimeoutError(
                        f"{said} {path} within {timeout:g} seconds: is it in another's hands?"
                    ) from failure
            await task.deferLater(reactor, 0.01)
    finally:
        if folder >= 0:
            os.close(folder)


async def _greeted(reactor: Any, qmp: QMP, deadline: float) -> QMP:
    """Wait for the greeting. A program that is just starting can lose it (its monitor's thread comes up after the
    client was let in); a new connection then gets one, so the wait is short and TimeoutError means: connect again."""

    def late(_: object, seconds: float) -> QMP:
        raise TimeoutError(f"no greeting within {seconds:g} seconds")

    qmp.ready.addTimeout(max(0.1, min(GREETING, deadline - reactor.seconds())), reactor, late)
    try:
        await qmp.ready
        return qmp
    except BaseException:
        transport: Any = qmp.transport
        if transport is not None:
            transport.abortConnection()
        raise
