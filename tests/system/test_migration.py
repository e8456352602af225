"""A running VM with two disks moves between two real hosts: what a client sees, and what is true afterwards."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import XenAPI

from tests.system.world import World, as_raw, equal
from xapi_migrate.lab.host import USER
from xapi_migrate.lab.provisioning import Guest
from xapi_migrate.steps import Step
from xapi_migrate.testing.guests import ticker

pytestmark = pytest.mark.system

HIDDEN = "HideFromXenCenter"
SENDER_STEPS = [step.id for step in Step if step.id not in ("1.1", "1.2", "1.3", "4.2", "5.2")]
RECEIVER_STEPS = ["1.2", "2.1", "2.2", "2.3", "2.4", "2.5", "4.1", "4.2", "5.2"]


def test_the_clients_sequence_moves_a_running_guest(world: World, tmp_path: Path) -> None:
    made = world.new_guest(world.source, Guest(filled=48))
    hidden: list[dict[str, Any]] = []

    # the sequence of the protocol, as a script would write it with the official library
    s1 = XenAPI.Session(world.destination.url)
    s1.xenapi.login_with_password(USER, world.destination.password)  # 1.1
    sr = s1.xenapi.SR.get_by_uuid(world.destination.srs["local-raw"])
    other_sr = s1.xenapi.SR.get_by_uuid(world.destination.srs["local-qcow2"])
    uris = s1.xenapi.VM.receive(sr)  # 1.2
    s2 = XenAPI.Session(world.source.url)
    s2.xenapi.login_with_password(USER, world.source.password)  # 1.3
    vm = s2.xenapi.VM.get_by_uuid(made.uuid)
    vdi = s2.xenapi.VDI.get_by_uuid(made.vdis[1])
    task = s2.xenapi.Async.VM.migrate(vm, uris, {vdi: other_sr}, {})  # 1.4
    s1.xenapi.session.logout()  # an offer outlives its client's session

    def look(_: dict[str, Any]) -> None:
        hidden.extend(r for r in world.vms(world.destination).values() if HIDDEN in r["other_config"])

    seen = world.follow(task, look)
    assert (seen.status, seen.error_info) == ("success", [])
    assert s2.xenapi.task.get_result(task) == f"<value>{vm}</value>"
    s2.xenapi.session.logout()

    # one VM with one uuid all along: hidden at the receiver until it is there
    assert hidden
    assert all(record["uuid"] != made.uuid for record in hidden)
    assert all("import" in record["current_operations"].values() for record in hidden)
    assert seen.progress == sorted(seen.progress)
    assert seen.progress[-1] == 1.0
    record = world.vms(world.destination)[made.uuid]
    assert record["power_state"] == "Running"
    assert HIDDEN not in record["other_config"]
    assert record["current_operations"] == {}
    assert made.uuid not in world.vms(world.source)

    # the guest: one sequence, nothing lost, nothing twice
    time.sleep(0.5)
    assert world.ticks(made.uuid, world.destination)
    images = world.images(world.destination, made.uuid)
    assert [image.suffix for image in images] == [".raw", ".qcow2"]
    world.shut_down(world.destination, made.uuid)
    console = world.console(made.uuid, world.source, world.destination)
    assert console.breaks == []
    assert console.anomalies == []
    assert len(world.console(made.uuid, world.destination).counters) > 30
    for image in images:
        assert made.guest.ticker.lost(as_raw(image, tmp_path), console.counters) == []
    print(f"downtime {seen.other_config['downtime_ms']} ms")
    assert 0 < float(seen.other_config["downtime_ms"]) < 5000

    world.nothing_left(world.source)
    sender, receiver = world.story(world.source, "sender"), world.story(world.destination, "receiver")
    assert list(dict.fromkeys(sender)) == SENDER_STEPS
    assert list(dict.fromkeys(receiver)) == RECEIVER_STEPS


def test_both_disks_are_equal_at_the_switch(world: World) -> None:
    made = world.new_guest(world.source, Guest(filled=24))
    sources = world.images(world.source, made.uuid)
    options = {"keep_source": "true", "leave_paused": "true"}
    task = world.begin(made.uuid, world.receive(), {made.vdis[1]: "local-qcow2"}, options)
    assert world.follow(task).status == "success"
    assert world.vms(world.destination)[made.uuid]["power_state"] == "Paused"
    destinations = world.images(world.destination, made.uuid)
    assert [image.suffix for image in destinations] == [".raw", ".qcow2"]
    for source, destination in zip(sources, destinations, strict=True):
        assert equal(source, destination)
    printed = world.console(made.uuid, world.source).counters
    assert made.guest.ticker.lost(sources[0], printed) == []
    world.destroy(world.destination, made.uuid)
    world.destroy(world.source, made.uuid)


def test_a_guest_goes_there_and_back(world: World) -> None:
    made = world.new_guest(world.source, Guest())
    assert world.follow(world.begin(made.uuid, world.receive())).status == "success"
    world.source, world.destination = world.destination, world.source
    try:
        task = world.begin(made.uuid, world.receive("local-qcow2"))
        assert world.follow(task).status == "success"
    finally:
        world.source, world.destination = world.destination, world.source
    time.sleep(0.3)
    assert world.ticks(made.uuid, world.source)
    first = world.source.console(made.uuid).read_bytes()
    middle = world.destination.console(made.uuid).read_bytes()
    there = ticker.parse(middle).counters
    whole = ticker.parse(first).counters
    cut = whole.index(there[0] - 1) + 1
    joined = whole[:cut] + there + whole[cut:]
    assert joined == list(range(joined[0], joined[0] + len(joined)))
    world.nothing_left(world.destination)


def test_an_https_offer_streams_the_memory(world: World) -> None:
    made = world.new_guest(world.source, Guest())
    uris = [uri for uri in world.receive() if uri.startswith("https:")]
    assert uris
    seen = world.follow(world.begin(made.uuid, uris))
    assert (seen.status, seen.error_info) == ("success", [])
    time.sleep(0.3)
    assert world.ticks(made.uuid, world.destination)
    assert world.console(made.uuid, world.source, world.destination).breaks == []
    world.nothing_left(world.source)
