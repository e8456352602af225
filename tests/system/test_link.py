"""Two hosts in namespaces of their own with a link of 200 Mbit/s between them: a real guest over it, over a link that
is cut, over one that is slower than the guest writes, and over one whose packets are long on the way."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.system import labs
from tests.system.namespaces import Link, distant_hosts, inside
from tests.system.relay import Relay
from tests.system.world import GuestOf, World, as_raw
from xapi_migrate.config import MigrationTimes
from xapi_migrate.lab.lab import Lab
from xapi_migrate.lab.provisioning import Guest
from xapi_migrate.testing.guests.ticker import Ticker
from xapi_migrate.testing.postgresql import PostgreSQL

pytestmark = pytest.mark.system

SETTINGS = {
    "heartbeat_interval": 1.0,
    "heartbeat_lost": 6.0,
    "connect": 3.0,
    "request": 4.0,
    "poll": 0.1,
    "ask": 0.5,
    "falling_behind": 4.0,
    "test_options": True,
}
FAST = "200mbit"
DELAY = 0.02
"""Seconds each way."""
FULL = Ticker(fill_end=60 << 20, fill_pages=2000)
"""Its memory is no row of zeroes."""


@pytest.fixture(scope="module")
def link() -> Iterator[Link]:
    with Link() as link:
        yield link


@pytest.fixture(scope="module")
def far_world(link: Link) -> Iterator[World]:
    with labs.folder() as folder:
        lab = Lab(folder, settings=SETTINGS)
        lab.hosts = distant_hosts(link, lab.hosts)
        with inside(link.path("s")), lab:
            yield World(lab)


@pytest.fixture
def far(link: Link, far_world: World) -> Iterator[World]:
    """The two hosts, empty at the beginning and the end of each test, the link whole."""
    link.shape(FAST)
    link.heal()
    yield far_world
    link.heal()
    far_world.empty()


def unbroken(world: World, made: GuestOf, folder: Path, moved: bool) -> None:
    """The guest ticks on the one side, the other is empty; its numbers are one sequence, and its disk has them all."""
    here, there = (world.destination, world.source) if moved else (world.source, world.destination)
    world.wait(lambda: world.ticks(made.uuid, here), "the guest does not tick")
    world.nothing_left(there)
    [image, _] = world.images(here, made.uuid)
    world.shut_down(here, made.uuid)
    console = world.console(made.uuid, *([world.source, world.destination] if moved else [world.source]))
    assert console.breaks == []
    assert console.anomalies == []
    assert made.guest.ticker.lost(as_raw(image, folder), console.counters) == []


def at_step(world: World, step: str, do: Callable[[], None]) -> Callable[[dict[str, object]], None]:
    """Once, when the task says that it is there."""
    done: list[bool] = []

    def look(record: dict[str, object]) -> None:
        other = record["other_config"]
        assert isinstance(other, dict)
        if not done and other.get("step", "").startswith(step):
            done.append(True)
            do()

    return look


def cut_for_a_moment(between: Link | Relay) -> threading.Timer:
    """Nothing comes through for three seconds. What ends it."""
    between.cut()
    healing = threading.Timer(3.0, between.heal)
    healing.start()
    return healing


def test_a_guest_moves_over_the_link(link: Link, far: World, tmp_path: Path) -> None:
    made = far.new_guest(far.source, Guest(filled=48, ticker=FULL), "local-qcow2")
    uris = far.receive()
    assert {uri.split("/")[2].rpartition(":")[0] for uri in uris} == {"10.213.0.2"}
    seen = far.follow(far.begin(made.uuid, uris))
    assert (seen.status, seen.error_info) == ("success", [])
    print(f"downtime {seen.other_config['downtime_ms']} ms")
    unbroken(far, made, tmp_path, moved=True)


def test_a_link_that_is_cut_for_moments(link: Link, far: World, tmp_path: Path) -> None:
    """While disks are copied and while memory is sent. TCP repeats what was lost, and the migration goes on."""
    made = far.new_guest(far.source, Guest(filled=96, ticker=FULL))
    blinks: list[threading.Timer] = []
    copying, sending = (at_step(far, step, lambda: blinks.append(cut_for_a_moment(link))) for step in ("3.6", "4.1"))

    def look(record: dict[str, object]) -> None:
        copying(record)
        sending(record)

    seen = far.follow(far.begin(made.uuid, far.receive()), look)
    for timer in blinks:
        timer.join()
    assert (seen.status, seen.error_info) == ("success", [])
    assert len(blinks) == 2
    unbroken(far, made, tmp_path, moved=True)


def round_trip(link: Link, world: World) -> float:
    """Seconds that a connection between the hosts needs: one packet there and one back."""
    with inside(link.path("a")):
        begun = time.monotonic()
        socket.create_connection(("10.213.0.2", world.destination.port), timeout=30).close()
        return time.monotonic() - begun


def test_a_guest_moves_over_a_link_with_delay(link: Link, far: World, tmp_path: Path) -> None:
    made = far.new_guest(far.source, Guest(filled=8, ticker=FULL))
    with Relay(link, DELAY) as relay:
        assert round_trip(link, far) >= 2 * DELAY
        seen = far.follow(far.begin(made.uuid, far.receive()))
        carried = relay.carried()
    print(f"downtime {seen.other_config.get('downtime_ms')} ms, {carried}")
    assert (seen.status, seen.error_info) == ("success", [])
    assert carried.arrived > 16 << 20, "disk and memory took another way"
    unbroken(far, made, tmp_path, moved=True)


def test_a_link_with_delay_and_loss_that_is_cut_while_disks_are_copied(link: Link, far: World, tmp_path: Path) -> None:
    made = far.new_guest(far.source, Guest(filled=24, ticker=FULL))
    blinks: list[threading.Timer] = []
    with Relay(link, DELAY, loss=0.001) as relay:
        try:
            copying = at_step(far, "3.6", lambda: blinks.append(cut_for_a_moment(relay)))
            seen = far.follow(far.begin(made.uuid, far.receive()), copying)
        finally:
            for timer in blinks:
                timer.join()
        carried = relay.carried()
    print(f"downtime {seen.other_config.get('downtime_ms')} ms, {carried}")
    assert (seen.status, seen.error_info) == ("success", [])
    assert len(blinks) == 1
    assert carried.cut > 0
    assert carried.chance > 0
    unbroken(far, made, tmp_path, moved=True)


@pytest.mark.parametrize(("step", "what"), [("3.6", "copy"), ("4.1", "memory")])
def test_a_link_that_stays_cut(link: Link, far: World, tmp_path: Path, step: str, what: str) -> None:
    """Both sides give up by themselves, and while the link is still cut nothing is left at the receiver."""
    made = far.new_guest(far.source, Guest(filled=96, ticker=FULL))
    seen = far.follow(far.begin(made.uuid, far.receive()), at_step(far, step, link.cut))
    assert seen.status == "failure", f"the {what} was over before the link was cut"
    # Its outcome it keeps until the sender has heard it.
    far.wait(lambda: all("journal" in left for left in far.left_behind(far.destination)), "the receiver goes on")
    link.heal()
    unbroken(far, made, tmp_path, moved=False)


def test_memory_over_a_link_that_falls_silent(link: Link, tmp_path: Path) -> None:
    """Both sides give up after `memory_silence`, long before a heartbeat is lost or an answer is late. The client is
    told 5 s later, for which the sender tries to tell the receiver."""
    link.shape(FAST)
    link.heal()
    settings = {**SETTINGS, "memory_silence": 2, "heartbeat_lost": 60.0, "request": 40.0}
    began: list[float] = []

    def cut() -> None:
        link.cut()
        began.append(time.monotonic())

    try:
        with labs.folder() as folder:
            lab = Lab(folder, settings=settings)
            lab.hosts = distant_hosts(link, lab.hosts)
            with inside(link.path("s")), lab:
                world = World(lab)
                made = world.new_guest(world.source, Guest(filled=2, ticker=FULL))
                seen = world.follow(world.begin(made.uuid, world.receive()), at_step(world, "4.1", cut))
                assert seen.status == "failure", "the memory was sent before the link was cut"
                print(f"{time.monotonic() - began[0]:.1f} s, {seen.error_info}")
                assert "PUT memory" in " ".join(seen.error_info)
                assert time.monotonic() - began[0] < MigrationTimes().memory_silence
                left = world.left_behind(world.destination)
                assert all("journal" in one for one in left), f"the receiver goes on: {left}"
                link.heal()
                unbroken(world, made, tmp_path, moved=False)
    finally:
        link.heal()


def test_a_guest_that_writes_faster_than_the_link_carries(link: Link, far: World, tmp_path: Path) -> None:
    fast = Ticker(ticks=1000, span=30000)
    made = far.new_guest(far.source, Guest(filled=2, ticker=fast))
    link.shape("8mbit")
    told: set[str] = set()
    task = far.begin(made.uuid, far.receive())
    seen = far.follow(task, lambda record: told.add(record["other_config"].get("convergence", "")))
    print(sorted(told))
    assert (seen.status, seen.error_info) == ("success", [])
    assert any("writes to disk" in text and "are limited to" in text for text in told), told
    link.shape(FAST)
    unbroken(far, made, tmp_path, moved=True)


def test_two_members_of_one_pool_over_one_postgresql(link: Link, tmp_path: Path) -> None:
    """Records are shared and so is the disk: only memory crosses the link, and when that is cut the guest stays."""
    link.shape(FAST)
    link.heal()
    try:
        with labs.folder() as folder, PostgreSQL() as server:
            lab = Lab(folder, settings=SETTINGS, one_pool=True, database=server.new_database())
            lab.hosts = distant_hosts(link, lab.hosts)
            with inside(link.path("s")), lab:
                world = World(lab)
                made = world.new_guest(world.source, Guest(filled=32, ticker=FULL), "shared")
                cut = world.follow(pool_migrate(world, made.uuid), at_step(world, "4.1", link.cut))
                assert cut.status == "failure", "the memory was sent before the link was cut"
                world.wait(lambda: world.ticks(made.uuid, world.source), "the guest does not go on")
                link.heal()
                begun = pool_migrate(world, made.uuid, patience=40)
                seen = world.follow(begun)
                assert (seen.status, seen.error_info) == ("success", [])
                world.wait(lambda: world.ticks(made.uuid, world.destination), "the guest does not tick there")
                for host in lab.hosts:  # one record, whichever member is asked
                    [record] = [r for r in world.vms(host).values() if r["uuid"] == made.uuid]
                    with world.session(host) as api:
                        assert api.host.get_name_label(record["resident_on"]) == world.destination.name
                assert world.processes(world.source, "domains") == []
                [image, _] = world.images(world.destination, made.uuid)
                world.shut_down(world.destination, made.uuid)
                console = world.console(made.uuid, world.source, world.destination)
                assert (console.breaks, console.anomalies) == ([], [])
                assert made.guest.ticker.lost(image, console.counters) == []
    finally:
        link.heal()


def pool_migrate(world: World, uuid: str, patience: float = 0.0) -> str:
    """Async.VM.pool_migrate to the destination. After a cut its receiver may first have to be done with the last one,
    and its host to be heard of again."""
    deadline = time.monotonic() + patience
    while True:
        with world.session(world.source) as api:
            [host] = api.host.get_by_name_label(world.destination.name)
            task = str(api.Async.VM.pool_migrate(api.VM.get_by_uuid(uuid), host, {}))
            time.sleep(0.5)
            record = api.task.get_record(task)
        if record["status"] != "failure" or time.monotonic() > deadline:
            return task
