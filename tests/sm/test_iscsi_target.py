"""tgtd: targets, accounts, LUNs, portals; and nothing of it afterwards."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path

import pytest
import pytest_twisted
from twisted.internet import defer, reactor, task

from tests.sm.two_hosts import MIB, QUICK, begin_copy, make_disk, two_hosts, until
from xapi_migrate.errors import SrBackendFailure
from xapi_migrate.processes import remains
from xapi_migrate.sm.addresses import LunAddress, read_address
from xapi_migrate.sm.interfaces import CopyState, TargetUrl
from xapi_migrate.sm.iscsi_target import ISCSIService, migration_id
from xapi_migrate.sm.same_disk import read_identity
from xapi_migrate.sm.tgt_ipc import Mode, Op, pack
from xapi_migrate.together import started

pytestmark = pytest.mark.system
VDI, OTHER = "11111111-2222-3333-4444-555555555555", "11111111-2222-3333-4444-666666666666"


def a_file(folder: Path, size: int = MIB) -> Path:
    path = folder / f"disk-{len(list(folder.iterdir()))}"
    with path.open("wb") as file:
        file.truncate(size)
    return path


def test_a_request_is_what_tgtadm_sends() -> None:
    sent = pack(Mode.ACCOUNT, Op.NEW, -1, -1, 0, -1, False, "user=u,password=p")
    assert len(sent) == 138 and sent[:8] == bytes.fromhex("0700000000000000")
    assert sent[8:72].rstrip(b"\0") == b"iscsi"
    assert sent[72:80] == (138).to_bytes(4, "little") + b"\xff" * 4
    assert sent[120:] == b"user=u,password=p\0"


@pytest_twisted.ensureDeferred
async def test_luns_of_one_migration_share_target_and_account(tmp_path: Path) -> None:
    service = ISCSIService(reactor, tmp_path / "tgt", QUICK)
    try:
        one = await service.add_lun("m1", VDI, a_file(tmp_path), "127.0.0.1", scsi_id=VDI)
        two = await service.add_lun("m1", OTHER, a_file(tmp_path), "127.0.0.1", scsi_id=VDI, read_only=True)
        three = await service.add_lun("m2", VDI, a_file(tmp_path), "127.0.0.2", scsi_id=VDI)
        assert one == await service.add_lun("m1", VDI, a_file(tmp_path), "127.0.0.1", scsi_id=VDI)
        first, second, third = (_lun(url) for url in (one, two, three))
        assert (first.lun, second.lun, third.lun) == (1, 2, 1)
        assert first.iqn == second.iqn != third.iqn
        assert first.port == third.port and third.address == "127.0.0.2"
        assert one.password == two.password != three.password
        assert len(service.targets()) == 2
        identity = await read_identity(reactor, tmp_path / "probe", VDI, two, QUICK)
        assert identity.serial == OTHER and VDI in identity.ids
        assert one.password not in (tmp_path / "tgt/stderr").read_text()
        assert (tmp_path / "tgt/state.json").stat().st_mode & 0o777 == 0o600
        assert await service.remove_lun("m1", VDI) and not await service.remove_lun("m1", VDI)
        assert service.vdis("m1") == [OTHER]
        await service.remove_lun("m1", OTHER)
        assert len(service.targets()) == 1 and service.alive
        await service.remove_lun("m2", VDI)
        assert not service.alive and service.targets() == []
    finally:
        await service.stop()


@pytest_twisted.ensureDeferred
async def test_given_up_while_tgtd_comes_up_it_is_ended(tmp_path: Path) -> None:
    service = ISCSIService(reactor, tmp_path / "tgt", QUICK)
    try:
        adding = started(service.add_lun("m1", VDI, a_file(tmp_path), "127.0.0.1", scsi_id=VDI))
        while not service.pid:
            await task.deferLater(reactor, 0)
        adding.cancel()
        with pytest.raises(defer.CancelledError):
            await adding
        assert not service.alive and remains.children(tmp_path) == {}
        assert await service.add_lun("m1", VDI, a_file(tmp_path), "127.0.0.1", scsi_id=VDI)
    finally:
        await service.stop()


@pytest_twisted.ensureDeferred
async def test_a_restarted_daemon_finds_its_targets(tmp_path: Path) -> None:
    before = ISCSIService(reactor, tmp_path / "tgt", QUICK)
    url = await before.add_lun("m1", VDI, a_file(tmp_path), "127.0.0.1", scsi_id=VDI)
    pid = before.pid
    before.let_go()
    after = ISCSIService(reactor, tmp_path / "tgt", QUICK)
    try:
        assert await after.recover() and after.pid == pid
        assert await after.add_lun("m1", VDI, tmp_path, "127.0.0.1", scsi_id=VDI) == url
        os.kill(pid, signal.SIGTERM)  # it ignores that
        await task.deferLater(reactor, 0.1)
        assert after.alive
    finally:
        await after.stop()
    assert not await ISCSIService(reactor, tmp_path / "tgt", QUICK).recover()


@pytest_twisted.ensureDeferred
async def test_a_taken_port_is_said(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        service = ISCSIService(reactor, tmp_path / "tgt", QUICK, taken.getsockname()[1])
        with pytest.raises(SrBackendFailure, match="port taken|did not come up"):
            await service.add_lun("m1", VDI, a_file(tmp_path), "127.0.0.1", scsi_id=VDI)
        assert not service.alive
    await service.stop()


@pytest_twisted.ensureDeferred
async def test_an_address_that_is_not_ours_is_said(tmp_path: Path) -> None:
    service = ISCSIService(reactor, tmp_path / "tgt", QUICK)
    try:
        await service.add_lun("m1", VDI, a_file(tmp_path), "127.0.0.1", scsi_id=VDI)
        with pytest.raises(SrBackendFailure, match="is the address local"):
            await service.add_lun("m1", OTHER, a_file(tmp_path), "192.0.2.1", scsi_id=VDI)
    finally:
        await service.stop()


@pytest_twisted.ensureDeferred
async def test_closing_a_lun_ends_its_session(tmp_path: Path) -> None:
    async with two_hosts(tmp_path) as (ours, theirs):
        vdi = await make_disk(ours, 32 * MIB, filled=MIB)
        fresh, _ = await begin_copy(ours, theirs, vdi, 32 * MIB)
        await until(ours, "copy-1", CopyState.READY)
        assert len(await theirs.services.iscsi.sessions("migration-1")) == 1
        await theirs.sr.vdi_close_url(fresh, "migration-1")
        assert await theirs.services.iscsi.sessions("migration-1") == []
        assert theirs.services.alive().nothing


def test_the_name_of_a_migration_does_not_tell_its_secret() -> None:
    assert "capability" not in migration_id("capability")


def _lun(url: TargetUrl) -> LunAddress:
    address = read_address(url.url)
    assert isinstance(address, LunAddress)
    return address
