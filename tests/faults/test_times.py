"""Short values of `times.stall`, `times.guard` and `times.iscsi_silence`, and what each does that is seen from outside.
With the usual ones each of these tests fails."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.blows import Blow
from tests.faults.clients import Client
from tests.faults.ground import SETTINGS, Ground
from tests.faults.points import Point
from xapi_migrate.config import MigrationTimes
from xapi_migrate.lab.host import LabHost
from xapi_migrate.lab.lab import Lab

pytestmark = pytest.mark.system
SHORT = {"stall": 2.0, "guard": 2.0, "iscsi_silence": 3}
HEARTBEAT = 60.0
"""Longer than all that is waited for here: it is not what ends anything."""
COPY = Point("sender", "3.6")


class ShortTimes(Ground):
    def lab(self, folder: Path) -> Lab:
        return Lab(folder, settings={**SETTINGS, **SHORT, "heartbeat_lost": HEARTBEAT})


@pytest.fixture(scope="module")
def short() -> Iterator[ShortTimes]:
    ground = ShortTimes()
    try:
        yield ground
    finally:
        ground.close()


def connections(port: int) -> int:
    """Those that a process which listens there has."""
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(int(line[1].rpartition(":")[2], 16) == port and line[3] == "01" for line in lines)


def halt(ground: Ground, host: LabHost, folder: str) -> list[int]:
    """SIGSTOP for all of one kind."""
    pids = ground.processes(host, folder)
    assert pids, f"{host.name} has no {folder}"
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    return pids


def test_stall(short: ShortTimes) -> None:
    """Copiers that stand still are killed and replaced, as soon as no write of theirs can come any more."""
    client, halted = Client(), list[int]()
    short.open()
    host = short.sender
    blow = Blow("stall", lambda ground: halted.extend(halt(ground, ground.sender, "copiers")))
    where = short.run(COPY, blow, client)
    print(f"stall: {short.healing:.1f} s")
    assert (where, client.told["status"]) == ("receiver", "success")
    assert f"no progress for {SHORT['stall']:g} s, starting another copier" in host.log_path.read_text()
    assert SHORT["stall"] <= short.healing < MigrationTimes().stall
    assert not any(Path(f"/proc/{pid}").exists() for pid in halted)


def test_guard(short: ShortTimes) -> None:
    """At the switch-over the target answers no more: the guest, which stands still, runs on at the sender. Draining its
    disk and finishing the copy may each take as long."""
    client, seconds = Client(), list[float]()

    def strike(ground: Ground) -> None:
        assert ground.made is not None
        pids, console = halt(ground, ground.receiver, "tgt"), ground.sender.console(ground.made.uuid)
        begun, size = time.monotonic(), console.stat().st_size

        def until_it_runs() -> None:
            ground.world.wait(lambda: console.stat().st_size > size, "the guest stands still")
            seconds.append(time.monotonic() - begun)
            for pid in pids:
                os.kill(pid, signal.SIGCONT)

        client.beside(until_it_runs)

    where = short.run(Point("sender", "4.3"), Blow("guard", strike), client)
    print(f"guard: {seconds}, {short.healing:.1f} s; {client.told['error_info']}")
    assert (where, client.told["status"]) == ("sender", "failure")
    assert SHORT["guard"] <= seconds[0] < 3 * SHORT["guard"]


def test_iscsi_silence(short: ShortTimes) -> None:
    """The sender's copiers and its daemon stand still: the target gives up their sessions. Then all goes on."""
    client, seconds = Client(), list[float]()

    def strike(ground: Ground) -> None:
        pids, port = halt(ground, ground.sender, "copiers"), ground.receiver.iscsi_port
        assert connections(port)
        begun = time.monotonic()
        ground.world.wait(lambda: not connections(port), "the sessions stay")
        seconds.append(time.monotonic() - begun)
        for pid in pids:
            os.kill(pid, signal.SIGCONT)

    where = short.run(COPY, Blow("iscsi silence", strike), client)
    print(f"iscsi silence: {seconds}, {short.healing:.1f} s")
    assert (where, client.told["status"]) == ("receiver", "success")
    assert seconds[0] < 2 * SHORT["iscsi_silence"]
