"""The gate of a datapath, with a client that stays connected throughout."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor

from tests.sm.two_hosts import MIB, QUICK, SMServices, guest_on, image, make_disk, make_host, say
from xapi_migrate.errors import MigrateError, SrBackendFailure
from xapi_migrate.sm.interfaces import Purpose
from xapi_migrate.testing.nbd_guest import NBDError, connect

pytestmark = pytest.mark.system
SIZE = 64 * MIB


@pytest.mark.parametrize("kind", ["raw", "qcow2"])
@pytest_twisted.ensureDeferred
async def test_rollback_keeps_the_connection(tmp_path: Path, kind: str, request: Any) -> None:
    host = await make_host(tmp_path, kind)
    try:
        vdi = await make_disk(host, SIZE)
        attachment = await host.sr.vdi_attach(vdi, Purpose.DOMAIN)
        client = await connect(reactor, attachment.socket_path, attachment.export)
        assert client.size == SIZE
        times: list[tuple[float, float]] = []
        for number in range(5):
            for refused in (
                client.write(0, b"x" * 512), client.zeroes(0, 4096), client.trim(0, 65536), client.read(0, 4096)
            ):  # fmt: skip
                with pytest.raises(NBDError):
                    await refused
            await client.flush()
            began = reactor.seconds()
            await host.sr.vdi_activate(vdi)
            opened = reactor.seconds()
            await client.write(number * 4096, bytes([number + 1]) * 4096)
            for earlier in range(number + 1):
                assert await client.read(earlier * 4096, 4096) == bytes([earlier + 1]) * 4096
            closing = reactor.seconds()
            await host.sr.vdi_deactivate(vdi)
            times.append((opened - began, reactor.seconds() - closing))
            assert not image_is_open(host.services.datapaths.get(vdi).daemon.child.pid, image(host, vdi))
        assert not client.lost
        opened, closed = (sorted(column)[2] * 1e3 for column in zip(*times, strict=True))
        say(request, f"gate in {opened:.1f} ms, out and image closed {closed:.1f} ms (median of 5)")
        client.close()
    finally:
        await host.services.stop()
    assert host.services.alive().nothing


def image_is_open(pid: int, path: Path) -> bool:
    return any(Path(fd).resolve() == path for fd in Path(f"/proc/{pid}/fd").iterdir())


@pytest_twisted.ensureDeferred
async def test_a_shared_image_is_opened_by_one_host_at_a_time(tmp_path: Path) -> None:
    from tests.sm.two_hosts import open_sr

    ours = await make_host(tmp_path, "qcow2")
    services = SMServices(reactor, tmp_path / "other", QUICK)
    theirs = open_sr(services, tmp_path / "sr", "qcow2", ours.sr.uuid)
    await theirs.attach()
    try:
        vdi = await make_disk(ours, SIZE)
        async with guest_on(ours, vdi) as guest:
            await theirs.vdi_attach(vdi, Purpose.DOMAIN)  # gate shut: does not touch the image
            with pytest.raises(SrBackendFailure, match="lock"):
                await theirs.vdi_activate(vdi)
            await guest.client.write(0, b"still mine" * 51 + b"!!")
            await ours.sr.vdi_deactivate(vdi)
            await theirs.vdi_activate(vdi)
            with pytest.raises(MigrateError, match="lock"):
                await ours.sr.vdi_activate(vdi)
    finally:
        await services.stop()
        await ours.services.stop()


@pytest_twisted.ensureDeferred
async def test_wrong_size_is_noticed_before_the_guest_sees_it(tmp_path: Path) -> None:
    host = await make_host(tmp_path, "raw")
    try:
        vdi = await make_disk(host, SIZE)
        await host.sr.vdi_attach(vdi, Purpose.DOMAIN)
        with image(host, vdi).open("r+b") as file:
            file.truncate(SIZE // 2)
        with pytest.raises(SrBackendFailure, match="holds"):
            await host.sr.vdi_activate(vdi)
        assert not image_is_open(host.services.datapaths.get(vdi).daemon.child.pid, image(host, vdi))
    finally:
        await host.services.stop()


@pytest_twisted.ensureDeferred
async def test_a_deep_state_folder(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 100) / ("e" * 60)
    host = await make_host(deep, "qcow2")
    try:
        vdi = await make_disk(host, SIZE, filled=MIB)
        url = await host.sr.vdi_get_url(vdi, "m", "127.0.0.1")
        assert url.url.startswith("iscsi://127.0.0.1:")
        await host.sr.vdi_close_url(vdi, "m")
    finally:
        await host.services.stop()
    assert host.services.alive().nothing


@pytest.mark.parametrize("noticed", ["at once", "by the next daemon"])
@pytest_twisted.ensureDeferred
async def test_a_dead_datapath_with_tables_in_memory_is_told_of_and_not_replaced_by_itself(
    tmp_path: Path, noticed: str
) -> None:
    host = await make_host(tmp_path, "qcow2")
    services, lost = host.services, []

    async def lose(socket: str, reason: str) -> None:
        lost.append((socket, reason))

    try:
        vdi = await make_disk(host, SIZE)
        attachment = await host.sr.vdi_attach(vdi, Purpose.DOMAIN)
        await host.sr.vdi_activate(vdi)
        pid = services.datapaths.get(vdi).daemon.child.pid
        if noticed == "at once":
            await services.datapaths.when_lost(lose)
            await services.datapaths.get(vdi).daemon.child.kill()
            with pytest.raises(MigrateError):
                await host.sr.vdi_activate(vdi)
            await host.sr.vdi_deactivate(vdi)
        else:
            services.let_go()
            os.kill(pid, signal.SIGKILL)
            services = SMServices(reactor, services.state_dir, QUICK)
            await services.recover()
            assert lost == []
            await services.datapaths.when_lost(lose)
        [(socket, reason)] = lost
        assert socket == attachment.socket_path and f"VDI {vdi}, died" in reason
        assert services.datapaths.get(vdi) is None
        await services.datapaths.detach(vdi, "domain")
        if noticed == "at once":
            await host.sr.vdi_attach(vdi, Purpose.DOMAIN)
            await host.sr.vdi_activate(vdi)
            await host.sr.vdi_detach(vdi)
    finally:
        await services.stop()
    assert services.alive().nothing


@pytest.mark.parametrize(("kind", "active"), [("raw", True), ("raw", False), ("qcow2", False)])
@pytest.mark.parametrize("noticed", ["at once", "by the next daemon"])
@pytest_twisted.ensureDeferred
async def test_a_datapath_that_dies_under_a_domain_is_revived_as_it_was(
    tmp_path: Path, noticed: str, kind: str, active: bool
) -> None:
    """A qcow2 image that was closed has all of its tables."""
    host = await make_host(tmp_path, kind)
    services = host.services
    try:
        vdi = await make_disk(host, SIZE)
        attachment = await host.sr.vdi_attach(vdi, Purpose.DOMAIN)
        await host.sr.vdi_activate(vdi)
        client = await connect(reactor, attachment.socket_path, attachment.export)
        await client.write(4096, b"w" * 4096)
        client.close()
        if not active:
            await host.sr.vdi_deactivate(vdi)
        pid = services.datapaths.get(vdi).daemon.child.pid
        if noticed == "at once":
            await services.datapaths.get(vdi).daemon.child.kill()
            await services.datapaths.revived(vdi)
        else:
            services.let_go()
            os.kill(pid, signal.SIGKILL)
            services = SMServices(reactor, services.state_dir, QUICK)
            await services.recover()
        datapath = services.datapaths.get(vdi)
        assert datapath.users == {"domain": active}
        assert datapath.daemon.child.pid != pid
        assert image_is_open(datapath.daemon.child.pid, image(host, vdi)) is active
        again = await connect(reactor, attachment.socket_path, attachment.export)
        if active:
            assert await again.read(4096, 4096) == b"w" * 4096
        else:
            with pytest.raises(NBDError):
                await again.read(4096, 4096)
        again.close()
        await services.datapaths.detach(vdi, "domain")
    finally:
        await services.stop()
    assert services.alive().nothing
