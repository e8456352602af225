"""The guests: what they say is true, and what is lost is noticed."""

from __future__ import annotations

import struct
import subprocess
from pathlib import Path

import attrs
import pytest
from pytest_twisted import ensureDeferred

from tests.domains.hosts import MIB, Hosts, until
from xapi_migrate.domains.interfaces import DomainDisk, DomainState
from xapi_migrate.domains.qemu_config import QEMUConfig
from xapi_migrate.testing import guests
from xapi_migrate.testing.guests import linux, ticker

SOURCES = Path(guests.__file__).parent
CACHE = Path(__file__).parents[2] / ".cache" / "guests"


@pytest.mark.parametrize("name", ["ticker", "linux_loader"])
def test_the_boot_sectors_are_made_of_their_sources(tmp_path, name):
    subprocess.run(["nasm", "-f", "bin", "-o", tmp_path / "made", SOURCES / f"{name}.asm"], check=True)
    assert (tmp_path / "made").read_bytes() == (SOURCES / f"{name}.bin").read_bytes()


def test_the_parameters_of_the_ticker_are_where_its_source_has_them():
    assert ticker.Ticker().boot_sector() == (SOURCES / "ticker.bin").read_bytes()
    changed = ticker.Ticker(ticks=19, span=7, disks=1).boot_sector()
    assert struct.unpack_from("<HI", changed, 0x1E0) == (62799, 7)


def test_consoles():
    console = ticker.parse(b"SeaBIOS\n1\n2\n3\n5\n5\nX6\nE7\n8\nOFF\n9")
    assert console.counters == [1, 2, 3, 5, 5, 8]
    assert console.breaks == [(3, 5), (5, 5), (5, 8)]
    assert console.anomalies == ["SeaBIOS", "X6", "E7"]
    assert console.powered_off
    assert not ticker.parse(b"OFF\n1\n").powered_off


def test_lost_writes_are_found(tmp_path):
    image, guest = tmp_path / "image", ticker.Ticker(span=10)
    ticker.write_image(image, MIB, guest)
    with image.open("r+b") as file:
        for counter in range(1, 26):
            file.seek((1 + counter % 10) * 512)
            file.write(b"TICK" + struct.pack("<I", counter))
        file.flush()
        assert guest.lost(image, list(range(1, 26))) == []
        file.seek((1 + 20 % 10) * 512)
        file.write(b"TICK" + struct.pack("<I", 10))
    assert guest.lost(image, list(range(1, 26))) == [20]
    assert guest.lost(image, list(range(1, 16))) == [7, 8, 9, 11, 12, 13, 14, 15]


@pytest.mark.system
@ensureDeferred
async def test_the_ticker_notices_damaged_memory(place):
    async with Hosts(place) as hosts:
        guest = ticker.Ticker(fill_pages=64, fill_end=4 * MIB, pages=64, end=4 * MIB)
        here, _ = await hosts.running(guest)
        image = place / "suspend-image"
        with image.open("wb") as file:
            suspension = await hosts.sender.suspend(here.domain_id, file.fileno())
            await suspension.suspended()
            await suspension.proceed()
            await suspension.finished()
        stream = bytearray(image.read_bytes())
        # the last copy of the page at 0x300000: its first word is the number of a pass ^ the address
        words = [(at, struct.unpack_from("<I", stream, at)[0]) for at in range(len(stream) - 4096)]
        at = max(at for at, word in words if 0x300000 < word < 0x300100 and not any(stream[at + 4 : at + 4096]))
        stream[at] ^= 0x80
        image.write_bytes(stream)
        there = hosts.there(here)
        with image.open("rb") as file:
            restoration = await hosts.receiver.restore(there, file.fileno())
            await restoration.finished()
        await hosts.receiver.unpause(there.domain_id)
        await until(lambda: hosts.console(here, there).anomalies, "the ticker's complaint")
        assert hosts.console(here, there).anomalies[0].startswith("X")


@pytest.mark.system
@ensureDeferred
async def test_the_linux_guest_moves_and_powers_off(place):
    # Slow enough that the guest writes to pages that were sent already: a write that is not noticed breaks it.
    async with Hosts(place, QEMUConfig(bandwidth=40 * MIB)) as hosts:
        disk = await hosts.disk()
        guest = linux.LinuxGuest(memory=16, rate=20, writes=1000)
        image = await linux.linux_image(disk.image.with_name("linux"), CACHE, 64 * MIB, guest)
        booted = await hosts.export(image.path)
        here = hosts.spec(booted, memory=linux.MINIMUM_MEMORY)
        await hosts.sender.start(here)
        await until(lambda: len(hosts.console(here).counters) > 100, "the Linux guest's first numbers", 60)
        there = hosts.there(here)
        await hosts.send_memory(here, there)
        await hosts.receiver.unpause(there.domain_id)
        await hosts.sender.destroy(here.domain_id)
        await hosts.ticks(here, there, more=50)
        told = []
        hosts.receiver.watch(lambda *change: told.append(change))
        await hosts.receiver.shutdown(there.domain_id)
        await until(lambda: told, "the power-off")
        assert told == [(there.domain_id, DomainState.SHUTDOWN)]
        console = hosts.console(here, there)
        assert console.breaks == []
        assert console.anomalies == []
        assert console.powered_off
        assert image.lost(console.counters) == []


@ensureDeferred
async def test_a_linux_disk_that_is_too_small(tmp_path):
    with pytest.raises(linux.GuestBuildFailed, match="must hold at least"):
        await linux.linux_image(tmp_path / "image", CACHE, 8 * MIB)
    assert not (tmp_path / "image").exists()


@pytest.mark.system
@ensureDeferred
async def test_the_ticker_says_that_a_disk_refuses_its_writes(place):
    async with Hosts(place) as hosts:
        first, second = await hosts.disk(), await hosts.disk()
        spec = hosts.spec(first, second)
        spec = attrs.evolve(spec, disks=(spec.disks[0], attrs.evolve(spec.disks[1], read_only=True)))
        assert isinstance(spec.disks[1], DomainDisk)
        await hosts.sender.start(spec)
        await until(lambda: len(hosts.console(spec).anomalies) > 5, "the ticker's complaints")
        assert hosts.console(spec).anomalies[0] == "E1"
        assert hosts.console(spec).counters == []
