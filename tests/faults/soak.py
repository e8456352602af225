"""A soak: one guest moves back and forth a hundred times while it writes, with random cancels and kills; then nothing
has grown. `python -m tests.faults.soak [MOVES [SEED]]`.

In the first half daemons are killed too. In the second half they live, so that what grows in them can be seen.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import attrs

from tests.faults.blows import BLOWS, Blow
from tests.faults.clients import Client
from tests.faults.ground import Ground
from tests.faults.points import MOVED, Point
from xapi_migrate.lab.host import LabHost

GUESTS = {"sender domain", "receiver domain"}
"""Blows that end the guest."""
CLASSES = ("VM", "VDI", "VBD", "VIF", "SR", "PBD", "network", "host")
MORE: dict[str, tuple[str, Callable[[float], float]]] = {
    "descriptors": ("descriptors", lambda few: few + 1),
    "memory": ("memory", lambda few: few * 1.05),
    "records": ("records", lambda few: few),
    "images": ("bytes in the SRs", lambda few: few + (1 << 20)),
    "state": ("bytes in the state folders", lambda few: few + (1 << 19)),
    "processes": ("processes", lambda few: few),
}
"""How each is called, and how much there may be at the end where there was so much before."""


@attrs.frozen
class Measured:
    """Of both hosts together: descriptors and KiB of memory of the daemons, records, bytes in the SRs and in the state
    folders (without logs, consoles and the database), processes."""

    descriptors: int
    memory: int
    records: int
    images: int
    state: int
    processes: int


def measure(ground: Ground) -> Measured:
    hosts = (ground.sender, ground.receiver)
    return Measured(
        descriptors=sum(_each(host, lambda pid: len(list(Path(f"/proc/{pid}/fd").iterdir()))) for host in hosts),
        memory=sum(_each(host, _resident) for host in hosts),
        records=sum(_records(ground, host) for host in hosts),
        images=sum(_bytes(ground.world.lab.sr_location(host, label)) for host in hosts for label in host.srs),
        state=sum(
            _bytes(host.state_dir / name)
            for host in hosts
            for name in ("journal", "domains", "datapaths", "copiers", "nbd", "tgt", "stops", "motions")
        ),
        processes=sum(len(ground.processes(host, kind)) for host in hosts for kind in KINDS),
    )


KINDS = ("domains", "datapaths", "copiers", "tgt")


def _each(host: LabHost, look: Callable[[int], int]) -> int:
    return sum(look(process.pid) for process in host.daemons())


def _resident(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


def _records(ground: Ground, host: LabHost) -> int:
    with ground.world.session(host) as api:
        return sum(len(getattr(api, cls).get_all()) for cls in CLASSES)


def _bytes(folder: Path) -> int:
    """Blocks that are allocated below a folder."""
    found = 0
    for path in folder.rglob("*"):
        try:
            found += path.lstat().st_blocks * 512
        except OSError:
            continue
    return found


def choose(chance: random.Random, client: Client, with_daemons: bool) -> tuple[Point, Blow]:
    """Half of the migrations are left alone, a quarter is cancelled somewhere, a quarter loses something."""
    kind = chance.random()
    if kind < 0.5:
        return Point("sender", "1.5"), Blow("nothing", lambda ground: None)
    if kind < 0.75:
        # before the client has its answer there is no task to be cancelled
        points = [p for p in MOVED if p.role == "sender" and MOVED.index(p) > MOVED.index(Point("sender", "2.1"))]
        return chance.choice(points), Blow("cancel", lambda ground: client.cancel())
    blows = [blow for blow in BLOWS if blow.name not in GUESTS and (with_daemons or not blow.daemon)]
    blow = chance.choice(blows)
    return chance.choice([point for point in MOVED if blow.falls_on(point)]), blow


def flat(samples: Sequence[Measured]) -> list[str]:
    """What has grown from the first third of the samples to the last, by their medians: one sample may be taken while a
    connection is still open, or before memory is given back."""
    third = max(1, len(samples) // 3)
    grown = []
    for name, (what, more) in MORE.items():
        first, last = (median(getattr(one, name) for one in part) for part in (samples[:third], samples[-third:]))
        if last > more(first) or (name in ("records", "processes") and last != first):
            grown.append(what)
    return grown


def main(moves: int, seed: int) -> int:
    chance, ground = random.Random(seed), Ground()
    began, ended = time.monotonic(), {"moved": 0, "stayed": 0}
    samples: list[Measured] = []
    print(f"soak: {moves} migrations, seed {seed}", flush=True)
    try:
        for number in range(1, moves + 1):
            client = Client()
            point, blow = choose(chance, client, number <= moves // 2)
            where = ground.run(point, blow, client)
            ended["moved" if where == "receiver" else "stayed"] += 1
            now = measure(ground)
            print(f"{number:3} {point} {blow}: {where}, {now}", flush=True)
            if number >= max(1, moves * 6 // 10):  # daemons that were started last have warmed up
                samples.append(now)
        grown = flat(samples)
    finally:
        ground.close()
    print(f"soak: {moves} migrations in {time.monotonic() - began:.0f} s, {ended}, seed {seed}")
    print(f"soak: in the middle {samples[0]}\nsoak: at the end    {samples[-1]}")
    print(f"soak: grown: {', '.join(grown) or 'nothing'}")
    return 1 if grown else 0


if __name__ == "__main__":
    numbers = [int(word) for word in sys.argv[1:]]
    sys.exit(main(numbers[0] if numbers else 100, numbers[1] if len(numbers) > 1 else random.randrange(10_000)))
