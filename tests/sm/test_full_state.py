"""Where tgtd's record cannot be written, for want of room, nothing is served that nobody knows, and what is to be
closed is closed."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.task import Clock

from xapi_migrate.errors import SrBackendFailure
from xapi_migrate.sm.iscsi_target import ISCSIService
from xapi_migrate.sm.tgt_ipc import Op
from xapi_migrate.sm.timeouts import SMTimeouts


class Tgtd:
    """In the place of tgtd: takes every request."""

    def __init__(self) -> None:
        self.alive = False
        self.asked: list[Op] = []

    async def start(self, address: str, port: int) -> None:
        self.alive = True

    async def open_portal(self, address: str, port: int) -> None:
        pass

    async def ask(self, mode: object, op: Op, **arguments: Any) -> str:
        self.asked.append(op)
        return ""

    def find(self) -> bool:
        return self.alive

    async def kill(self) -> None:
        self.alive = False


class Disk:
    """`full`: a record can be written as little as to a full disk."""

    def __init__(self, folder: Path) -> None:
        self._draft = folder / "state.json.new"

    def fill(self) -> None:
        self._draft.mkdir(parents=True)

    def make_room(self) -> None:
        shutil.rmtree(self._draft)


@pytest.fixture
def service(tmp_path: Path) -> tuple[ISCSIService, Tgtd, Disk]:
    service = ISCSIService(Clock(), tmp_path / "tgt", SMTimeouts(), port=3260)
    service._tgt = tgtd = Tgtd()  # type: ignore[assignment]
    return service, tgtd, Disk(tmp_path / "tgt")


async def add(service: ISCSIService, migration: str = "m", vdi: str = "v") -> None:
    await service.add_lun(migration, vdi, Path("/image"), "127.0.0.1", scsi_id="x")


@pytest_twisted.ensureDeferred
async def test_what_is_closed_is_closed(service: tuple[ISCSIService, Tgtd, Disk]) -> None:
    served, tgtd, disk = service
    await add(served, "m", "v-1")
    await add(served, "m", "v-2")
    await add(served, "other")
    disk.fill()
    assert await served.remove_lun("m", "v-1")
    assert await served.remove_lun("m", "v-2")
    assert len(served.targets()) == 1 and tgtd.alive
    assert await served.remove_lun("other", "v")
    assert served.targets() == [] and not tgtd.alive


@pytest_twisted.ensureDeferred
async def test_nothing_is_served_that_cannot_be_recorded(service: tuple[ISCSIService, Tgtd, Disk]) -> None:
    served, tgtd, disk = service
    disk.fill()
    with pytest.raises(SrBackendFailure, match="Is a directory"):
        await add(served)
    assert served.targets() == [] and not tgtd.alive
    disk.make_room()
    await add(served)
    disk.fill()
    with pytest.raises(SrBackendFailure, match="Is a directory"):
        await add(served, "other")
    assert len(served.targets()) == 1 and tgtd.alive
    assert await served.remove_lun("m", "v")
    assert not tgtd.alive
