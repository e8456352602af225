"""Storage that comes up later than the host: its SR is attached when it is there, and nobody has to ask for it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import defer
from twisted.internet.task import Clock
from twisted.logger import LogEvent, formatEvent, globalLogPublisher

from tests.toolstack.small_host import SmallHost, World, small_host
from tests.toolstack.test_suspend import Guest, journals, until
from tests.toolstack.test_unsettled import gone, images_elsewhere, plug, stopped_at
from xapi_migrate.errors import SrBackendFailure
from xapi_migrate.testing.fake_sm import FakeSR
from xapi_migrate.toolstack import late_srs, unsettled


@pytest.fixture
def said() -> Iterator[list[str]]:
    """What the log says of SRs that are attached or not."""
    found: list[str] = []

    def note(event: LogEvent) -> None:
        if event.get("log_namespace", "").endswith("LateSRs"):
            found.append(formatEvent(event))

    globalLogPublisher.addObserver(note)
    yield found
    globalLogPublisher.removeObserver(note)


def attached(here: SmallHost, sr: str) -> bool:
    [pbd] = here.get("SR", sr)["PBDs"]
    return bool(here.get("PBD", pbd)["currently_attached"])


@pytest_twisted.ensureDeferred
async def test_it_is_attached_when_it_is_there_and_what_waited_for_it_is_settled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    """Those that wait are woken: their own next attempt would be an hour away."""
    monkeypatch.setattr(late_srs, "FIRST", 0.01)
    monkeypatch.setattr(unsettled, "FIRST", 3600.0)
    world = World()
    async with small_host(tmp_path, world) as here:
        guest = await Guest.started(here)
        sr = await images_elsewhere(here, guest)
        await here.call("VM.suspend", guest.vm)
        await stopped_at(here, guest, "VM.resume", "decided")
        gone(here, sr)
    made: list[str] = []
    world.made = made.append
    async with small_host(tmp_path, world) as here:
        guest, uuid = guest.at(here), here.get("SR", sr)["uuid"]
        await until(lambda: made.count(uuid) > 3, "a few attempts")
        assert not attached(here, sr) and len(here.toolstack.unsettled.all()) == 1
        [why] = said
        assert uuid in why and "(local)" in why and "the simulation said so" in why
        world.broken = set()
        await until(lambda: not here.toolstack.unsettled.all(), "the journal's end")
        assert attached(here, sr) and journals(tmp_path) == []
        assert said == [why, f"SR {uuid} (local) is attached now"]
        attempts = made.count(uuid)
        await guest.runs()
        assert made.count(uuid) == attempts
        await here.call("VM.hard_shutdown", guest.vm)


class Tried:
    """An SR by its PBD, and when it was tried."""

    def __init__(self) -> None:
        self.clock, self.at, self.answer = Clock(), list[float](), defer.Deferred[None]()
        self.hangs = False
        self.pbd: dict[str, Any] = {"SR": "sr", "currently_attached": False}
        self.late = late_srs.LateSRs(self, self.clock, self.plug)  # type: ignore[arg-type]
        self.late.keep("pbd", SrBackendFailure("attaching", "no route"))

    def has(self, cls: str, ref: str) -> bool:
        return cls == "PBD"

    def get(self, cls: str, ref: str) -> dict[str, Any]:
        return self.pbd

    async def plug(self, pbd: str) -> None:
        self.at.append(self.clock.seconds())
        if self.hangs:
            await self.answer
        raise SrBackendFailure("attaching", "no route")


def test_the_pauses_grow_to_a_minute() -> None:
    tried = Tried()
    for _ in range(300):
        tried.clock.advance(1)
    assert tried.at == [5, 15, 35, 75, 135, 195, 255]
    tried.pbd["currently_attached"] = True  # by PBD.plug
    tried.clock.advance(60)
    tried.clock.advance(600)
    assert len(tried.at) == 7 and tried.clock.getDelayedCalls() == []


@pytest.mark.parametrize("when", ["pauses", "tries"])
@pytest.mark.parametrize("end", ["stop", "leave"])
def test_it_can_be_ended_at_any_time(when: str, end: str) -> None:
    tried = Tried()
    tried.hangs = when == "tries"
    tried.clock.advance(5)
    tried.late.stop() if end == "stop" else tried.late.leave("pbd")
    assert tried.clock.getDelayedCalls() == [] and len(tried.at) == 1
    assert tried.answer.called is tried.hangs
    tried.clock.advance(600)
    assert len(tried.at) == 1


@pytest.mark.parametrize("call", ["PBD.unplug", "PBD.destroy", "SR.forget"])
@pytest_twisted.ensureDeferred
async def test_one_that_an_administrator_leaves_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    monkeypatch.setattr(late_srs, "FIRST", 0.05)
    world = World()
    async with small_host(tmp_path, world) as here:
        sr = await here.sr()
        gone(here, sr)
    async with small_host(tmp_path, world) as here:
        [pbd] = here.get("SR", sr)["PBDs"]
        await here.call(call, sr if call == "SR.forget" else pbd)
        assert here.toolstack.storage._late._trying == {}
        world.broken = set()


@pytest_twisted.ensureDeferred
async def test_the_end_of_the_daemon_ends_it(tmp_path: Path) -> None:
    world = World()
    async with small_host(tmp_path, world) as here:
        sr = await here.sr()
        gone(here, sr)
    async with small_host(tmp_path, world) as here:
        late = here.toolstack.storage._late
        assert list(late._trying) == here.get("SR", sr)["PBDs"]
    assert late._trying == {}


@pytest_twisted.ensureDeferred
async def test_one_that_is_being_attached_is_not_attached_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PBD.plug while it is tried again: one of them opens it."""

    class SlowSR(FakeSR):
        async def attach(self) -> None:
            await slow
            await super().attach()

    slow: defer.Deferred[None] = defer.succeed(None)
    world = World(kind=SlowSR)
    monkeypatch.setattr(late_srs, "FIRST", 0.01)
    async with small_host(tmp_path, world) as here:
        sr = await here.sr()
        gone(here, sr)
    made: list[str] = []
    async with small_host(tmp_path, world) as here:
        world.broken, world.made = set(), made.append
        slow = defer.Deferred()
        await until(lambda: made, "an attempt")
        assert not attached(here, sr)
        plugged = defer.ensureDeferred(plug(here, sr))  # type: ignore[arg-type]
        slow.callback(None)
        await plugged
        assert attached(here, sr) and len(made) == 1
