"""A guest waits for a disk for longer than a moment: somebody is told, once, and of its end too; it can be shut down,
and it goes on by itself. A disk that has failed to flush is waited for by nobody."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import XenAPI

from tests.faults.ground import SMALL, Ground
from tests.system.world import GuestOf
from xapi_migrate.lab.host import LabHost

pytestmark = pytest.mark.system
WAITS, WORKS = "VM_WAITS_FOR_DISK", "VM_DISK_WORKS_AGAIN"


@pytest.fixture
def guest(ground: Ground, request: Any) -> Iterator[GuestOf]:
    """A guest of its own at the sender, with raw disks if the test does not say otherwise."""
    ground.open()
    ground.no_guest()
    host, world = ground.sender, ground.world
    made = world.new_guest(host, SMALL, getattr(request, "param", "local-raw"))
    try:
        yield made
    finally:
        ground.disks[host.name].heal()
        world.destroy(host, made.uuid)


def messages(ground: Ground, uuid: str) -> list[dict[str, Any]]:
    """About this VM, the oldest first."""
    with ground.world.session(ground.sender) as api:
        found = [one for one in api.message.get_all_records().values() if one["obj_uuid"] == uuid]
    return sorted(found, key=lambda one: one["timestamp"])


def wait_for(ground: Ground, uuid: str, *names: str) -> list[dict[str, Any]]:
    """Until there are messages of these names, and no others."""
    ground.world.wait(lambda: len(messages(ground, uuid)) >= len(names), f"no {names[-1]}", 60)
    found = messages(ground, uuid)
    assert tuple(one["name"] for one in found) == names
    return found


def goes_on(ground: Ground, guest: GuestOf) -> None:
    host, world = ground.sender, ground.world
    world.wait(lambda: world.ticks(guest.uuid, host), "it does not tick")
    console = world.console(guest.uuid, host)
    assert console.breaks == [] and console.anomalies == []
    assert guest.guest.ticker.lost(world.images(host, guest.uuid)[0], console.counters) == [], "writes are lost"


def restart(host: LabHost) -> None:
    host.kill()
    host.start()
    host.wait_ready()


def take_image_away(ground: Ground, guest: GuestOf) -> tuple[Path, Path]:
    """The first disk's, and end the datapaths; where it was, and where it is."""
    image = ground.world.images(ground.sender, guest.uuid)[0]
    away = image.rename(image.with_suffix(".away"))
    for pid in ground.processes(ground.sender, "datapaths"):
        os.kill(pid, signal.SIGKILL)
    return image, away


def call(ground: Ground, method: str, uuid: str, *arguments: Any) -> None:
    with ground.world.session(ground.sender) as api:
        getattr(api.VM, method)(api.VM.get_by_uuid(uuid), *arguments)


def state(ground: Ground, uuid: str) -> str:
    return str(ground.world.vms(ground.sender)[uuid]["power_state"])


def test_a_disk_that_fails_for_long(ground: Ground, guest: GuestOf) -> None:
    """The daemon is restarted meanwhile, which tells nobody a second time."""
    disk, host = ground.disks[ground.sender.name], ground.sender
    disk.fail()
    [told] = wait_for(ground, guest.uuid, WAITS)
    parts = (guest.uuid, f"host {host.name}", "refuses to write: Input/output error", host.srs["local-raw"])
    assert all(part in told["body"] for part in parts) and any(f"VDI {vdi}" in told["body"] for vdi in guest.vdis)
    restart(host)
    assert not ground.world.ticks(guest.uuid, host, 3.0) and state(ground, guest.uuid) == "Running"
    with pytest.raises(XenAPI.Failure, match="waits for its disk"):
        call(ground, "clean_shutdown", guest.uuid)
    wait_for(ground, guest.uuid, WAITS)
    disk.heal()
    wait_for(ground, guest.uuid, WAITS, WORKS)
    goes_on(ground, guest)


@pytest.mark.parametrize("guest", ["local-raw", "local-qcow2"], indirect=True)
def test_a_guest_that_waits_is_shut_down(ground: Ground, guest: GuestOf) -> None:
    host = ground.sender
    ground.disks[host.name].fail()
    ground.world.wait(lambda: not ground.world.ticks(guest.uuid, host), "it does not wait")
    call(ground, "hard_shutdown", guest.uuid)
    assert state(ground, guest.uuid) == "Halted"
    assert ground.processes(host, "domains") == [] == ground.processes(host, "datapaths")
    ground.disks[host.name].heal()
    call(ground, "start", guest.uuid, False, False)
    ground.world.wait(lambda: ground.world.ticks(guest.uuid, host), "it does not tick")


@pytest.mark.parametrize("again", [False, True], ids=["halted", "restarted"])
@pytest.mark.parametrize("guest", ["local-raw", "local-qcow2"], indirect=True)
def test_a_flush_that_fails_is_a_loss_of_power(ground: Ground, guest: GuestOf, again: bool) -> None:
    """Whatever the kernel has thrown away then, the guest's memory believes in it."""
    host, world = ground.sender, ground.world
    if again:
        with world.session(host) as api:
            api.VM.set_actions_after_crash(api.VM.get_by_uuid(guest.uuid), "restart")
    [domain], datapaths = ground.processes(host, "domains"), ground.processes(host, "datapaths")
    ground.disks[host.name].fail_to_sync()
    world.wait(lambda: domain not in ground.processes(host, "domains"), "it runs on")
    ground.disks[host.name].heal()
    told = wait_for(ground, guest.uuid, "VM_CRASHED")[0]
    assert any(f"a flush of its disk, VDI {vdi}, failed" in told["body"] for vdi in guest.vdis)
    if not again:
        world.wait(lambda: state(ground, guest.uuid) == "Halted", "it is not Halted")
        assert ground.processes(host, "datapaths") == []
        call(ground, "start", guest.uuid, False, False)
    world.wait(lambda: bool(ground.processes(host, "domains")), "it does not start")
    world.wait(lambda: world.ticks(guest.uuid, host), "it does not tick")
    assert set(ground.processes(host, "datapaths")).isdisjoint(datapaths)


def test_a_raw_image_that_is_gone(ground: Ground, guest: GuestOf) -> None:
    """Its datapath has died, and no other can be started before it is back."""
    host, world = ground.sender, ground.world
    image, away = take_image_away(ground, guest)
    [told] = wait_for(ground, guest.uuid, WAITS)
    assert f"VDI {guest.vdis[0]}" in told["body"] and "No such file" in told["body"]
    restart(host)
    uris = world.receive(host=ground.receiver)
    with pytest.raises(XenAPI.Failure, match=guest.vdis[0]):
        call(ground, "migrate", guest.uuid, uris, {}, {})
    world.nothing_left(ground.receiver)
    away.rename(image)
    wait_for(ground, guest.uuid, WAITS, WORKS)
    goes_on(ground, guest)


def test_a_guest_whose_raw_image_is_gone_is_shut_down(ground: Ground, guest: GuestOf) -> None:
    host, world = ground.sender, ground.world
    image, away = take_image_away(ground, guest)
    world.wait(lambda: len(ground.processes(host, "datapaths")) == 1, "the other disk's is not started again")
    call(ground, "hard_shutdown", guest.uuid)
    assert state(ground, guest.uuid) == "Halted" and ground.processes(host, "datapaths") == []
    away.rename(image)
    call(ground, "start", guest.uuid, False, False)
    world.wait(lambda: world.ticks(guest.uuid, host), "it does not tick")
