"""QMP, against a monitor of our own in memory and against a real one."""

from __future__ import annotations

import json
import os

import pytest
from pytest_twisted import ensureDeferred
from twisted.internet import defer, reactor
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure

from xapi_migrate.processes import child, qmp

GREETING = {"QMP": {"version": {}, "capabilities": ["oob"]}}


class Transport(StringTransport):
    """A unix transport in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.descriptors = []

    def sendFileDescriptor(self, fd: int) -> None:
        self.descriptors.append(fd)


class Monitor:
    """The other side of a connection."""

    def __init__(self, greet: bool = True) -> None:
        self.clock = Clock()
        self.qmp = qmp.QMP(self.clock)
        self.transport = Transport()
        self.qmp.makeConnection(self.transport)
        if greet:
            self.say(GREETING)
            assert self.heard() == [
                {"execute": "qmp_capabilities", "id": 1, "arguments": {"enable": ["oob"]}},
            ]
            self.say({"return": {}, "id": 1})

    def say(self, message: object) -> None:
        self.qmp.dataReceived(json.dumps(message).encode() + b"\r\n")

    def heard(self) -> list[dict]:
        data = self.transport.value()
        self.transport.clear()
        return [json.loads(line) for line in data.splitlines()]

    def hang_up(self) -> None:
        self.qmp.connectionLost(Failure(ConnectionDone()))


def result(deferred: defer.Deferred) -> object:
    results = []
    deferred.addBoth(results.append)
    assert results, "no answer yet"
    if isinstance(results[0], Failure):
        results[0].raiseException()
    return results[0]


def test_greeting():
    monitor = Monitor()
    assert result(monitor.qmp.ready) is monitor.qmp


def test_answers_find_their_commands():
    monitor = Monitor()
    first, second = monitor.qmp.execute("one"), monitor.qmp.execute("two", {"a": 1}, fd=7, oob=True)
    assert monitor.heard() == [
        {"execute": "one", "id": 2},
        {"exec-oob": "two", "id": 3, "arguments": {"a": 1}},
    ]
    assert monitor.transport.descriptors == [7]
    monitor.say({"error": {"class": "GenericError", "desc": "it is too late"}, "id": 3})
    monitor.say({"return": [1], "id": 2})
    assert result(first) == [1]
    with pytest.raises(qmp.QMPError, match="two: it is too late"):
        result(second)


def test_a_command_without_an_answer():
    monitor = Monitor()
    asked = monitor.qmp.execute("stop", timeout=5)
    monitor.clock.advance(5)
    with pytest.raises(TimeoutError, match="stop: no answer within 5 seconds"):
        result(asked)
    monitor.say({"return": {}, "id": 2})  # late: nobody waits
    again = monitor.qmp.execute("stop")
    monitor.say({"return": {}, "id": 3})
    assert result(again) == {}
    assert monitor.clock.getDelayedCalls() == []


def test_the_connection_ends():
    monitor = Monitor()
    asked, event = monitor.qmp.execute("quit"), monitor.qmp.event(lambda name, data: True)
    monitor.hang_up()
    for waiting in (asked, event, monitor.qmp.execute("stop")):
        with pytest.raises(ConnectionDone):
            result(waiting)
    assert result(monitor.qmp.closed) is None
    assert monitor.clock.getDelayedCalls() == []


def test_the_connection_ends_before_the_greeting():
    monitor = Monitor(greet=False)
    monitor.hang_up()
    with pytest.raises(ConnectionDone):
        result(monitor.qmp.ready)


def test_events():
    monitor = Monitor()
    seen = []
    stop = monitor.qmp.watch(lambda name, data: seen.append(name))
    waited = monitor.qmp.event(lambda name, data: name == "MIGRATION" and data["status"] == "completed")
    given_up = monitor.qmp.event(lambda name, data: True)
    given_up.cancel()
    with pytest.raises(defer.CancelledError):
        result(given_up)
    monitor.say({"event": "STOP"})
    monitor.say({"event": "MIGRATION", "data": {"status": "active"}})
    monitor.say({"event": "MIGRATION", "data": {"status": "completed"}})
    assert result(waited) == {"status": "completed"}
    stop()
    stop()
    monitor.say({"event": "STOP"})
    assert seen == ["STOP", "MIGRATION", "MIGRATION"]


ARGV = ["qemu-system-x86_64", "-accel", "tcg", "-machine", "none", "-nodefaults", "-display", "none"]
ARGV += ["-qmp", "unix:qmp.sock,server=on,wait=off"]


@pytest.mark.system
@ensureDeferred
async def test_a_real_monitor_behind_a_long_path(short_tmp):
    folder = short_tmp / ("a-long-name-" * 12)
    process = await child.spawn(reactor, folder, ARGV)
    try:
        monitor = await qmp.connect(reactor, folder / "qmp.sock", lambda: process.alive)
        read, write = os.pipe()
        try:
            await monitor.execute("getfd", {"fdname": "pipe"}, fd=write)
        finally:
            os.close(write)
        with pytest.raises(qmp.QMPError, match="block-job-cancel: Block job 'none' not found"):
            await monitor.execute("block-job-cancel", {"device": "none"})
        await monitor.execute("closefd", {"fdname": "pipe"})
        assert os.read(read, 1) == b""  # the daemon had the only other end
        os.close(read)
        # it serves one client at a time
        with pytest.raises(TimeoutError, match="no greeting"):
            await qmp.connect(reactor, folder / "qmp.sock", lambda: process.alive, timeout=0.3)
        monitor.close()
        await monitor.closed
        again = await qmp.connect(reactor, folder / "qmp.sock", lambda: process.alive)
        closed = again.closed
        await process.kill()
        await closed
    finally:
        await process.kill()


@pytest.mark.system
@ensureDeferred
async def test_a_monitor_that_never_comes(short_tmp):
    with pytest.raises(ConnectionError, match="ended before its monitor answered"):
        await qmp.connect(reactor, short_tmp / "qmp.sock", lambda: False)
    with pytest.raises(TimeoutError, match="no monitor at"):
        await qmp.connect(reactor, short_tmp / "qmp.sock", lambda: True, timeout=0.1)
    with pytest.raises(TimeoutError, match="no monitor at"):
        await qmp.connect(reactor, short_tmp / "no-folder" / "qmp.sock", lambda: True, timeout=0.1)
