"""What becomes of a datapath whose disk cannot be flushed, or whose image is gone."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs
import pytest
import pytest_twisted
from twisted.internet import reactor, task

from tests.faults.failing_disk import FailingDisk
from tests.sm.two_hosts import MIB, QUICK, Host, SMServices, image, make_disk, make_host, open_sr
from xapi_migrate.sm.datapath_state import DOMAIN
from xapi_migrate.sm.flushing import flush
from xapi_migrate.sm.interfaces import Purpose
from xapi_migrate.testing.nbd_guest import NBDClient, NBDError, connect

pytestmark = pytest.mark.system
SIZE = 16 * MIB
SOON = attrs.evolve(QUICK, revive=0.2, revive_at_most=1.0, revived=1.0)
WHY = "refuses to write: Input/output error"


async def until(check: Callable[[], bool], what: str) -> None:
    end = reactor.seconds() + 20
    while not check():
        assert reactor.seconds() < end, what
        await task.deferLater(reactor, 0.02)


async def attached(host: Host) -> tuple[str, str, NBDClient]:
    """A new disk that a domain uses: its VDI, its socket, the domain's connection."""
    vdi = await make_disk(host, SIZE)
    attachment = await host.sr.vdi_attach(vdi, Purpose.DOMAIN)
    await host.sr.vdi_activate(vdi)
    return vdi, attachment.socket_path, await connect(reactor, attachment.socket_path, attachment.export)


async def fails_to_flush(client: NBDClient, disk: FailingDisk) -> None:
    """For a moment the disk did not take a flush. It works now, and no flush succeeds any more."""
    await client.write(0, b"w" * 4096)
    disk.fail_to_sync()
    with pytest.raises(NBDError):
        await client.flush()
    disk.heal()
    await client.write(4096, b"w" * 4096)
    with pytest.raises(NBDError):
        await client.flush()


@pytest.mark.parametrize("noticed", ["at once", "by the next daemon", "it dies before"])
@pytest.mark.parametrize("kind", ["raw", "qcow2"])
@pytest_twisted.ensureDeferred
async def test_a_disk_whose_flush_failed_is_lost_to_its_domain(tmp_path: Path, kind: str, noticed: str) -> None:
    """A raw one too: another process would flush what the kernel has thrown away, and say that all is well."""
    host, lost = await make_host(tmp_path, kind, SOON), []

    async def lose(socket: str, reason: str) -> None:
        lost.append((socket, reason))

    with FailingDisk(tmp_path / "sr", tmp_path / "behind") as disk:
        services = host.services
        try:
            vdi, socket, client = await attached(host)
            await fails_to_flush(client, disk)
            client.close()
            datapath = services.datapaths.get(vdi)
            if noticed == "at once":
                await services.datapaths.when_lost(lose)
                services.datapaths.refused(socket, WHY)
            elif noticed == "it dies before":
                await services.datapaths.when_lost(lose)
                services.datapaths.refused(socket, WHY)
                datapath.daemon.child.kill()
            else:
                services.datapaths.refused(socket, WHY)
                await until(lambda: not datapath.daemon.alive, "it does not end")
                services.let_go()
                services = SMServices(reactor, services.state_dir, SOON)
                await services.recover()
                await services.datapaths.when_lost(lose)
            await until(lambda: bool(lost), "nobody is told")
            [(where, reason)] = lost
            assert where == socket and f"VDI {vdi}" in reason
            assert noticed == "it dies before" or "a flush of its disk" in reason
            await task.deferLater(reactor, 0.5)
            assert services.datapaths.get(vdi) is None, "another process is in its place"
            await services.datapaths.detach(vdi, "domain")
            assert list((services.state_dir / "datapaths").glob("*")) == [] and len(lost) == 1
        finally:
            await services.stop()
    assert services.alive().nothing


@pytest.mark.parametrize("kind", ["raw", "qcow2"])
@pytest_twisted.ensureDeferred
async def test_writes_that_are_refused_are_no_failed_flush(tmp_path: Path, kind: str) -> None:
    """The process stays, and the same requests succeed later."""
    host, lost = await make_host(tmp_path, kind, SOON), []

    async def lose(socket: str, reason: str) -> None:
        lost.append(socket)

    with FailingDisk(tmp_path / "sr", tmp_path / "behind") as disk:
        try:
            await host.services.datapaths.when_lost(lose)
            vdi, socket, client = await attached(host)
            pid = host.services.datapaths.get(vdi).daemon.child.pid
            disk.fail()
            for _ in range(3):
                with pytest.raises(NBDError):
                    await client.write(0, b"w" * 4096)
                host.services.datapaths.refused(socket, WHY)
                await until(lambda: not host.services.datapaths.get(vdi).doubtful, "it stays in doubt")
            disk.heal()
            await client.write(0, b"w" * 4096)
            await client.flush()
            host.services.datapaths.refused(socket, "")
            assert lost == [] and host.services.datapaths.get(vdi).daemon.child.pid == pid
            client.close()
            await host.sr.vdi_detach(vdi)
        finally:
            await host.services.stop()
    assert host.services.alive().nothing


