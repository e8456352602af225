"""Two hosts with one SR, and storage motion from and to files."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest
import pytest_twisted
from private_target import private_target
from sm_iscsi.driver import ISCSIDriver
from twisted.internet import reactor, task

from tests.sm.two_hosts import MIB, Host, guest_on, open_sr
from xapi_migrate.sm.interfaces import CopyState, Purpose, SRConfig
from xapi_migrate.sm.repository import open_repository
from xapi_migrate.sm.services import SMServices
from xapi_migrate.testing.sr_hosts import QUICK

pytestmark = pytest.mark.system
SIZE = 4 * MIB + 512


@pytest_twisted.ensureDeferred
async def test_a_vm_moves_between_two_hosts_and_its_disk_stays(short_tmp: Path) -> None:
    """The receiver finds the VDI, the sender proves that it is the same; what the one has written the other reads."""
    async with private_target(short_tmp / "t") as target:
        record = SRConfig(str(uuid.uuid4()), "iscsi", target.config())
        services = [SMServices(reactor, short_tmp / name, QUICK) for name in "TR"]
        ours, theirs = (open_repository(ISCSIDriver(), record, one) for one in services)
        vdi = str(uuid.uuid4())
        try:
            await ours.attach()
            await theirs.attach()
            await ours.vdi_create(vdi, SIZE)
            assert [(info.uuid, info.virtual_size) for info in await theirs.scan()] == [(vdi, SIZE)]
            async with guest_on(Host(services[0], ours, short_tmp), vdi) as guest:
                await guest.client.write(SIZE - 512, b"a" * 512)
                url = await theirs.vdi_dummy_url(vdi, SIZE, "m", "127.0.0.1")
                await ours.vdi_copy(vdi, url, "ref", await theirs.same_disk_proof("m"))
                await theirs.vdi_attach(vdi, Purpose.DOMAIN)
                await guest.client.write(0, b"b" * 512)
                await ours.vdi_deactivate(vdi)
            status = await ours.copy_state("ref")
            assert status.state is CopyState.FINISHED and status.same_disk
            await theirs.vdi_close_url(vdi, "m")
            await theirs.forget_proof("m")
            async with guest_on(Host(services[1], theirs, short_tmp), vdi) as guest:
                assert await guest.client.read(0, 512) == b"b" * 512
                assert await guest.client.read(SIZE - 512, 512) == b"a" * 512
            await ours.vdi_detach(vdi)
            await theirs.vdi_detach(vdi)
        finally:
            for one in services:
                await one.stop()
                assert one.alive().nothing


@pytest_twisted.ensureDeferred
async def test_motion_from_and_to_files(short_tmp: Path) -> None:
    """The datapath of a file opens the LUN, with its password, beside it."""
    async with private_target(short_tmp / "t") as target:
        services = SMServices(reactor, short_tmp / "s", QUICK)
        luns = open_repository(ISCSIDriver(), SRConfig(str(uuid.uuid4()), "iscsi", target.config()), services)
        (short_tmp / "f").mkdir()
        files = open_sr(services, short_tmp / "f", "qcow2")
        first, lun, last = (str(uuid.uuid4()) for _ in range(3))
        try:
            await luns.attach()
            await files.attach()
            for sr, vdi in ((files, first), (luns, lun), (files, last)):
                await sr.vdi_create(vdi, SIZE)
            async with guest_on(Host(services, files, short_tmp), first) as guest:
                await guest.client.write(MIB, b"moves" * 1000)
                for source, vdi, to, fresh in ((files, first, luns, lun), (luns, lun, files, last)):
                    await source.move_begin(vdi, to, fresh)
                    while (await source.move_status(vdi, to, fresh)).state.value != "ready":
                        await task.deferLater(reactor, 0.01)
                    await source.move_settle(vdi, to, fresh)
                    await source.move_pivot(vdi, to, fresh)
                    assert await guest.client.read(MIB, 5000) == b"moves" * 1000
                    await source.vdi_destroy(vdi)
            await files.vdi_detach(last)
        finally:
            await services.stop()
            assert services.alive().nothing
