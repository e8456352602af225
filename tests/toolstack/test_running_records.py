"""What the records say of a VM because it runs: domid, the names of its disks, the time of its start."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
import pytest_twisted

from tests.toolstack.small_host import World, small_host
from xapi_migrate.toolstack.running_records import device_name

EPOCH = datetime.fromtimestamp(0, UTC)


@pytest.mark.parametrize(
    ("userdevice", "name"), [("0", "xvda"), ("3", "xvdd"), ("25", "xvdz"), ("26", "26"), ("hda", "hda")]
)
def test_names(userdevice: str, name: str) -> None:
    assert device_name(userdevice) == name


@pytest_twisted.ensureDeferred
async def test_each_domain_has_a_number_of_its_own_and_keeps_it(tmp_path: Path) -> None:
    world = World()
    async with small_host(tmp_path, world) as here:
        sr = await here.sr()
        first, second = [await here.vm(sr, disks=2) for _ in range(2)]

        def numbers() -> list[int]:
            return [here.get("VM", vm)["domid"] for vm in (first, second)]

        def devices() -> list[str]:
            return sorted(here.get("VBD", vbd)["device"] for vbd in here.get("VM", first)["VBDs"])

        assert numbers() == [-1, -1] and devices() == ["", ""]
        for vm in (first, second):
            await here.call("VM.start", vm, False, False)
        assert numbers() == [1, 2] and devices() == ["xvda", "xvdb"]
        began = here.get("VM_metrics", here.get("VM", first)["metrics"])["start_time"]
        assert began > EPOCH
        await here.call("VM.pause", first)
        await here.call("VM.unpause", first)
        assert numbers() == [1, 2]
        assert here.get("VM_metrics", here.get("VM", first)["metrics"])["start_time"] == began
    async with small_host(tmp_path, world) as here:
        assert numbers() == [1, 2] and devices() == ["xvda", "xvdb"]
        await here.call("VM.suspend", first)
        assert numbers() == [-1, 2] and devices() == ["", ""]
        await here.call("VM.resume", first, False, False)
        assert numbers() == [3, 2] and devices() == ["xvda", "xvdb"]
        assert here.get("VM_metrics", here.get("VM", first)["metrics"])["start_time"] > began
        await here.call("VM.hard_reboot", second)
        assert numbers() == [3, 4]
        for vm in (first, second):
            await here.call("VM.hard_shutdown", vm)
        assert numbers() == [-1, -1]


@pytest_twisted.ensureDeferred
async def test_the_hosts_processors_and_the_age_of_its_figures(tmp_path: Path) -> None:
    async with small_host(tmp_path) as here:
        host = here.get("host", here.host)
        processors = [here.get("host_cpu", ref) for ref in host["host_CPUs"]]
        assert sorted(one["number"] for one in processors) == list(range(int(host["cpu_info"]["cpu_count"])))
        assert {one["modelname"] for one in processors} == {host["cpu_info"]["modelname"]}
        assert here.get("host_metrics", host["metrics"])["last_updated"] > EPOCH
        known = list(host["host_CPUs"])
    async with small_host(tmp_path) as here:
        assert here.get("host", here.host)["host_CPUs"] == known
