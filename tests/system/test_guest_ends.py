"""A guest that powers off, resets or crashes from inside while it is being moved ends in a true power state, once."""

from __future__ import annotations

import os
import signal
import struct

import attrs
import pytest

from tests.system.proxy import Proxy
from tests.system.world import World
from xapi_migrate.lab.provisioning import Guest
from xapi_migrate.testing.guests.ticker import Ticker

pytestmark = pytest.mark.system

POWER_OFF = bytes.fromhex("ba0406 b80020 ef")  # mov dx,0x604; mov ax,0x2000; out dx,ax: the PIIX4's sleep control
RESET = bytes.fromhex("baf90c b006 ee")  # mov dx,0xcf9; mov al,6; out dx,al: the PIIX3's reset control
FOREVER = bytes.fromhex("fb f4 ebfc")  # sti; hlt; and again


FLAG = 20
"""The sector of its first disk that the guest reads at each tick."""


@attrs.frozen
class Obedient(Ticker):
    """Prints a line at each of the BIOS's 18 ticks a second, until the first byte of the sector FLAG is not 0: then it
    does what `end` says."""

    end: bytes = POWER_OFF

    def boot_sector(self) -> bytes:
        # cli; ds, es, ss = 0; sp = 0x7c00; sti
        begin = bytes.fromhex("fa 31c0 8ed8 8ec0 8ed0 bc007c fb")
        # hlt; print "1" and a line feed; read the sector to 0x8000 (int 0x13 with what is at 0x7d00); cmp [0x8000], 0
        each = bytes.fromhex("f4 baf803 b031 ee b00a ee be007d b442 b280 cd13 803e008000")
        again = b"\x74" + struct.pack("b", -len(each) - 2)
        wanted = bytes.fromhex("1000 0100 0080 0000") + struct.pack("<Q", FLAG)
        return ((begin + each + again + self.end + FOREVER).ljust(256, b"\0") + wanted).ljust(510, b"\0") + b"\x55\xaa"


def tell(world: World, uuid: str, end: bool = True) -> None:
    """Let the guest at the source end, or not. Its image is raw, and who has it open sees what is written to it."""
    [image, _] = world.images(world.source, uuid)
    with image.open("r+b") as file:
        file.seek(FLAG * 512)
        file.write(bytes([end]))


def lines(world: World, uuid: str) -> int:
    """What it has printed at the source."""
    return len(world.console(uuid, world.source).counters)


@pytest.mark.parametrize(
    ("what", "at"),
    [
        ("power off", "PUT /memory"),
        ("crash", "PUT /memory"),
        pytest.param("power off", "PUT /metadata", marks=pytest.mark.every_cell),
        pytest.param("crash", "PUT /metadata", marks=pytest.mark.every_cell),
    ],
)
def test_it_is_halted_where_it_was(world: World, what: str, at: str) -> None:
    made = world.new_guest(world.source, Guest(memory=48, disk=24, filled=2, ticker=Obedient()))
    ended: list[str] = []

    def hold(request: str) -> None:
        if request == at and not ended:
            ended.append(request)
            if what == "crash":
                [pid] = world.processes(world.source, "domains")
                os.kill(pid, signal.SIGKILL)
            else:
                tell(world, made.uuid)
                world.wait(lambda: not world.ticks(made.uuid, world.source, 0.3), "it does not power off")

    with Proxy(("127.0.0.1", world.destination.port)) as proxy:
        proxy.before = hold
        seen = world.follow(world.begin(made.uuid, proxy.uris(world.receive())))
    assert ended and seen.status == "failure"
    assert seen.error_info[0] != "INTERNAL_ERROR"
    assert any(word in " ".join(seen.error_info) for word in ("it is shutdown", "it is crashed", "it is absent"))
    world.wait(lambda: world.vms(world.source)[made.uuid]["power_state"] == "Halted", "it is not Halted")
    assert world.vms(world.source)[made.uuid]["current_operations"] == {}
    assert world.processes(world.source, "domains") == world.processes(world.source, "datapaths") == []
    world.nothing_left(world.destination)
    before = lines(world, made.uuid)
    assert before > 20
    tell(world, made.uuid, end=False)
    with world.session(world.source) as api:
        api.VM.start(api.VM.get_by_uuid(made.uuid), False, False)
    world.wait(lambda: lines(world, made.uuid) > before, "it does not start again")


def test_one_that_resets_runs_on_the_other_side(world: World) -> None:
    """It is reset again and again when its memory is about to go, and then boots from the disk that has moved."""
    made = world.new_guest(world.source, Guest(memory=48, disk=24, filled=2, ticker=Obedient(end=RESET)))

    def hold(request: str) -> None:
        if request == "PUT /memory":
            tell(world, made.uuid)
            at = lines(world, made.uuid)
            world.wait(lambda: lines(world, made.uuid) > at + 2, "it does not boot again")

    with Proxy(("127.0.0.1", world.destination.port)) as proxy:
        proxy.before = hold
        seen = world.follow(world.begin(made.uuid, proxy.uris(world.receive())))
    assert (seen.status, seen.error_info) == ("success", [])
    assert world.vms(world.destination)[made.uuid]["power_state"] == "Running"
    world.nothing_left(world.source)
    world.wait(lambda: len(world.console(made.uuid, world.destination).counters) > 2, "it does not boot there")
    assert len(world.processes(world.destination, "domains")) == 1
