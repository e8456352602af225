"""The Xen driver on real Xen. pytest finds it by its name only: it runs in the dom0 of `make test-xen`."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import pytest_twisted

from tests.system.world import World, as_raw
from tests.xen.bench import CONFIG, Bridge, XenBench, numbers
from xapi_migrate.domains import xen_disks
from xapi_migrate.domains.interfaces import DomainSpec, DomainState
from xapi_migrate.errors import DomainError
from xapi_migrate.lab.lab import Lab
from xapi_migrate.lab.provisioning import MIB, Guest, create_vbd, create_vdi, create_vm
from xapi_migrate.testing.domain_contract import CHECKS, DomainBench

pytestmark = pytest.mark.limit(300)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
@pytest_twisted.ensureDeferred
async def test_xen(check: Callable[[DomainBench], Awaitable[None]], short_tmp: Path) -> None:
    with Bridge() as here, Bridge() as far:
        async with XenBench(short_tmp, here, far) as bench:
            await check(bench)


@pytest_twisted.ensureDeferred
async def test_a_guest_that_resets_its_machine_starts_anew(short_tmp: Path) -> None:
    with Bridge() as here, Bridge() as far:
        async with XenBench(short_tmp, here, far) as bench:
            spec = await bench.running()
            told: list[object] = []
            bench.sender.watch(lambda *change: told.append(change))
            subprocess.run(["xl", "reboot", spec.domain_id], check=True, stdin=subprocess.DEVNULL, timeout=60)
            await bench.until(lambda: bench.printed(spec).count(1) == 2, "that it begins to count again")
            assert await bench.sender.state(spec.domain_id) is DomainState.RUNNING
            assert told == []


@pytest_twisted.ensureDeferred
async def test_a_disk_whose_datapath_comes_back(short_tmp: Path) -> None:
    """Its requests wait: the guest sees no error and leaves no number out. So it is too when nobody looked."""
    with Bridge() as here, Bridge() as far:
        async with XenBench(short_tmp, here, far) as bench:
            spec = await bench.running()
            for restarts in (False, True):
                await bench.datapath_dies()
                await bench.sleep(0.5)
                stood = len(bench.printed(spec))
                await bench.sleep(0.5)
                assert len(bench.printed(spec)) == stood
                if restarts:
                    await bench.sender.close()
                await bench.datapath_comes_back()
                if restarts:
                    await bench.restart()
                await bench.until(lambda: len(bench.printed(spec)) > stood + 5, "that it goes on")  # noqa: B023
            numbers = bench.printed(spec)
            assert numbers == list(range(1, len(numbers) + 1))


@pytest_twisted.ensureDeferred
async def test_a_domain_whose_requests_wait_is_ended_and_they_are_never_made(short_tmp: Path) -> None:
    """Neither by a disk that has lost writes, nor by a destroy: what waits for the datapath must not be written by the
    disk's next one."""
    with Bridge() as here, Bridge() as far:
        async with XenBench(short_tmp, here, far) as bench:
            for ends in ("lost", "destroyed"):
                spec = await bench.running()
                await bench.datapath_dies()
                await bench.sleep(0.5)
                image = bench.image()
                before = image.read_bytes()
                with pytest.raises(DomainError, match="disk 0 does not take"):
                    await bench.sender.pause(spec.domain_id)
                assert await bench.sender.state(spec.domain_id) is DomainState.RUNNING
                if ends == "lost":
                    await bench.sender.lose_disk(spec.disks[0].socket_path, "its writes are lost")
                    assert await bench.sender.state(spec.domain_id) is DomainState.CRASHED
                else:
                    await bench.sender.destroy(spec.domain_id)
                assert devices(spec) == [None]
                assert not known_to_xen(spec)
                await bench.datapath_comes_back()
                await bench.sleep(0.5)
                assert image.read_bytes() == before
                await bench.sender.destroy(spec.domain_id)


def devices(spec: DomainSpec) -> list[int | None]:
    return [xen_disks.device(spec.domain_id, disk) for disk in spec.disks]


def known_to_xen(spec: DomainSpec) -> bool:
    command = ["xl", "domid", spec.domain_id]
    return not subprocess.run(command, capture_output=True, check=False, stdin=subprocess.DEVNULL).returncode


@pytest_twisted.ensureDeferred
async def test_a_call_that_is_killed_leaves_nothing(short_tmp: Path) -> None:
    with Bridge() as here, Bridge() as far:
        async with XenBench(short_tmp, here, far) as bench:
            spec = await bench.running()
            there = bench.there(spec)
            near, away = bench.wire()
            restoration = await bench.receiver.restore(there, away)
            await restoration.accepting()
            os.close(away)
            suspension = await bench.sender.suspend(spec.domain_id, near)
            os.close(near)
            await bench.until(lambda: known_to_xen(there), "that libxl begins to build it")
            assert devices(there) != [None]
            bench.kill_call(there)
            for stream in (restoration, suspension):
                with pytest.raises(DomainError):
                    await stream.finished()
            assert await bench.receiver.domains() == []
            assert devices(there) == [None]
            assert not known_to_xen(there)
            await bench.sender.resume(spec.domain_id)
            stood = len(bench.printed(spec))
            await bench.until(lambda: len(bench.printed(spec)) > stood, "that it goes on where it ran")


def test_a_vm_moves_between_two_daemons(short_tmp: Path) -> None:
    settings = {
        "domains": "xen", "xen_kernel": CONFIG.kernel, "xen_ramdisk": CONFIG.ramdisk,
        "xen_arguments": CONFIG.arguments, "xen_tsc_mode": CONFIG.tsc_mode,
    }  # fmt: skip
    lab = Lab(short_tmp / "lab", settings=settings)
    with lab:
        world = World(lab)
        with lab.hosts[0].server.session() as session:
            vm = create_vm(session, Guest(memory=96))
            for number in range(2):
                sr = session.xenapi.SR.get_by_uuid(world.source.srs["local-raw"])
                create_vbd(session, vm, create_vdi(session, sr, f"disk {number}", 16 * MIB), number)
            session.xenapi.VM.start(vm, False, False)
            uuid = session.xenapi.VM.get_uuid(vm)
        here, there = (host.console(uuid) for host in lab.hosts)
        world.wait(lambda: len(numbers(here)) > 20, "the guest does not count", 120)
        seen = world.follow(world.begin(uuid, world.receive("local-qcow2")), patience=400)
        assert seen.error_info == []
        world.wait(lambda: len(numbers(there)) > 20, "the guest does not count there", 120)
        world.shut_down(world.destination, uuid)
        counted = numbers(here, there)
        assert counted == list(range(1, len(counted) + 1))
        world.nothing_left(world.source)
        image = world.images(world.destination, uuid)[0]
        written = int(as_raw(image, short_tmp).read_bytes()[8 * 512 : 8 * 512 + 8])
        assert written in (counted[-1], counted[-1] + 1)
        world.destroy(world.destination, uuid)
        world.nothing_left(world.destination)
