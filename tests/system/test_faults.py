"""What goes wrong on the way: dead URIs, cancels from either side, a hypervisor that dies, an answer that is lost. Each
time the guest runs on exactly one side, has lost nothing, and the other side is empty."""

from __future__ import annotations

import os
import signal
import socket
import time
from pathlib import Path

import pytest

from tests.system.proxy import Proxy
from tests.system.world import GuestOf, World
from xapi_migrate.lab.provisioning import Guest
from xapi_migrate.testing.guests.ticker import Ticker

pytestmark = pytest.mark.system

NOWHERE = "A" * 43


def runs_on_at_the_source(world: World, made: GuestOf) -> None:
    """The guest ticks there, without a gap, its disk has what it printed, nothing of it is at the destination."""
    world.nothing_left(world.destination)
    assert world.vms(world.source)[made.uuid]["power_state"] == "Running"
    assert world.ticks(made.uuid, world.source)
    [image, _] = world.images(world.source, made.uuid)
    world.shut_down(world.source, made.uuid)
    console = world.console(made.uuid, world.source)
    assert console.breaks == []
    assert console.anomalies == []
    assert made.guest.ticker.lost(image, console.counters) == []


def test_dead_uris_in_front_of_a_good_one_are_skipped(world: World) -> None:
    made = world.new_guest(world.source, Guest())
    with socket.create_server(("127.0.0.1", 0), backlog=1) as silent:
        closed = socket.create_server(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        closed.close()
        dead = [
            f"http://127.0.0.1:{port}/migrate/{NOWHERE}",
            f"http://127.0.0.1:{silent.getsockname()[1]}/migrate/{NOWHERE}",
            f"{world.destination.url}/migrate/{NOWHERE}",
        ]
        seen = world.follow(world.begin(made.uuid, [*dead, *world.receive()]))
        assert (seen.status, seen.error_info) == ("success", [])
        world.wait(lambda: world.ticks(made.uuid, world.destination), "it does not tick there")

        world.source, world.destination = world.destination, world.source
        try:
            other = [uri.replace(world.source.url, world.destination.url) for uri in dead]
            seen = world.follow(world.begin(made.uuid, other))
        finally:
            world.source, world.destination = world.destination, world.source
    assert seen.status == "failure"
    assert seen.error_info[0] == "VM_MIGRATE_CONTACT_REMOTE_SERVICE_FAILED"
    for uri, words in zip(other, ("cannot be reached", "cannot be reached", "404"), strict=True):
        assert uri.split("/")[2] in seen.error_info[1]
        assert words in seen.error_info[1]
    assert NOWHERE not in seen.error_info[1]


@pytest.mark.parametrize("side", ["sender", "receiver"])
def test_cancelled_during_the_bulk_copy(world: World, side: str) -> None:
    made = world.new_guest(world.source, Guest(disk=512, filled=400))
    task = world.begin(made.uuid, world.receive())
    _cancel_at(world, task, side, "3.6")
    runs_on_at_the_source(world, made)


@pytest.mark.parametrize("side", ["sender", "receiver"])
def test_cancelled_during_the_memory_transfer(world: World, side: str) -> None:
    busy = Ticker(fill_end=120 << 20, fill_pages=2000, end=100 << 20, pages=2000)
    made = world.new_guest(world.source, Guest(memory=128, ticker=busy))
    task = world.begin(made.uuid, world.receive())
    _cancel_at(world, task, side, "4.1")
    runs_on_at_the_source(world, made)


def _cancel_at(world: World, task: str, side: str, step: str) -> None:
    """Cancel when the sender is at this step: its own task, or the one that the hidden VM names at the receiver."""
    with world.session(world.source) as api:
        deadline = time.monotonic() + 30
        while not api.task.get_other_config(task).get("step", "").startswith(step):
            assert api.task.get_status(task) == "pending", api.task.get_record(task)
            assert time.monotonic() < deadline
        if side == "sender":
            assert "cancel" in api.task.get_allowed_operations(task)
            api.task.cancel(task)
    if side == "receiver":
        with world.session(world.destination) as api:
            [vm] = [r for r in api.VM.get_all_records().values() if "HideFromXenCenter" in r["other_config"]]
            [receiving] = vm["current_operations"]
            api.task.cancel(receiving)
            assert world.follow(receiving, host=world.destination).status == "cancelled"
    seen = world.follow(task)
    assert seen.status == ("cancelled" if side == "sender" else "failure")


def test_the_receivers_hypervisor_dies_once_the_memory_is_in(world: World) -> None:
    made = world.new_guest(world.source, Guest())

    def kill(request: str) -> None:
        if request == "PUT /control":
            for pid in world.processes(world.destination, "domains"):
                os.kill(pid, signal.SIGKILL)

    with Proxy(("127.0.0.1", world.destination.port)) as proxy:
        proxy.before = kill
        seen = world.follow(world.begin(made.uuid, proxy.uris(world.receive())))
    assert seen.status == "failure"
    assert "5.1" in " ".join(seen.error_info)
    runs_on_at_the_source(world, made)


def test_a_lost_answer_to_done_leaves_exactly_one_guest(world: World) -> None:
    made = world.new_guest(world.source, Guest())
    with Proxy(("127.0.0.1", world.destination.port)) as proxy:
        proxy.lose_answers_of = ["PUT /control"] * 2  # a request on a broken connection is repeated once
        seen = world.follow(world.begin(made.uuid, proxy.uris(world.receive())))
        assert proxy.lose_answers_of == []
        assert "GET /control" in proxy.requests
    assert (seen.status, seen.error_info) == ("success", [])
    assert not world.ticks(made.uuid, world.source)
    assert world.ticks(made.uuid, world.destination)
    assert world.console(made.uuid, world.source, world.destination).breaks == []
    world.nothing_left(world.source)


def test_a_sender_restarted_in_doubt_asks_and_settles(world: World) -> None:
    made = world.new_guest(world.source, Guest())
    with Proxy(("127.0.0.1", world.destination.port)) as proxy:
        killed: list[str] = []

        def kill(request: str) -> None:
            if request == "PUT /control" and not killed:
                world.source.kill()
                killed.append(request)  # last: it is what the test waits for

        proxy.before = kill
        world.begin(made.uuid, proxy.uris(world.receive()))
        world.wait(lambda: bool(killed), "`done` was not said")
        world.source.start()
        world.source.wait_ready()
        world.wait(lambda: made.uuid not in world.vms(world.source), "the sender does not settle")
    assert world.ticks(made.uuid, world.destination)
    assert world.console(made.uuid, world.source, world.destination).breaks == []
    world.nothing_left(world.source)


@pytest.mark.parametrize("side", ["sender", "receiver"])
def test_a_daemon_restarted_in_the_bulk_copy_goes_on(world: World, side: str) -> None:
    made = world.new_guest(world.source, Guest(disk=512, filled=400))
    task = world.begin(made.uuid, world.receive())
    with world.session(world.source) as api:
        while not api.task.get_other_config(task).get("step", "").startswith("3.6"):
            assert api.task.get_status(task) == "pending", api.task.get_record(task)
    copiers = world.processes(world.source, "copiers")
    host = world.source if side == "sender" else world.destination
    host.kill()
    host.start()
    host.wait_ready()
    assert copiers == world.processes(world.source, "copiers"), "the copies did not go on"
    seen = world.follow(task)
    assert (seen.status, seen.error_info) == ("success", [])
    assert world.ticks(made.uuid, world.destination)
    assert world.console(made.uuid, world.source, world.destination).breaks == []
    world.nothing_left(world.source)


def test_heads_come_at_the_interval(world: World) -> None:
    """The link is slow enough that the memory takes longer than three beats on any machine."""
    full = Ticker(fill_end=120 << 20, fill_pages=2000)
    made = world.new_guest(world.source, Guest(memory=128, ticker=full))
    with Proxy(("127.0.0.1", world.destination.port)) as proxy:
        proxy.rate = 10 << 20
        task = world.begin(made.uuid, proxy.uris(world.receive()))
        world.wait(lambda: "PUT /memory" in proxy.requests, "no memory was sent")
        before = proxy.requests.count("HEAD")
        time.sleep(3.2)
        beats = proxy.requests.count("HEAD") - before
        with world.session(world.source) as api:
            assert api.task.get_status(task) == "pending", "the memory was through too soon"
            api.task.cancel(task)
        world.follow(task)
    assert 2 <= beats <= 4


def test_a_sender_that_vanishes_is_given_up(world: World) -> None:
    """The source's daemon is stopped in the copy: the receiver notices by itself and cleans up."""
    made = world.new_guest(world.source, Guest(disk=512, filled=400))
    task = world.begin(made.uuid, world.receive())
    with world.session(world.source) as api:
        while not api.task.get_other_config(task).get("step", "").startswith("3.6"):
            assert api.task.get_status(task) == "pending", api.task.get_record(task)
    world.source.kill()
    world.wait(lambda: not world.left_behind(world.destination) or _only_tombstone(world), "the receiver goes on", 25)
    world.source.start()
    world.source.wait_ready()
    runs_on_at_the_source(world, made)


def _only_tombstone(world: World) -> bool:
    return all(left.startswith("journal receiver-") for left in world.left_behind(world.destination))


def capabilities_in(text: str, uris: list[str]) -> list[str]:
    return [uri for uri in uris if uri.split("/migrate/")[1][:43] in text]


def test_no_secret_reaches_a_log_or_a_process_list(world: World) -> None:
    made = world.new_guest(world.source, Guest(disk=256, filled=200))
    uris = world.receive()
    task = world.begin(made.uuid, uris)
    seen_processes: list[str] = []

    def look(_: object) -> None:
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                seen_processes.append(path.read_bytes().decode("utf-8", "replace"))
            except OSError:
                continue

    world.follow(task, look)
    assert capabilities_in("".join(seen_processes), uris) == []
    for host in world.lab.hosts:
        texts = [host.log_path.read_text(), *(p.read_text() for p in (host.state_dir / "migrations").glob("*.log"))]
        assert capabilities_in("".join(texts), uris) == []
        assert host.password not in "".join(texts)
