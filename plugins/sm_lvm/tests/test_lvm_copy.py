"""Real storage daemons and tgtd on the stand-in's volumes: a disk that is smaller than its volume moves and comes
back."""

from __future__ import annotations

import random
import uuid
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from fake_group import MIB, SR, FakeGroup
from twisted.internet import reactor

from tests.sm.two_hosts import Host, begin_copy, guest_on, open_sr, until
from xapi_migrate.sm.interfaces import CopyState, Purpose, SRConfig
from xapi_migrate.sm.repository import Repository
from xapi_migrate.sm.services import SMServices

pytestmark = pytest.mark.system
ODD = 8 * MIB + 512


def lvm_host(folder: Path, group: FakeGroup, services: SMServices | None = None) -> Host:
    services = services or SMServices(reactor, folder / "state", group.timeouts)
    record = SRConfig(SR, "lvm", {})
    return Host(services, Repository(record, group.sr(), services), folder)


async def copied(sender: Host, receiver: Host, vdi: str, guest: Any, secure: bool) -> str:
    """Copy a disk under a guest that goes on writing; the fresh VDI's uuid."""
    fresh, _ = await begin_copy(sender, receiver, vdi, ODD, secure=secure)
    await until(sender, "copy-1", CopyState.READY, timeout=300)
    await guest.client.write(ODD - 512, b"the last sector ".ljust(512, b"."))
    await guest.stop()
    await sender.sr.vdi_deactivate(vdi)
    assert (await sender.sr.copy_state("copy-1")).state is CopyState.FINISHED
    await receiver.sr.vdi_close_url(fresh, "migration-1")
    await sender.sr.copy_cancel("copy-1")
    return fresh


async def content(host: Host, vdi: str) -> bytes:
    async with guest_on(host, vdi) as guest:
        assert guest.client.size == ODD
        read = await guest.client.read(0, 8 * MIB) + await guest.client.read(8 * MIB, 512)
    await host.sr.vdi_detach(vdi)
    return bytes(read)


@pytest.mark.parametrize("secure", [False, True], ids=["iscsi", "nbds"])
@pytest_twisted.ensureDeferred
async def test_to_files_and_back(group: FakeGroup, short_tmp: Path, secure: bool) -> None:
    """And a volume is active only while a datapath uses it."""
    lvm = lvm_host(short_tmp / "L", group)
    (short_tmp / "F").mkdir()
    services = SMServices(reactor, short_tmp / "F" / "state", group.timeouts)
    files = Host(services, open_sr(services, short_tmp / "F", "raw"), short_tmp / "F")
    try:
        await lvm.sr.attach()
        await files.sr.attach()
        vdi = str(uuid.uuid4())
        await lvm.sr.vdi_create(vdi, ODD)
        assert group.active() == []
        async with guest_on(lvm, vdi) as guest:
            assert group.active() == [vdi]
            await guest.client.write(0, random.Random(1).randbytes(2 * MIB))
            guest.pause = group.pause
            guest.start()
            there = await copied(lvm, files, vdi, guest, secure)
        await lvm.sr.vdi_detach(vdi)
        assert group.active() == []
        expected = await content(lvm, vdi)
        assert expected[-512:].startswith(b"the last sector ") and await content(files, there) == expected
        async with guest_on(files, there) as guest:
            guest.pause = group.pause
            guest.start()  # writes zeroes too, which on a volume must not end as discards
            back = await copied(files, lvm, there, guest, secure)
        await files.sr.vdi_detach(there)
        assert await content(lvm, back) == await content(files, there)
        assert group.active() == []
    finally:
        for host in (lvm, files):
            await host.services.stop()
            assert host.services.alive().nothing


@pytest_twisted.ensureDeferred
async def test_motion_from_and_to_files(group: FakeGroup, short_tmp: Path) -> None:
    """Storage motion under a guest: the volume is active from its beginning, and no longer when the image has left."""
    lvm = lvm_host(short_tmp / "L", group)
    (short_tmp / "F").mkdir()
    files = open_sr(lvm.services, short_tmp / "F", "raw")
    try:
        await lvm.sr.attach()
        await files.attach()
        first, volume, last = (str(uuid.uuid4()) for _ in range(3))
        for sr, vdi in ((files, first), (lvm.sr, volume), (files, last)):
            await sr.vdi_create(vdi, ODD)
        async with guest_on(Host(lvm.services, files, short_tmp), first) as guest:
            await guest.client.write(MIB, b"moves" * 1000)
            for source, vdi, to, fresh in ((files, first, lvm.sr, volume), (lvm.sr, volume, files, last)):
                await source.move_begin(vdi, to, fresh)
                assert group.active() == [volume]
                while (await source.move_status(vdi, to, fresh)).state.value != "ready":
                    pass
                await source.move_settle(vdi, to, fresh)
                await source.move_pivot(vdi, to, fresh)
                assert group.active() == ([volume] if to is lvm.sr else [])
                assert await guest.client.read(MIB, 5000) == b"moves" * 1000
        await files.vdi_detach(last)
    finally:
        await lvm.services.stop()
        assert lvm.services.alive().nothing


@pytest_twisted.ensureDeferred
async def test_a_restarted_daemon_keeps_what_is_attached(group: FakeGroup, short_tmp: Path) -> None:
    lvm = lvm_host(short_tmp, group)
    await lvm.sr.attach()
    used, unused = str(uuid.uuid4()), str(uuid.uuid4())
    # without a domain nobody waits for a datapath that died
    for vdi, purpose in ((used, Purpose.DOMAIN), (unused, Purpose.TARGET)):
        await lvm.sr.vdi_create(vdi, ODD)
        await lvm.sr.vdi_attach(vdi, purpose)
    datapath = lvm.services.datapaths.get(unused)
    assert datapath is not None
    await datapath.daemon.child.kill()
    lvm.services.let_go()
    again = lvm_host(short_tmp, group)
    try:
        await again.services.recover()
        await again.sr.attach()
        assert group.active() == [used]
        await again.sr.vdi_activate(used)
        await again.sr.vdi_detach(used)
        assert group.active() == []
    finally:
        await again.services.stop()
        assert again.services.alive().nothing
