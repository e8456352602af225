"""The storage contract: the real repository with sm_file, and the fake of the simulations."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import pytest_twisted
from sm_file.driver import FileDriver
from twisted.internet import reactor, task

from xapi_migrate.sm.interfaces import Attachment, ISMDriver, ISRBackend, SRConfig
from xapi_migrate.testing.adapters import for_pytest, run_check
from xapi_migrate.testing.fake_sm import FakeLuns, FakeSR, FakeStorage
from xapi_migrate.testing.folder_backend import FolderDriver
from xapi_migrate.testing.sm_contract import BACKEND_CHECKS, MIB, SR_CHECKS, SRKit
from xapi_migrate.testing.sr_hosts import Scratch, one_sr, two_srs

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


@pytest.mark.parametrize("check", SR_CHECKS, ids=lambda check: check.__name__)
@pytest_twisted.ensureDeferred
async def test_fake(check: Callable[[SRKit], Awaitable[None]], tmp_path: Path) -> None:
    async with fake_kit(tmp_path) as kit:
        await check(kit)


def files(kind: str) -> tuple[ISMDriver, Scratch]:
    def scratch(folder: Path) -> dict[str, str]:
        return {"location": str(folder), "format": kind, "size_limit": str(LIMIT)}

    return FileDriver(), scratch


FOLDER = (FolderDriver(), FolderDriver().scratch)
test_folder_backend = for_pytest(BACKEND_CHECKS, partial(one_sr, *FOLDER))
test_folder = pytest.mark.system(for_pytest(SR_CHECKS, partial(two_srs, FOLDER, FOLDER)))


@pytest.mark.system
@pytest.mark.parametrize("kind", ["raw", "qcow2", "vhd"])
@pytest.mark.parametrize("check", SR_CHECKS, ids=lambda check: check.__name__)
@pytest_twisted.ensureDeferred
async def test_sm_file(check: Callable[[SRKit], Awaitable[None]], kind: str) -> None:
    await run_check(check, partial(two_srs, files(kind), files(kind), resizes=kind != "vhd"))


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