@pytest.mark.parametrize("kind", ["raw", "qcow2"])
@pytest_twisted.ensureDeferred
async def test_a_disk_that_cannot_be_flushed_is_detached_and_used_again(tmp_path: Path, kind: str) -> None:
    """Its domain is gone and waits for nothing."""
    host = await make_host(tmp_path, kind, SOON)
    with FailingDisk(tmp_path / "sr", tmp_path / "behind") as disk:
        try:
            vdi, _, client = await attached(host)
            await fails_to_flush(client, disk)
            client.close()
            await host.sr.vdi_detach(vdi)
            assert host.services.alive().nothing
            attachment = await host.sr.vdi_attach(vdi, Purpose.DOMAIN)
            await host.sr.vdi_activate(vdi)
            client = await connect(reactor, attachment.socket_path, attachment.export)
            await client.write(0, b"w" * 4096)
            await client.flush()
            client.close()
            await host.sr.vdi_detach(vdi)
        finally:
            await host.services.stop()
    assert host.services.alive().nothing


@pytest.mark.parametrize("restarted", [False, True])
@pytest_twisted.ensureDeferred
async def test_an_image_that_is_gone_is_waited_for(tmp_path: Path, restarted: bool) -> None:
    """In growing pauses, and somebody is told at each attempt; also after a restart of the daemon."""
    host = await make_host(tmp_path, "raw", SOON)
    services, told = host.services, []

    def tell(one: str, why: str) -> None:
        told.append((reactor.seconds(), why))

    services.datapaths.reviving.waiting = tell
    try:
        vdi, socket, client = await attached(host)
        await client.write(0, b"w" * 4096)
        await client.flush()
        client.close()
        there = image(host, vdi)
        away = there.rename(tmp_path / "away")
        pid = services.datapaths.get(vdi).daemon.child.pid
        if restarted:
            services.let_go()
            os.kill(pid, signal.SIGKILL)
            services = SMServices(reactor, services.state_dir, SOON)
            services.datapaths.reviving.waiting = tell
            await services.recover()
            host = Host(services, open_sr(services, tmp_path / "sr", "raw", host.sr.uuid), tmp_path)
            await host.sr.attach()
        else:
            os.kill(pid, signal.SIGKILL)
        await until(lambda: len(told) >= 6, "nobody is told")
        assert all("No such file" in why for _, why in told[1:])
        pauses = [after - before for (before, _), (after, _) in zip(told[1:], told[2:], strict=False)]
        assert pauses[-1] > 0.9 and services.alive().nothing
        away.rename(there)
        await until(lambda: told[-1][1] == "", "it does not work again")
        again = await connect(reactor, socket, "disk")
        assert await again.read(0, 4096) == b"w" * 4096
        again.close()
        await host.sr.vdi_detach(vdi)
    finally:
        await services.stop()
    assert services.alive().nothing


@pytest_twisted.ensureDeferred
async def test_an_image_that_is_gone_keeps_nobody_from_letting_go(tmp_path: Path) -> None:
    host, told = await make_host(tmp_path, "raw", SOON), []
    host.services.datapaths.reviving.waiting = lambda vdi, why: told.append(why)
    try:
        vdi, _, client = await attached(host)
        client.close()
        image(host, vdi).rename(tmp_path / "away")
        await host.services.datapaths.get(vdi).daemon.child.kill()
        await until(lambda: len(told) >= 2, "nobody is told")
        await host.sr.vdi_deactivate(vdi)
        await host.sr.vdi_detach(vdi)
        so_far = len(told)
        await task.deferLater(reactor, 2.5)
        assert len(told) <= so_far + 1 and list((host.services.state_dir / "datapaths").glob("*")) == []
    finally:
        await host.services.stop()
    assert host.services.alive().nothing


