"""The folder of a daemon's state (records, journals, sockets) is full from some point of a migration on, and there is
room again some seconds later. Images and consoles are elsewhere."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.blows import Blow
from tests.faults.clients import Client
from tests.faults.ground import SETTINGS, Ground
from tests.faults.points import Point, Span
from tests.small_disk import fill
from tests.system.world import World
from xapi_migrate.lab.host import LabHost
from xapi_migrate.lab.lab import Lab

pytestmark = pytest.mark.system
FULL = 3.0
"""Seconds without room."""


class SmallLab(Lab):
    """The folder of each host's state is a file system of its own. `Lab.end` unmounts them."""

    def start(self) -> None:
        for host in self.hosts:
            host.state_dir.mkdir()
            size = "size=32m,mode=700"
            subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(host.state_dir)], check=True)
            consoles = self.folder.parent / "consoles" / host.name
            consoles.mkdir(parents=True)
            (host.state_dir / "consoles").symlink_to(consoles)
        super().start()


class SmallWorld(World):
    def left_behind(self, host: LabHost) -> list[str]:
        return [one for one in super().left_behind(host) if one != str(host.state_dir)]


class SmallGround(Ground):
    def lab(self, folder: Path) -> Lab:
        return SmallLab(folder, settings=SETTINGS)

    def world_of(self, lab: Lab) -> World:
        return SmallWorld(lab)

    def heal(self) -> None:
        super().heal()
        for host in (self.sender, self.receiver):
            (host.state_dir / "filler").unlink(missing_ok=True)


@pytest.fixture(scope="module")
def small() -> Iterator[SmallGround]:
    ground = SmallGround()
    try:
        yield ground
    finally:
        ground.close()


def full(side: str, restarted: bool) -> Blow:
    def strike(ground: Ground) -> None:
        host = ground.sender if side == "sender" else ground.receiver
        fill(host.state_dir)
        if restarted:
            host.kill()

    return Blow(f"{side} full", strike, lasts=FULL, daemon=side if restarted else "")


POINTS = [
    Point(*words.split())
    for words in (
        "sender before-begun", "sender Connecting", "receiver before-begun", "receiver after-begun",
        "receiver before-offered", "sender 2.4", "sender 3.6", "receiver before-memory", "sender 4.3",
        "sender before-done", "sender after-done", "receiver before-committed", "sender before-committed",
    )
]  # fmt: skip
USUAL = {
    "sender-before-begun-sender-full", "receiver-before-begun-receiver-full", "sender-2.4-sender-restarted",
    "sender-3.6-receiver-full", "receiver-before-committed-receiver-restarted",
}  # fmt: skip
"""For `make test`: a case takes 6 s."""


def cases() -> Iterator[Any]:
    for point in POINTS:
        for side in ("sender", "receiver"):
            for restarted in (False, True):
                case = f"{point}-{side}-{'restarted' if restarted else 'full'}"
                marks = () if case in USUAL else pytest.mark.every_cell
                yield pytest.param(point, side, restarted, id=case, marks=marks)


@pytest.mark.parametrize(("point", "side", "restarted"), list(cases()))
def test_full(small: SmallGround, point: Point, side: str, restarted: bool) -> None:
    """Up to the switch-over the migration may fail, and says then where there is no space; from it on it goes on: what
    is to be written down has room reserved."""
    client = Client()
    small.open()
    folder = str((small.sender if side == "sender" else small.receiver).state_dir)
    where = small.run(point, full(side, restarted), client)
    told, error = client.told.get("status"), " ".join(client.told.get("error_info", ()))
    print(f"full state: {where}, {small.healing:.1f} s; {told} {error}")
    if not restarted:
        assert where == "receiver" or ("No space left on device" in error and folder in error)
        assert where == "receiver" or not Span("sender 4.3").holds(point)
