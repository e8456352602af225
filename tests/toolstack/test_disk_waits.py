"""A guest that waits for a disk: who is told, of what, and how often."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.task import Clock

from tests.toolstack.small_host import SmallHost, World, small_host
from xapi_migrate.errors import SrBackendFailure

WHY = "refuses to write: Input/output error"


def clocked(here: SmallHost) -> Clock:
    clock = here.toolstack.disk_waits._clock = Clock()
    return clock


def refused(here: SmallHost, vm: str, why: str = WHY) -> None:
    """Its domain says so of its disk 0."""
    [driver] = {watcher.__self__ for watcher in here.world.hypervisor.watchers}
    driver.tell_disk(here.toolstack.domain_of(vm), "0", why)


async def told(here: SmallHost) -> list[dict[str, Any]]:
    """All messages, the oldest first."""
    return list((await here.call("message.get_all_records")).values())[::-1]


async def running(here: SmallHost) -> str:
    vm = await here.vm(await here.sr())
    await here.call("VM.start", vm, False, False)
    return str(vm)


@pytest_twisted.ensureDeferred
async def test_a_long_wait_is_told_once_and_its_end_too(tmp_path: Path) -> None:
    async with small_host(tmp_path) as here:
        clock, vm = clocked(here), await running(here)
        for _ in range(60):
            refused(here, vm)
            clock.advance(1)
        [message] = await told(here)
        assert (message["name"], message["cls"]) == ("VM_WAITS_FOR_DISK", "VM")
        assert message["obj_uuid"] == here.get("VM", vm)["uuid"]
        vdi = here.get("VDI", here.get("VBD", here.get("VM", vm)["VBDs"][0])["VDI"])
        names = ("VM demo", here.get("host", here.host)["name_label"], f"VDI {vdi['uuid']}", WHY, "VM.hard_shutdown")
        assert all(name in message["body"] for name in (*names, f"SR {here.get('SR', vdi['SR'])['uuid']}"))
        for _ in range(2):
            refused(here, vm, "")
        [_, message] = await told(here)
        assert message["name"] == "VM_DISK_WORKS_AGAIN" and "after 60 s" in message["body"]
        refused(here, vm)  # another wait
        clock.advance(11)
        refused(here, vm)
        assert len(await told(here)) == 3
        await here.call("VM.hard_shutdown", vm)


@pytest_twisted.ensureDeferred
async def test_of_short_waits_nobody_is_told(tmp_path: Path) -> None:
    async with small_host(tmp_path) as here:
        clock, vm = clocked(here), await running(here)
        for _ in range(5):
            refused(here, vm)
            clock.advance(9)
            refused(here, vm, "")
        assert await told(here) == []
        await here.call("VM.hard_shutdown", vm)


@pytest_twisted.ensureDeferred
async def test_nobody_is_told_again_by_the_next_daemon(tmp_path: Path) -> None:
    world = World()
    async with small_host(tmp_path, world) as here:
        clock, vm = clocked(here), await running(here)
        refused(here, vm)
        clock.advance(11)
        refused(here, vm)
        assert len(await told(here)) == 1
    async with small_host(tmp_path, world) as again:
        clock = clocked(again)
        for _ in range(30):
            refused(again, vm)
            clock.advance(1)
        assert len(await told(again)) == 1
        refused(again, vm, "")
        assert [message["name"] for message in await told(again)][1:] == ["VM_DISK_WORKS_AGAIN"]
        await again.call("VM.hard_shutdown", vm)


@pytest_twisted.ensureDeferred
async def test_it_is_not_shut_down_cleanly_while_it_waits(tmp_path: Path) -> None:
    """The next domain of the VM does not wait."""
    async with small_host(tmp_path) as here:
        clock, vm = clocked(here), await running(here)
        refused(here, vm)
        clock.advance(11)
        refused(here, vm)
        for method in ("VM.clean_shutdown", "VM.clean_reboot"):
            with pytest.raises(SrBackendFailure, match=f"waits for its disk 0, VDI .*{WHY}.*cannot shut itself down"):
                await here.call(method, vm)
        assert here.get("VM", vm)["power_state"] == "Running"
        await here.call("VM.hard_reboot", vm)
        await here.call("VM.clean_shutdown", vm)
        assert here.get("VM", vm)["power_state"] == "Halted" and len(await told(here)) == 1


@pytest_twisted.ensureDeferred
async def test_a_disk_without_its_storage_process(tmp_path: Path) -> None:
    async with small_host(tmp_path) as here:
        clock, vm = clocked(here), await running(here)
        uuid = here.get("VDI", here.get("VBD", here.get("VM", vm)["VBDs"][0])["VDI"])["uuid"]
        waits = here.toolstack.disk_waits
        for why in ("has lost its storage process", "cannot be opened: no such file", ""):
            waits.of_vdi(uuid, why)
            clock.advance(11)
        waits.of_vdi("unknown", "has lost its storage process")
        first, second = await told(here)
        assert "no such file" in first["body"] and "goes on" in second["body"]
        await here.call("VM.hard_shutdown", vm)
        for _ in range(2):
            waits.of_vdi(uuid, "nobody waits for it")
            clock.advance(11)
        assert len(await told(here)) == 2