@pytest.mark.parametrize("restarted", [False, True])
@pytest_twisted.ensureDeferred
async def test_what_was_deactivated_meanwhile_is_not_opened_again(tmp_path: Path, restarted: bool) -> None:
    """Another host may have it by then. It is activated as any other later."""
    host = await make_host(tmp_path, "raw", SOON)
    services = host.services
    try:
        vdi, _, client = await attached(host)
        client.close()
        there = image(host, vdi)
        away = there.rename(tmp_path / "away")
        await services.datapaths.get(vdi).daemon.child.kill()
        await until(lambda: not services.datapaths._locks[vdi].locked, "it is being started")
        await host.sr.vdi_deactivate(vdi)
        if restarted:
            services.let_go()
            services = SMServices(reactor, services.state_dir, SOON)
            await services.recover()
            host = Host(services, open_sr(services, tmp_path / "sr", "raw", host.sr.uuid), tmp_path)
        away.rename(there)
        await until(lambda: services.datapaths.get(vdi) is not None, "it is not started again")
        await services.datapaths.revived(vdi)
        assert services.datapaths.get(vdi).users == {DOMAIN: False}
        if restarted:
            await host.sr.attach()
        await host.sr.vdi_activate(vdi)
        await host.sr.vdi_detach(vdi)
    finally:
        await services.stop()
    assert services.alive().nothing


@pytest_twisted.ensureDeferred
async def test_processes_that_die_again_and_again_are_started_at_a_bounded_pace(tmp_path: Path) -> None:
    host, told = await make_host(tmp_path, "raw", SOON), []
    host.services.datapaths.reviving.waiting = lambda vdi, why: told.append(why)
    try:
        vdi, _, client = await attached(host)
        client.close()
        pids, end = set(), reactor.seconds() + 4
        while reactor.seconds() < end:
            datapath = host.services.datapaths.get(vdi)
            if datapath is not None and DOMAIN in await datapath.daemon.exports():
                pids.add(datapath.daemon.child.pid)
                await datapath.daemon.child.kill()
            await task.deferLater(reactor, 0.02)
        assert 3 <= len(pids) <= 8 and "" not in told and "again and again" in told[-1]
        await until(lambda: told[-1] == "", "it does not work again")
        await host.sr.vdi_detach(vdi)
    finally:
        await host.services.stop()
    assert host.services.alive().nothing


@contextmanager
def file_system_on(disk: FailingDisk, folder: Path) -> Iterator[None]:
    """A kernel's file system at `folder`, with the kernel's cache, on a disk that can fail."""
    device = run("losetup", "--find", "--show", str(disk.folder / "disk"))
    try:
        run("mkfs.ext4", "-q", device)
        folder.mkdir()
        run("mount", device, str(folder))
        try:
            yield
        finally:
            run("umount", str(folder))
    finally:
        run("losetup", "--detach", device)


def run(*argv: str) -> str:
    return subprocess.run(argv, check=True, capture_output=True, text=True, timeout=30).stdout.strip()


@pytest_twisted.ensureDeferred
async def test_what_the_kernel_could_not_write_is_not_shown_to_the_next_domain(tmp_path: Path) -> None:
    """Linux drops a page that it could not write, says so once, and goes on showing it as long as it has it cached."""
    (tmp_path / "disk").mkdir()
    with (tmp_path / "disk" / "disk").open("wb") as file:
        file.truncate(64 * MIB)
    lost = []

    async def lose(socket: str, reason: str) -> None:
        lost.append(reason)

    with FailingDisk(tmp_path / "disk", tmp_path / "behind") as disk, file_system_on(disk, tmp_path / "mnt"):
        host = await make_host(tmp_path / "mnt", "raw", SOON)
        try:
            await host.services.datapaths.when_lost(lose)
            vdi, socket, client = await attached(host)
            await client.write(0, b"o" * 4096)
            await client.flush()
            await client.write(0, b"n" * 4096)
            disk.fail()
            with pytest.raises(NBDError):
                await client.flush()
            disk.heal()
            flush(image(host, vdi))  # with success: nobody else is told
            client.close()
            host.services.datapaths.refused(socket, WHY)
            await until(lambda: bool(lost), "nobody is told")
            await host.sr.vdi_detach(vdi)
            attachment = await host.sr.vdi_attach(vdi, Purpose.DOMAIN)
            await host.sr.vdi_activate(vdi)
            client = await connect(reactor, attachment.socket_path, attachment.export)
            assert await client.read(0, 4096) == b"o" * 4096
            client.close()
            await host.sr.vdi_detach(vdi)
        finally:
            await host.services.stop()
