"""Storage motion at the storage layer: an image takes another's place under a guest that writes all the time."""

from __future__ import annotations

import os
import random
import signal
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import pytest
import pytest_twisted
from twisted.internet import defer, reactor, task
from twisted.internet.error import ConnectionDone, ConnectionLost

from tests.sm.test_restart import SLOW
from tests.sm.two_hosts import MIB, QUICK, Host, compare, image, make_disk, make_host, open_sr
from xapi_migrate.errors import MigrateError, SrBackendFailure
from xapi_migrate.sm.interfaces import MoveState, MoveStatus, Purpose
from xapi_migrate.sm.repository import Repository
from xapi_migrate.sm.services import SMServices
from xapi_migrate.sm.timeouts import SMTimeouts
from xapi_migrate.testing.nbd_guest import NBDClient, NBDError, connect
from xapi_migrate.together import started

pytestmark = pytest.mark.system
SIZE = 64 * MIB
KINDS = [("raw", "qcow2"), ("qcow2", "raw"), ("raw", "raw"), ("qcow2", "qcow2")]


@attrs.define
class TwoSRs:
    """One host with two SRs."""

    host: Host
    other: Repository
    kinds: tuple[str, str]

    async def fresh(self, size: int = SIZE) -> str:
        vdi = str(uuid.uuid4())
        await self.other.vdi_create(vdi, size)
        return vdi

    def other_image(self, vdi: str) -> Path:
        return next(path for path in (self.host.folder / "other").iterdir() if path.stem == vdi)

    async def until(self, vdi: str, to: str, *states: MoveState) -> MoveStatus:
        end = reactor.seconds() + 60
        while True:
            status = await self.host.sr.move_status(vdi, self.other, to)
            if status.state in states:
                return status
            assert reactor.seconds() < end, status
            await task.deferLater(reactor, 0.02)

    async def restart(self, timeouts: SMTimeouts = QUICK) -> None:
        """The daemon goes, another one comes."""
        host, one, two = self.host, self.host.sr.uuid, self.other.uuid
        host.services.let_go()
        host.services = SMServices(reactor, host.folder / "state", timeouts)
        await host.services.recover()
        host.sr = open_sr(host.services, host.folder / "sr", self.kinds[0], one)
        self.other = open_sr(host.services, host.folder / "other", self.kinds[1], two)
        for sr in (host.sr, self.other):
            await sr.attach()


@asynccontextmanager
async def two_srs(
    folder: Path, kinds: tuple[str, str] = ("raw", "qcow2"), timeouts: SMTimeouts = QUICK
) -> AsyncIterator[TwoSRs]:
    """Ends everything, and insists that nothing of it is left."""
    host = await make_host(folder, kinds[0], timeouts)
    (folder / "other").mkdir()
    world = TwoSRs(host, open_sr(host.services, folder / "other", kinds[1]), kinds)
    await world.other.attach()
    try:
        yield world
    finally:
        await host.services.stop()
        assert host.services.alive().nothing, host.services.alive()


