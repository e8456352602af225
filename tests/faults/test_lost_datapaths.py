"""A datapath of a qcow2 image dies, and with it tables that the guest believes written: to the guest that is a loss of
power. It is ended, never gone on with, and its owner is told."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from tests.faults.blows import BLOWS, Blow
from tests.faults.clients import Client
from tests.faults.ground import SMALL, Ground
from tests.faults.points import Point
from xapi_migrate.lab.host import LabHost

pytestmark = pytest.mark.system

KILLED = {blow.name: blow for blow in BLOWS}
COPY, SUSPENDED = Point("sender", "3.6"), Point("sender", "4.3")


@pytest.fixture(autouse=True)
def qcow2(ground: Ground) -> Iterator[None]:
    """The guest is one with qcow2 images, before and after the case."""
    ground.open()
    ground.no_guest()
    ground.label = "local-qcow2"
    try:
        yield
    finally:
        ground.label = "local-raw"
        ground.no_guest()


def dies(side: str) -> Blow:
    """The first datapath of this side, and the guest with it."""
    return Blow(f"{side} datapath", KILLED[f"{side} datapath"].strike, guest=lambda point: ANYWHERE)


ANYWHERE = {"sender", "receiver", "halted at the sender", "halted at the receiver"}
"""Each test says by itself where it is to be."""


def kill_datapath(ground: Ground, host: LabHost) -> None:
    os.kill(ground.processes(host, "datapaths")[0], signal.SIGKILL)


def messages(ground: Ground, host: LabHost, uuid: str) -> list[dict[str, Any]]:
    """About this VM, the oldest first."""
    with ground.world.session(host) as api:
        found = [one for one in api.message.get_all_records().values() if one["obj_uuid"] == uuid]
    return sorted(found, key=lambda one: one["timestamp"])


def told_of(client: Client, host: LabHost) -> str:
    """What the client was told, which names this host, its disk and a step."""
    assert client.told["status"] == "failure"
    reason = str(client.told["error_info"][-1])
    assert f"host {host.name}" in reason and "last step" in reason, reason
    return reason


def power_state(ground: Ground, host: LabHost, uuid: str) -> str:
    return str(ground.world.vms(host)[uuid]["power_state"])


def test_no_migration_and_the_vm_stays_halted(ground: Ground) -> None:
    host, world = ground.sender, ground.world
    made = ground.made = world.new_guest(host, SMALL, ground.label)
    kill_datapath(ground, host)
    world.wait(lambda: power_state(ground, host, made.uuid) == "Halted", "it is not Halted")
    assert ground.processes(host, "domains") == [] == ground.processes(host, "datapaths")
    [told] = messages(ground, host, made.uuid)
    assert (told["name"], told["cls"]) == ("VM_CRASHED", "VM")
    assert any(f"VDI {vdi}, died" in told["body"] for vdi in made.vdis)
    log = (host.state_dir / "daemon.log").read_text()
    assert f"of VM {made.uuid} on host" in log and told["body"] in log


def test_no_migration_and_the_vm_is_started_again_once(ground: Ground) -> None:
    """actions_after_crash. It boots from its disks; when it crashes again at once it stays as it is."""
    host, world = ground.sender, ground.world
    made = ground.made = world.new_guest(host, SMALL, ground.label)
    with world.session(host) as api:
        api.VM.set_actions_after_crash(api.VM.get_by_uuid(made.uuid), "restart")
    [domain] = ground.processes(host, "domains")
    kill_datapath(ground, host)
    world.wait(lambda: ground.processes(host, "domains") not in ([], [domain]), "no other domain is started")
    world.wait(lambda: power_state(ground, host, made.uuid) == "Running", "it is not Running")
    assert len(ground.processes(host, "domains")) == 1 and len(ground.processes(host, "datapaths")) == 2
    assert world.ticks(made.uuid, host)
    [told] = messages(ground, host, made.uuid)
    assert told["body"].endswith("It is started again.")
    kill_datapath(ground, host)
    world.wait(lambda: power_state(ground, host, made.uuid) == "Halted", "it is not Halted")
    again = "had crashed and been started again less than"
    world.wait(lambda: any(again in one["body"] for one in messages(ground, host, made.uuid)), "nobody is told why")
    assert ground.processes(host, "domains") == []


def test_it_dies_while_the_daemon_is_down(ground: Ground) -> None:
    host, world = ground.sender, ground.world
    made = ground.made = world.new_guest(host, SMALL, ground.label)
    host.kill()
    kill_datapath(ground, host)
    host.start()
    host.wait_ready()
    world.wait(lambda: power_state(ground, host, made.uuid) == "Halted", "it is not Halted")
    assert ground.processes(host, "domains") == []
    [told] = messages(ground, host, made.uuid)
    assert any(f"VDI {vdi}, died" in told["body"] for vdi in made.vdis)


@pytest.mark.parametrize("point", [COPY, SUSPENDED], ids=["copy", "switch-over"])
def test_the_senders(ground: Ground, point: Point) -> None:
    """The migration fails and says why; nothing of the VM is at the receiver."""
    client, sender = Client(), ground.sender
    assert ground.run(point, dies("sender"), client) == "halted at the sender"
    assert "the storage process of its disk, VDI" in told_of(client, sender)


@pytest.mark.parametrize("point", [COPY, SUSPENDED], ids=["copy", "switch-over"])
def test_the_receivers(ground: Ground, point: Point) -> None:
    """The guest goes on at the sender."""
    client, receiver = Client(), ground.receiver
    assert ground.run(point, dies("receiver"), client) == "sender"
    told = told_of(client, receiver)
    # at the switch-over either of the two who look may be the first to see it
    assert "What serves disk" in told or (point is SUSPENDED and "the storage process of its disk, VDI" in told)


def test_the_receivers_after_commit(ground: Ground) -> None:
    assert ground.run(Point("receiver", "5.2"), dies("receiver")) == "halted at the receiver"


def test_the_senders_after_the_last_writes_were_confirmed(ground: Ground) -> None:
    """The receiver has the disk: the VM moves."""
    assert ground.run(Point("sender", "5.1"), KILLED["sender datapath"]) == "receiver"
