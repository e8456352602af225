"""A soak: one guest moves back and forth a hundred times while it writes, with random cancels and kills; then nothing
has grown. `python -m tests.faults.soak [MOVES [SEED]]`.

In the first half daemons are killed too. In the second half they live, so that what grows in them can be seen.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable
from pathlib import Path

import attrs

from tests.faults.blows import BLOWS, Blow
from tests.faults.clients import Client
from tests.faults.ground import Ground
from tests.faults.points import MOVED, Point
from xapi_migrate.lab.host import LabHost

GUESTS = {"sender domain", "receiver domain"}
"""Blows that end the guest."""
CLASSES = ("VM", "VDI", "VBD", "VIF", "SR", "PBD", "network", "host")
MORE_DESCRIPTORS, MORE_MEMORY, MORE_BYTES = 8, 1.15, 2 << 20
"""How much more there may be at the end than in the middle."""


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


def flat(middle: Measured, end: Measured) -> list[str]:
    """What has grown."""
    grown = []
    if end.descriptors > middle.descriptors + MORE_DESCRIPTORS:
        grown.append("descriptors")
    if end.memory > middle.memory * MORE_MEMORY:
        grown.append("memory")
    if end.records != middle.records:
        grown.append("records")
    if end.images > middle.images + MORE_BYTES:
        grown.append("bytes in the SRs")
    if end.state > middle.state + MORE_BYTES:
        grown.append("bytes in the state folders")
    if end.processes != middle.processes:
        grown.append("processes")
    return grown


def main(moves: int, seed: int) -> int:
    chance, ground = random.Random(seed), Ground()
    began, ended = time.monotonic(), {"moved": 0, "stayed": 0}
    middle: Measured | None = None
    print(f"soak: {moves} migrations, seed {seed}", flush=True)
    try:
        for number in range(1, moves + 1):
            client = Client()
            point, blow = choose(chance, client, number <= moves // 2)
            where = ground.run(point, blow, client)
            ended["moved" if where == "receiver" else "stayed"] += 1
            now = measure(ground)
            print(f"{number:3} {point} {blow}: {where}, {now}", flush=True)
            if number == moves * 6 // 10:  # daemons that were started last have warmed up
                middle = now
        assert middle is not None
        grown = flat(middle, now)
    finally:
        ground.close()
    print(f"soak: {moves} migrations in {time.monotonic() - began:.0f} s, {ended}, seed {seed}")
    print(f"soak: in the middle {middle}\nsoak: at the end    {now}")
    print(f"soak: grown: {', '.join(grown) or 'nothing'}")
    return 1 if grown else 0


if __name__ == "__main__":
    numbers = [int(word) for word in sys.argv[1:]]
    sys.exit(main(numbers[0] if numbers else 100, numbers[1] if len(numbers) > 1 else random.randrange(10_000)))