class Writer:
    """A guest that knows what it was told was written."""

    def __init__(self, client: NBDClient) -> None:
        self.client = client
        self.pages: dict[int, bytes] = {}
        self.written = 0
        self.under_way = -1
        self._dice = random.Random(5)
        self._stopped = False
        self._running: defer.Deferred[None] | None = None

    def start(self) -> None:
        self._running = started(self._write())

    async def _write(self) -> None:
        while not self._stopped:
            page, data = self._dice.randrange(SIZE // 65536), self._dice.randbytes(65536)
            self.under_way = page
            await self.client.write(page * 65536, data)
            self.pages[page] = data
            self.written += 1
            await task.deferLater(reactor, 0.001)

    async def stop(self) -> None:
        self._stopped = True
        if self._running is not None:
            await self._running

    async def more(self, writes: int = 20) -> None:
        """Fires when it has written so many more."""
        wanted, end = self.written + writes, reactor.seconds() + 60
        while self.written < wanted:
            assert reactor.seconds() < end
            await task.deferLater(reactor, 0.01)

    async def lost(self, client: NBDClient) -> list[int]:
        """The pages that another client does not read as they were written."""
        return [page for page, data in self.pages.items() if await client.read(page * 65536, 65536) != data]


@asynccontextmanager
async def writing(sr: Repository, vdi: str) -> AsyncIterator[Writer]:
    attachment = await sr.vdi_attach(vdi, Purpose.DOMAIN)
    await sr.vdi_activate(vdi)
    client = await connect(reactor, attachment.socket_path, attachment.export)
    writer = Writer(client)
    writer.start()
    try:
        yield writer
    finally:
        await writer.stop()
        client.close()


async def kept(writer: Writer, sr: Repository, vdi: str) -> bool:
    """Whether a domain that has this VDI finds all that was written."""
    attachment = await sr.vdi_attach(vdi, Purpose.DOMAIN)
    await sr.vdi_activate(vdi)
    client = await connect(reactor, attachment.socket_path, attachment.export)
    try:
        return await writer.lost(client) == []
    finally:
        client.close()
        await sr.vdi_detach(vdi)


@pytest.mark.parametrize("kinds", KINDS)
@pytest_twisted.ensureDeferred
async def test_the_guest_notices_nothing(tmp_path: Path, kinds: tuple[str, str]) -> None:
    async with two_srs(tmp_path, kinds) as world:
        sr, vdi, to = world.host.sr, await make_disk(world.host, SIZE, filled=16 * MIB), await world.fresh()
        async with writing(sr, vdi) as guest:
            attachment = await sr.vdi_attach(vdi, Purpose.DOMAIN)
            await guest.more()
            await sr.move_begin(vdi, world.other, to)
            await world.until(vdi, to, MoveState.READY)
            await guest.more()
            for _ in range(2):
                await sr.move_pivot(vdi, world.other, to)
            assert world.host.services.alive().datapaths == (to,)
            await guest.more()
            await sr.vdi_destroy(vdi)
            assert await sr.scan() == []
            # a domain that connects anew finds it in the same place
            assert await world.other.vdi_attach(to, Purpose.DOMAIN) == attachment
            await guest.stop()
        await world.other.vdi_detach(to)
        assert world.host.services.alive().nothing
        assert await kept(guest, world.other, to)


@pytest_twisted.ensureDeferred
async def test_there_and_back_again_and_away(tmp_path: Path) -> None:
    async with two_srs(tmp_path) as world:
        sr, vdi = world.host.sr, await make_disk(world.host, SIZE)
        async with writing(sr, vdi) as guest:
            here, there, at = sr, world.other, vdi
            for _ in range(3):
                to = str(uuid.uuid4())
                await there.vdi_create(to, SIZE)
                await here.move_begin(at, there, to)
                while (await here.move_status(at, there, to)).state is not MoveState.READY:
                    await guest.more(1)
                await here.move_pivot(at, there, to)
                await here.vdi_destroy(at)
                here, there, at = there, here, to
            await guest.more()
            await guest.stop()
        await here.vdi_detach(at)
        assert await kept(guest, here, at)


@pytest_twisted.ensureDeferred
async def test_a_disk_that_nobody_uses(tmp_path: Path) -> None:
    async with two_srs(tmp_path) as world:
        sr, vdi, to = world.host.sr, await make_disk(world.host, SIZE, filled=8 * MIB), await world.fresh()
        await sr.move_begin(vdi, world.other, to)
        await world.until(vdi, to, MoveState.READY)
        await sr.move_pivot(vdi, world.other, to)
        assert world.host.services.alive().nothing
        assert await compare(image(world.host, vdi), world.other_image(to)) == ""
        assert world.other_image(to).stat().st_blocks * 512 < 20 * MIB  # a hole stays a hole


@pytest_twisted.ensureDeferred
async def test_cancelled_when_nobody_uses_it(tmp_path: Path) -> None:
    async with two_srs(tmp_path) as world:
        sr, vdi, to = world.host.sr, await make_disk(world.host, SIZE, filled=8 * MIB), await world.fresh()
        await sr.move_begin(vdi, world.other, to)
        await world.until(vdi, to, MoveState.READY)
        for _ in range(2):
            await sr.move_cancel(vdi, world.other, to)
        assert world.host.services.alive().nothing
        await world.other.vdi_destroy(to)


@pytest.mark.parametrize("ready", [True, False])
@pytest_twisted.ensureDeferred
async def test_cancelled_it_is_as_before(tmp_path: Path, ready: bool) -> None:
    async with two_srs(tmp_path, timeouts=QUICK if ready else SLOW) as world:
        sr, vdi, to = world.host.sr, await make_disk(world.host, SIZE, filled=32 * MIB), await world.fresh()
        async with writing(sr, vdi) as guest:
            await sr.move_begin(vdi, world.other, to)
            if ready:
                await world.until(vdi, to, MoveState.READY)
            for _ in range(2):
                await sr.move_cancel(vdi, world.other, to)
            await world.other.vdi_destroy(to)
            await guest.more()
            with pytest.raises(MigrateError):
                await sr.move_begin(vdi, world.other, to)  # there is no such VDI any more
            await guest.more()
            to = await world.fresh()  # and it can be tried again
            await sr.move_begin(vdi, world.other, to)
            await world.until(vdi, to, MoveState.READY)
            await sr.move_pivot(vdi, world.other, to)
            await guest.more()
            await guest.stop()
        await world.other.vdi_detach(to)
        assert await kept(guest, world.other, to)


@pytest_twisted.ensureDeferred
async def test_sizes_that_differ_are_refused(tmp_path: Path) -> None:
    async with two_srs(tmp_path) as world:
        sr, vdi, to = world.host.sr, await make_disk(world.host, SIZE), await world.fresh(SIZE * 2)
        async with writing(sr, vdi) as guest:
            with pytest.raises(SrBackendFailure, match="were expected"):
                await sr.move_begin(vdi, world.other, to)
            await guest.more()
            await guest.stop()
        await sr.vdi_detach(vdi)
        assert await kept(guest, sr, vdi)


@pytest.mark.parametrize("moment", ["copying", "ready", "moved"])
@pytest_twisted.ensureDeferred
async def test_the_daemon_restarts(tmp_path: Path, moment: str) -> None:
    async with two_srs(tmp_path, timeouts=SLOW if moment == "copying" else QUICK) as world:
        vdi, to = await make_disk(world.host, SIZE, filled=32 * MIB), await world.fresh()
        async with writing(world.host.sr, vdi) as guest:
            await world.host.sr.move_begin(vdi, world.other, to)
            if moment != "copying":
                await world.until(vdi, to, MoveState.READY)
            if moment == "moved":  # the process has done it, and the daemon did not live to note it
                datapath = world.host.services.datapaths.get(vdi)
                assert datapath is not None
                await datapath.daemon.execute("job-complete", {"id": "move"})
                await world.until(vdi, to, MoveState.MOVED)
                await guest.more()
            await world.restart(SLOW if moment == "copying" else QUICK)
            await guest.more()
            if moment == "copying":
                await world.host.sr.move_cancel(vdi, world.other, to)
            else:
                await world.host.sr.move_pivot(vdi, world.other, to)
            await guest.more()
            await guest.stop()
        sr, at = (world.host.sr, vdi) if moment == "copying" else (world.other, to)
        await sr.vdi_detach(at)
        assert world.host.services.alive().nothing
        assert await kept(guest, sr, at)


@pytest_twisted.ensureDeferred
async def test_the_daemon_ends_before_it_has_tidied_up(tmp_path: Path) -> None:
    """The image that nobody uses is closed by the next one, and the disk can move again."""
    async with two_srs(tmp_path) as world:
        vdi, to, back = await make_disk(world.host, SIZE), await world.fresh(), str(uuid.uuid4())
        async with writing(world.host.sr, vdi) as guest:
            await world.host.sr.move_begin(vdi, world.other, to)
            await world.until(vdi, to, MoveState.READY)
            datapath = world.host.services.datapaths.get(vdi)
            assert datapath is not None
            await (await world.host.sr._move(datapath, world.other, to)).pivot()
            await world.restart()
            await world.host.sr.move_pivot(vdi, world.other, to)
            await world.host.sr.vdi_destroy(vdi)
            await guest.more()
            await world.host.sr.vdi_create(back, SIZE)
            await world.other.move_begin(to, world.host.sr, back)
            while (await world.other.move_status(to, world.host.sr, back)).state is not MoveState.READY:
                await guest.more(1)
            await world.other.move_pivot(to, world.host.sr, back)
            await guest.more()
            await guest.stop()
        await world.host.sr.vdi_detach(back)
        assert world.host.services.alive().nothing
        assert await kept(guest, world.host.sr, back)


@pytest.mark.parametrize("kinds", KINDS)
@pytest_twisted.ensureDeferred
async def test_the_process_dies_when_all_is_ready(tmp_path: Path, kinds: tuple[str, str]) -> None:
    """What was written before they were settled is in both images then, so either may go on; in raw ones also what was
    written later."""
    async with two_srs(tmp_path, kinds) as world:
        sr, vdi, to = world.host.sr, await make_disk(world.host, SIZE, filled=8 * MIB), await world.fresh()
        attachment = await sr.vdi_attach(vdi, Purpose.DOMAIN)
        await sr.vdi_activate(vdi)
        guest = Writer(await connect(reactor, attachment.socket_path, attachment.export))
        guest.start()
        await sr.move_begin(vdi, world.other, to)
        await world.until(vdi, to, MoveState.READY)
        await guest.more(200)
        if "qcow2" in kinds:
            await guest.stop()
            guest.under_way = -1
            await guest.client.flush()
        await sr.move_settle(vdi, world.other, to)
        datapath = world.host.services.datapaths.get(vdi)
        assert datapath is not None
        os.kill(datapath.daemon.child.pid, signal.SIGKILL)
        if "qcow2" not in kinds:
            assert guest._running is not None
            with pytest.raises((ConnectionError, NBDError, ConnectionDone, ConnectionLost)):
                await guest._running
        with pytest.raises(MigrateError):
            await sr.move_status(vdi, world.other, to)
        await sr.move_pivot(vdi, world.other, to)
        guest.pages = {page: data for page, data in guest.pages.items() if page != guest.under_way}
        assert await kept(guest, world.other, to)
        assert await kept(guest, sr, vdi)
