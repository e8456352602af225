"""The thirteen faults by which other migrations were measured: what they get wrong, double or give up. Twelve of them
have to end well. The last kills the only whole copy of the guest's memory: it has to be told as it is."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.blows import BLOWS, Blow
from tests.faults.clients import Client, Command, ModernClient
from tests.faults.ground import Ground
from tests.faults.points import Point
from xapi_migrate.lab.provisioning import create_sr

pytestmark = pytest.mark.system

COPY, SWITCH_OVER = Point("sender", "3.6"), Point("sender", "4.3")
KILLED = {blow.name: blow for blow in BLOWS}


def error_of(client: Client) -> str:
    return " ".join(client.told["error_info"])


@pytest.mark.parametrize("client", [Client(), ModernClient()], ids=["1-VM.migrate", "2-VM.migrate_send"])
def test_the_answer_to_done_is_lost(ground: Ground, client: Client) -> None:
    """A request on a broken connection is repeated once: both answers are lost."""

    def strike(ground: Ground) -> None:
        ground.link.requests.lose_answers_of = ["PUT /control"] * 2

    assert ground.run(COPY, Blow("lost answers", strike), client) == "receiver"
    assert client.told["status"] == "success"
    assert "GET /control" in ground.links[ground.sender.name].requests.requests


def test_3_what_receives_the_disks_dies_during_the_copy(ground: Ground) -> None:
    client = Client()
    host = ground_receiver(ground)
    assert ground.run(COPY, KILLED["target"], client) == "sender"
    assert host in error_of(client)
    assert "What serves disk" in error_of(client)


def ground_receiver(ground: Ground) -> str:
    """The name of the host that receives next."""
    ground.open()
    return ground.receiver.name


def test_4_the_receivers_domain_dies_after_the_guest_was_stopped(ground: Ground) -> None:
    client = Client()
    assert ground.run(SWITCH_OVER, KILLED["receiver domain"], client) == "sender"
    assert client.told["status"] == "failure"


@pytest.mark.parametrize("point", [COPY, SWITCH_OVER], ids=["5-copy", "6-switch-over"])
def test_the_client_dies(ground: Ground, point: Point) -> None:
    client = Command()
    assert ground.run(point, Blow("client", lambda ground: client.kill()), client) == "receiver"


@pytest.mark.parametrize("side", ["sender", "receiver"])
def test_7_and_9_a_daemon_dies_during_the_copy(ground: Ground, side: str) -> None:
    client = Client()
    assert ground.run(COPY, KILLED[f"{side} daemon"], client) == "receiver", error_of(client)
    assert client.told["status"] == "success"


@pytest.mark.parametrize("side", ["sender", "receiver"])
def test_8_and_10_a_daemon_dies_at_the_switch_over(ground: Ground, side: str) -> None:
    client = Client()
    assert ground.run(SWITCH_OVER, KILLED[f"{side} daemon"], client) == "sender"
    assert client.told["status"] == "failure"


@pytest.fixture
def small_sr(ground: Ground) -> Iterator[Path]:
    """The receiver's `local-raw` is on a file system of its own, with little room."""
    ground.open()
    host = ground.receiver
    usual = host.srs["local-raw"]
    folder = ground.world.lab.sr_location(host, "small")
    folder.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=48m", "tmpfs", str(folder)], check=True)
    try:
        with host.server.session() as session:
            host.srs["local-raw"] = session.xenapi.SR.get_uuid(create_sr(session, "small", folder, "raw"))
        yield folder
    finally:
        host.srs["local-raw"] = usual
        with host.server.session() as session:
            for sr in session.xenapi.SR.get_by_name_label("small"):
                for pbd in session.xenapi.SR.get_PBDs(sr):
                    session.xenapi.PBD.unplug(pbd)
                session.xenapi.SR.forget(sr)
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_11_the_receivers_disk_fills_up_during_the_copy(ground: Ground, small_sr: Path) -> None:
    """After its space was checked, and found enough."""

    def fill(ground: Ground) -> None:
        with (small_sr / "filler").open("wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
            while True:
                file.write(bytes(1 << 20))

    client = Client()
    assert ground.run(Point("sender", "2.5"), Blow("full disk", fill), client) == "sender"
    (small_sr / "filler").unlink()
    assert client.told["status"] == "failure"
    assert "bytes left" in error_of(client)


@pytest.mark.parametrize("how", ["link cut", "link stall"])
def test_12_the_link_is_down_during_the_copy(ground: Ground, how: str) -> None:
    """The copies go on from what was written: they are not begun again."""
    client = Client()
    ground.open()
    host = ground.sender
    assert ground.run(COPY, KILLED[how], client) == "receiver"
    assert ground.world.story(host, "sender").count("3.1") == 2
    assert client.told["status"] == "success"


def test_13_the_senders_domain_dies_before_its_memory_has_arrived(ground: Ground) -> None:
    client = Client()
    assert ground.run(Point("sender", "4.1"), KILLED["sender domain"], client) == "halted at the sender"
    assert client.told["status"] == "failure"
    assert "domain" in error_of(client).lower()


# -- beside the thirteen ------------------------------------------------------------------------


@pytest.mark.parametrize(("side", "folder"), [("sender", "copiers"), ("receiver", "tgt")], ids=["copier", "target"])
def test_a_part_that_hangs_for_a_while(ground: Ground, side: str, folder: str) -> None:
    """No byte of a copy moves for three seconds."""
    hung: list[int] = []

    def hang(ground: Ground) -> None:
        host = ground.sender if side == "sender" else ground.receiver
        hung.extend(ground.processes(host, folder))
        for pid in hung:
            os.kill(pid, signal.SIGSTOP)

    client = Client()
    ground.open()
    after = time.monotonic()

    def go_on() -> None:
        while not hung or time.monotonic() < after + 3:
            time.sleep(0.1)
        for pid in hung:
            os.kill(pid, signal.SIGCONT)

    client.beside(go_on)
    assert ground.run(Point("sender", "3.5"), Blow("hang", hang), client) == "receiver"
    assert client.told["status"] == "success"
