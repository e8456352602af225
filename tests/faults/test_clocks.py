"""The clocks of both hosts are set forward or back by hours while a migration is under way: nothing times out, nothing
waits for hours, no offer and no session expires. libfaketime shows the daemons, and what they start, another wall
clock; the monotonic one is left alone, as it is when a clock is set."""

from __future__ import annotations

import http.client
import time
import urllib.request
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import pytest
import XenAPI

from tests.faults.blows import Blow
from tests.faults.clients import Client
from tests.faults.ground import Ground
from tests.faults.points import Point
from xapi_migrate.lab.host import USER, LabHost

pytestmark = pytest.mark.system

[LIBRARY] = Path("/usr/lib").glob("*/faketime/libfaketime.so.1")
HOURS = 5
SEEN = 1
"""Seconds for which a process believes what it has read in the file of its clock."""


class Clock:
    """The wall clock of all processes that are started with `environment`."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.set(0)
        self.environment = {
            "LD_PRELOAD": str(LIBRARY),
            "FAKETIME_TIMESTAMP_FILE": str(file),
            "FAKETIME_CACHE_DURATION": str(SEEN),
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "NO_FAKE_STAT": "1",
        }

    def set(self, hours: int) -> None:
        """Wrong by so much, for each process from its next look at the time on."""
        draft = self._file.with_suffix(".new")
        draft.write_text(f"{hours:+d}h\n")
        draft.replace(self._file)
        time.sleep(2 * SEEN + 0.2)  # it counts whole seconds


@pytest.fixture(scope="module")
def clock(tmp_path_factory: pytest.TempPathFactory) -> Clock:
    return Clock(tmp_path_factory.mktemp("clock") / "offset")


@pytest.fixture(scope="module")
def ground(clock: Clock) -> Iterator[Ground]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in clock.environment.items():
            patch.setenv(name, value)
        ground = Ground()
        try:
            ground.open()
            yield ground
        finally:
            ground.close()


POINTS = [Point("sender", "1.4"), Point("receiver", "2.3"), Point("sender", "3.6"), Point("receiver", "4.2")]
USUAL = [(POINTS[2], HOURS), (POINTS[3], -HOURS)]


@pytest.mark.parametrize(
    ("point", "hours"),
    [
        pytest.param(*case, id=f"{case[0]}-{case[1]:+d}h", marks=() if case in USUAL else pytest.mark.every_cell)
        for case in ((point, hours) for point in POINTS for hours in (HOURS, -HOURS))
    ],
)
def test_the_clocks_are_set(ground: Ground, clock: Clock, point: Point, hours: int) -> None:
    ground.open()
    clock.set(0)
    client, sessions, offers = Client(), [], []

    def strike(ground: Ground) -> None:
        offers.extend(ground.world.receive(host=other))
        sessions.append(log_in(other))
        clock.set(hours)

    other = ground.receiver if point.role == "sender" else ground.sender
    assert off_by(other) == pytest.approx(0, abs=0.5)
    assert ground.run(point, Blow("clocks", strike, harmless=True), client) == "receiver"
    assert sessions[0].xenapi.session.get_this_user(sessions[0].handle)
    answer = urllib.request.urlopen(urllib.request.Request(offers[0], method="HEAD"), timeout=10)
    assert answer.status == 200
    urllib.request.urlopen(urllib.request.Request(offers[0], method="DELETE"), timeout=10).close()
    assert off_by(other) == pytest.approx(hours, abs=0.5), "its clock was not set at all"


def log_in(host: LabHost) -> Any:
    session = XenAPI.Session(host.url)
    session.xenapi.login_with_password(USER, host.password, "2.23", "clocks")
    return session


def off_by(host: LabHost) -> float:
    """Hours by which the daemon's wall clock is wrong: it dates its answers by it."""
    connection = http.client.HTTPConnection("127.0.0.1", host.port, timeout=10)
    connection.request("GET", "/migrate/")
    date = connection.getresponse().headers["Date"]
    connection.close()
    return (parsedate_to_datetime(date).timestamp() - time.time()) / 3600
