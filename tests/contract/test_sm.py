"""The storage contract: the real repository with sm_file, and the fake of the simulations."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import pytest_twisted
from sm_file.driver import FileDriver
from twisted.internet import reactor, task

from tests.sm.nbd_client import NBDError, connect
from tests.sm.two_hosts import QUICK, open_sr
from xapi_migrate.sm.interfaces import Attachment, ISRBackend, SRConfig
from xapi_migrate.sm.services import SMServices
from xapi_migrate.testing.fake_sm import FakeLuns, FakeSR, FakeStorage
from xapi_migrate.testing.sm_contract import BACKEND_CHECKS, MIB, SR_CHECKS, SRKit

LIMIT = 128 * MIB


@asynccontextmanager
async def fake_kit(folder: Path) -> AsyncIterator[SRKit]:
    luns = FakeLuns()
    ours = FakeSR(reactor, luns, FakeStorage(size=LIMIT), tick=0.001)
    theirs = FakeSR(reactor, luns, FakeStorage(size=LIMIT), tick=0.001)

    def side(attachment: Attachment) -> FakeSR:
        return ours if ours.uuid in attachment.socket_path else theirs

    async def write(attachment: Attachment, offset: int, data: bytes) -> None:
        side(attachment).guest_write(attachment, offset, data)

    async def read(attachment: Attachment, offset: int, length: int) -> bytes:
        return side(attachment).guest_read(attachment, offset, length)

    async def wait(seconds: float) -> None:
        await task.deferLater(reactor, seconds)

    await ours.attach()
    await theirs.attach()
    yield SRKit(ours, theirs, LIMIT, write, read, wait)
    assert [left for left in ours.left_behind + theirs.left_behind if "copy" in left] == []


@asynccontextmanager
async def real_kit(folder: Path, kind: str) -> AsyncIterator[SRKit]:
    services = [SMServices(reactor, folder / host, QUICK) for host in "TR"]
    srs = []
    for host, name in zip(services, "TR", strict=True):
        (folder / f"sr-{name}").mkdir()
        srs.append(open_sr(host, folder / f"sr-{name}", kind, limit=LIMIT))
        await srs[-1].attach()
    clients: dict[Attachment, object] = {}

    async def client(attachment: Attachment):  # type: ignore[no-untyped-def]
        known = clients.get(attachment)
        if known is None or known.lost:  # type: ignore[attr-defined]
            known = clients[attachment] = await connect(reactor, attachment.socket_path, attachment.export)
        return known

    async def write(attachment: Attachment, offset: int, data: bytes) -> None:
        guest = await client(attachment)
        try:
            await guest.write(offset, data)
        except NBDError as failure:
            raise OSError(failure.number, str(failure)) from failure

    async def read(attachment: Attachment, offset: int, length: int) -> bytes:
        answer: bytes = await (await client(attachment)).read(offset, length)
        return answer

    async def wait(seconds: float) -> None:
        await task.deferLater(reactor, seconds)

    try:
        yield SRKit(srs[0], srs[1], LIMIT, write, read, wait, kind != "vhd")
    finally:
        for one in clients.values():
            one.close()  # type: ignore[attr-defined]
        for host in services:
            await host.stop()
            assert host.alive().nothing


@pytest.mark.parametrize("check", SR_CHECKS, ids=lambda check: check.__name__)
@pytest_twisted.ensureDeferred
async def test_fake(check: Callable[[SRKit], Awaitable[None]], tmp_path: Path) -> None:
    async with fake_kit(tmp_path) as kit:
        await check(kit)


@pytest.mark.system
@pytest.mark.parametrize("kind", ["raw", "qcow2", "vhd"])
@pytest.mark.parametrize("check", SR_CHECKS, ids=lambda check: check.__name__)
@pytest_twisted.ensureDeferred
async def test_sm_file(check: Callable[[SRKit], Awaitable[None]], kind: str, tmp_path: Path) -> None:
    async with real_kit(tmp_path, kind) as kit:
        await check(kit)


@pytest.mark.parametrize("kind", ["raw", "qcow2", "vhd"])
@pytest.mark.parametrize("limit", [0, LIMIT])
@pytest.mark.parametrize("check", BACKEND_CHECKS, ids=lambda check: check.__name__)
@pytest_twisted.ensureDeferred
async def test_sm_file_backend(
    check: Callable[[Callable[[], ISRBackend]], Awaitable[None]], kind: str, limit: int, tmp_path: Path
) -> None:
    config = {"location": str(tmp_path), "format": kind, **({"size_limit": str(limit)} if limit else {})}
    record = SRConfig(str(uuid.uuid4()), "file", config)
    await check(lambda: FileDriver().open_sr(record))
