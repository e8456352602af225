"""Many migrations that wait for their copies: what their signs of life cost, and whether one was missed.

    python -m bench.heartbeats [--migrations N] [--seconds S] [--interval S]

Sender and receiver, in one process here, with storage and hypervisor in memory, speak over loopback as two daemons do;
the VMs are Halted and their copies stand still. CPU is that of both together.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import attrs
from twisted.internet import defer, reactor, task

from tests.xenapi import two_servers
from tests.xenapi.two_servers import TwoServers
from xapi_migrate.config import Config
from xapi_migrate.migration.heartbeat import Listening


def _heard(beats: dict[int, list[float]]) -> None:
    """Note each sign of life that a receiver gets."""
    touch = Listening.touch

    def noted(self: Listening) -> None:
        beats.setdefault(id(self), []).append(time.monotonic())
        touch(self)

    Listening.touch = noted  # type: ignore[method-assign]


async def _begin(world: TwoServers, count: int) -> None:
    here, there = world.source, world.destination
    sr, to = await here.new_sr(), await there.new_sr()
    for known in here.disks.values():  # the copies stand still, and are looked at by nobody but the migration
        known._pace, known._tick = 0, 3600.0
    for _ in range(count):
        vm = await here.new_vm(sr, running=False)
        vdi_map, vif_map = here.maps(vm, to, there.network)
        dest = await there.call("host.migrate_receive", there.host, there.network, {})
        await here.call("Async.VM.migrate_send", vm, dest, True, vdi_map, vif_map, {})
        await task.deferLater(reactor, 0.05)  # what takes the time of both is not to be taken for silence
    await world.until(lambda: len(there.records.refs("VM")) == count)


async def measure(count: int, seconds: float, interval: float) -> dict[str, Any]:
    beats: dict[int, list[float]] = {}
    _heard(beats)
    changed: Any = two_servers
    changed.TIMES = attrs.evolve(
        two_servers.TIMES, heartbeat_interval=interval, heartbeat_lost=3 * interval, poll=0.5, connect=30.0
    )
    changed.Config = partial(Config, sends_at_once=0, receives_at_once=0)
    with tempfile.TemporaryDirectory() as folder:
        async with two_servers.two_servers(Path(folder)) as world:
            await _begin(world, count)
            await task.deferLater(reactor, interval)
            beats.clear()
            begun, cpu = time.monotonic(), time.process_time()
            await task.deferLater(reactor, seconds)
            spent, took = time.process_time() - cpu, time.monotonic() - begun
            alive = len(world.destination.records.refs("VM"))
            ends = (begun, begun + took)
            gaps = [b - a for times in beats.values() for a, b in itertools.pairwise((ends[0], *times, ends[1]))]
            figures = {
                "load": os.getloadavg()[0], "migrations": alive, "CPU": spent / took,
                "beats": sum(map(len, beats.values())), "heard of": len(beats), "longest silence": max(gaps, default=0),
            }  # fmt: skip
            print(json.dumps(figures, indent=1), flush=True)
            os._exit(0 if alive == count else 1)


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.heartbeats", description=__doc__.split("\n\n")[0])
    parser.add_argument("--migrations", type=int, default=200, help="so many at once (default 200)")
    parser.add_argument("--seconds", type=float, default=60, help="how long they are looked at (default 60)")
    parser.add_argument("--interval", type=float, default=30, help="seconds between two HEADs (default 30)")
    options = parser.parse_args()

    def begin() -> None:
        work = defer.Deferred.fromCoroutine(measure(options.migrations, options.seconds, options.interval))
        work.addErrback(lambda failure: (failure.printTraceback(file=sys.stderr), os._exit(1)))

    reactor.callWhenRunning(begin)  # type: ignore[attr-defined]
    reactor.run()  # type: ignore[attr-defined]


if __name__ == "__main__":
    main()
