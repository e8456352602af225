"""A VM with many disks: small ones and odd ones, a read-only one, a drive."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.system.world import World, as_raw, equal
from xapi_migrate.lab.provisioning import MIB, Guest, create_vbd, create_vdi

pytestmark = pytest.mark.system

SIZES = [MIB, MIB + 512, 3 * MIB, 64 * MIB, 5 * MIB, 7 * MIB]
"""Of the disks beside the guest's own two."""


def test_all_of_them_move_at_once(world: World, tmp_path: Path) -> None:
    made = world.new_guest(world.source, Guest(memory=48, disk=24, filled=2))
    world.shut_down(world.source, made.uuid)
    with world.source.server.session() as session:
        api = session.xenapi
        vm = api.VM.get_by_uuid(made.uuid)
        srs = [api.SR.get_by_uuid(world.source.srs[label]) for label in ("local-raw", "local-qcow2")]
        for number, size in enumerate(SIZES):
            vdi = create_vdi(session, srs[number % 2], f"disk {number}", size)
            vbd = create_vbd(session, vm, vdi, number + 2)
            if number == 2:
                api.VBD.set_mode(vbd, "RO")
        images = world.images(world.source, made.uuid)
        for number, image in enumerate(images[2:]):
            form = "raw" if image.suffix == ".raw" else "qcow2"
            command = f"write -P {number + 1} {SIZES[number] // 1024 * 512} 4096"
            subprocess.run(["qemu-io", "-f", form, "-c", command, str(image)], check=True, capture_output=True)
        api.VM.start(vm, False, False)
    kept = []
    for number, image in enumerate(images):
        kept.append(tmp_path / f"{number}.raw")
        kept[-1].write_bytes(as_raw(image, tmp_path).read_bytes())
    world.wait(lambda: world.ticks(made.uuid, world.source), "it does not start")
    printed = len(world.console(made.uuid, world.source).counters)
    seen = world.follow(world.begin(made.uuid, world.receive("local-qcow2")))
    assert not seen.error_info, " | ".join(seen.error_info)
    assert world.ticks(made.uuid, world.destination)
    with world.session(world.destination) as api:
        vbds = [api.VBD.get_record(vbd) for vbd in api.VM.get_VBDs(api.VM.get_by_uuid(made.uuid))]
        assert {vbd["userdevice"]: vbd["mode"] for vbd in vbds} == {
            str(number): "RO" if number == 4 else "RW" for number in range(len(SIZES) + 2)
        }
    there = world.images(world.destination, made.uuid)
    assert len(there) == len(SIZES) + 2
    assert all(equal(*pair) for pair in zip(kept[2:], there[2:], strict=True))
    world.nothing_left(world.source)
    world.shut_down(world.destination, made.uuid)
    now = world.console(made.uuid, world.source, world.destination).counters[printed:]
    assert now == list(range(now[0], now[0] + len(now)))
    for image in there[:2]:
        assert made.guest.ticker.lost(as_raw(image, tmp_path), now) == []
