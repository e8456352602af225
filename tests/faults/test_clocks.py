"""The clocks of both hosts, or of one, are set forward or back by hours while a migration is under way: nothing times
out, nothing waits for hours, no offer and no session expires. libfaketime shows the daemons, and what they start,
another wall clock; the monotonic one is left alone, as it is when a clock is set."""

from __future__ import annotations

import http.client
import itertools
import time
import urllib.request
from collections.abc import Callable, Iterator
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, ClassVar

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


class Clocks:
    """The wall clocks of daemons, one per host, and of all processes that they start."""

    environment: ClassVar = {
        "LD_PRELOAD": str(LIBRARY),
        "FAKETIME_CACHE_DURATION": str(SEEN),
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "NO_FAKE_STAT": "1",
    }

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def start(self, host: LabHost, start: Callable[[LabHost], None]) -> None:
        """Start its daemon, with its clock."""
        if not self._file(host).exists():
            self._write(host, 0)
        with pytest.MonkeyPatch.context() as patch:
            for name, value in self.environment.items():
                patch.setenv(name, value)
            patch.setenv("FAKETIME_TIMESTAMP_FILE", str(self._file(host)))
            start(host)

    def set(self, hours: int, *hosts: LabHost) -> None:
        """Wrong by so much, for each of their processes from its next look at the time on."""
        for host in hosts:
            self._write(host, hours)
        time.sleep(2 * SEEN + 0.2)  # it counts whole seconds

    def _write(self, host: LabHost, hours: int) -> None:
        draft = self._file(host).with_suffix(".new")
        draft.write_text(f"{hours:+d}h\n")
        draft.replace(self._file(host))

    def _file(self, host: LabHost) -> Path:
        return self._folder / host.name


@pytest.fixture(scope="module")
def clocks(tmp_path_factory: pytest.TempPathFactory) -> Clocks:
    return Clocks(tmp_path_factory.mktemp("clocks"))


@pytest.fixture(scope="module")
def ground(clocks: Clocks) -> Iterator[Ground]:
    real = LabHost.start
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LabHost, "start", lambda host: clocks.start(host, real))
        ground = Ground()
        try:
            ground.open()
            yield ground
        finally:
            ground.close()


POINTS = [Point("sender", "1.4"), Point("receiver", "2.3"), Point("sender", "3.6"), Point("receiver", "4.2")]
WHOSE = ("both", "sender", "receiver")
USUAL = [(POINTS[2], HOURS, "both"), (POINTS[3], -HOURS, "receiver")]


@pytest.mark.parametrize(
    ("point", "hours", "whose"),
    [
        pytest.param(
            *case,
            id=f"{case[0]}-{case[1]:+d}h-{case[2]}",
            marks=() if case in USUAL else pytest.mark.every_cell,
        )
        for case in itertools.product(POINTS, (HOURS, -HOURS), WHOSE)
    ],
)
def test_the_clocks_are_set(ground: Ground, clocks: Clocks, point: Point, hours: int, whose: str) -> None:
    ground.open()
    sender, receiver = ground.sender, ground.receiver
    struck = {"both": (sender, receiver), "sender": (sender,), "receiver": (receiver,)}[whose]
    clocks.set(0, sender, receiver)
    client, sessions, offers = Client(), [], []

    def strike(ground: Ground) -> None:
        offers.extend(ground.world.receive(host=other))
        sessions.append(log_in(other))
        clocks.set(hours, *struck)

    other = ground.receiver if point.role == "sender" else ground.sender
    assert off_by(other) == pytest.approx(0, abs=0.5)
    assert ground.run(point, Blow("clocks", strike, harmless=True), client) == "receiver"
    assert sessions[0].xenapi.session.get_this_user(sessions[0].handle)
    answer = urllib.request.urlopen(urllib.request.Request(offers[0], method="HEAD"), timeout=10)
    assert answer.status == 200
    urllib.request.urlopen(urllib.request.Request(offers[0], method="DELETE"), timeout=10).close()
    for host in (sender, receiver):
        assert off_by(host) == pytest.approx(hours if host in struck else 0, abs=0.5), "another clock was set, or none"


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
