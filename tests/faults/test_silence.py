"""One side is silent for longer than a heartbeat may be lost, in each phase: its daemon hangs, or the link is down or
stalls. Before the decision both sides give the migration up by themselves, and the guest runs on where it was; after it
the guest has moved. When the silent one speaks again it learns how it ended."""

from __future__ import annotations

from typing import Any

import pytest

from tests.faults.blows import Blow, hang
from tests.faults.clients import Client
from tests.faults.ground import SETTINGS, Ground
from tests.faults.points import Point

pytestmark = pytest.mark.system

LONG = float(SETTINGS["heartbeat_lost"]) + 4
BLOWS = [
    hang("sender", LONG),
    hang("receiver", LONG),
    Blow("long cut", lambda ground: ground.link.take_down(), lasts=LONG),
    Blow("long stall", lambda ground: ground.link.stall(), lasts=LONG),
]
POINTS = {
    "2": Point("sender", "2.3"),
    "3": Point("sender", "3.6"),
    "4": Point("sender", "4.3"),
    "4 without its end": Point("receiver", "AwaitingDone"),
    "in doubt": Point("sender", "after-done"),
    "committed": Point("receiver", "after-committed"),
}
USUAL = {("2", "receiver hangs"), ("3", "sender hangs"), ("3", "long cut"), ("4", "long stall")}
"""For `make test`: a case takes 25 s."""


def cases() -> list[Any]:
    return [
        pytest.param(
            phase, blow, id=f"{phase}-{blow}", marks=() if (phase, blow.name) in USUAL else pytest.mark.every_cell
        )
        for phase in POINTS
        for blow in BLOWS
    ]


@pytest.mark.parametrize(("phase", "blow"), cases())
def test_silence(ground: Ground, phase: str, blow: Blow) -> None:
    client = Client()
    where = ground.run(POINTS[phase], blow, client)
    print(f"silence: {where}, {ground.healing:.1f} s; {' '.join(client.told['error_info'])}")
    if phase == "committed":
        assert (where, client.told["status"]) == ("receiver", "success")
    elif (phase, blow.name) == ("4", "sender hangs"):
        # the stream goes on without its daemon: whether it comes to its end in time is a matter of moments
        assert (where, client.told["status"]) in (("receiver", "success"), ("sender", "failure"))
    else:
        assert (where, client.told["status"]) == ("sender", "failure")
