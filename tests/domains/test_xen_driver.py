"""The Xen driver under the domain contract, on a stand-in for Xen and for the kernel's NBD. On the real ones it is in
tests/xen."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from pytest_twisted import ensureDeferred
from twisted.internet import defer

from tests.domains.hosts import sleep
from tests.xen.bench import Bridge, XenBench
from tests.xen.fake_xen import FakeXen
from xapi_migrate.domains import xen, xen_disks
from xapi_migrate.domains.interfaces import DomainDisk, DomainSpec, DomainState
from xapi_migrate.errors import DomainError
from xapi_migrate.testing.domain_contract import CHECKS, DomainBench

pytestmark = pytest.mark.system
ROOT = Path(__file__).resolve().parents[2]


class NoLinks:
    """In the place of LinkDeaths: no connection ever breaks."""

    def __init__(self, *_: object) -> None:
        pass

    def start(self) -> None:
        pass

    def close(self) -> None:
        pass


class Bench(XenBench):
    """See DomainBench."""

    def __init__(self, root: Path, here: Bridge, far: Bridge, fake: FakeXen) -> None:
        super().__init__(root, here, far)
        self.fake = fake

    async def spec(self) -> DomainSpec:
        disks = (DomainDisk("0", str(self.root / "disk.sock"), "disk"),)
        return self._named(DomainSpec("", str(uuid4()), "ticker", 96 << 20, 1, disks), "sender")

    def connected(self) -> tuple[int, int]:
        return self.fake.on(self.here.name), self.fake.on(self.far.name)

    async def sleep(self, seconds: float) -> None:
        await sleep(seconds)

    async def crash(self, domain_id: str) -> None:
        self.fake.crash(domain_id)


@pytest.fixture
def devices(monkeypatch: pytest.MonkeyPatch) -> dict[str, DomainDisk]:
    """Those of all domains, by what sysfs would call them."""
    made: dict[str, DomainDisk] = {}

    def attach(domain_id: str, disk: DomainDisk) -> int:
        if disk.export == "missing":
            raise OSError("no export missing")
        made[xen_disks.identifier(domain_id, disk)] = disk
        return len(made)

    monkeypatch.setattr(xen_disks, "attach", attach)
    monkeypatch.setattr(xen_disks, "detach", lambda d, disk: made.pop(xen_disks.identifier(d, disk), None))
    monkeypatch.setattr(xen_disks, "mend", lambda domain_id, disk: None)
    monkeypatch.setattr(xen_disks, "settle", lambda domain_id, disk, limit: None)
    monkeypatch.setattr(xen, "LinkDeaths", NoLinks)
    return made


@pytest.fixture
def fake(short_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeXen]:
    place = short_tmp / "xen"
    place.mkdir()
    with FakeXen(place) as fake:
        monkeypatch.setenv("FAKE_XEN", str(fake.address))
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT / "tests/xen/stand_in"), str(ROOT)]))
        yield fake
    assert fake.guests == {}


@pytest.fixture
def bridges() -> Iterator[tuple[Bridge, Bridge]]:
    with Bridge() as here, Bridge() as far:
        yield here, far


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
@ensureDeferred
async def test_contract(
    check: Callable[[DomainBench], Awaitable[None]],
    short_tmp: Path,
    fake: FakeXen,
    devices: dict[str, DomainDisk],
    bridges: tuple[Bridge, Bridge],
) -> None:
    async with Bench(short_tmp, *bridges, fake) as bench:
        await check(bench)
    assert devices == {}, "a block device is left"


@ensureDeferred
async def test_a_reset_is_nobodys_business(
    short_tmp: Path, fake: FakeXen, devices: dict[str, DomainDisk], bridges: tuple[Bridge, Bridge]
) -> None:
    async with Bench(short_tmp, *bridges, fake) as bench:
        spec = await bench.running()
        told: list[object] = []
        bench.sender.watch(lambda *change: told.append(change))
        fake.reset(spec.domain_id)
        await bench.until(lambda: bench.printed(spec).count(1) == 2, "that it begins to count again")
        assert await bench.sender.state(spec.domain_id) is DomainState.RUNNING
        assert told == []


@ensureDeferred
async def test_a_disk_that_does_not_settle(
    short_tmp: Path, fake: FakeXen, devices: dict[str, DomainDisk], bridges: tuple[Bridge, Bridge],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Neither is it paused nor suspended then; it runs on."""

    def stuck(domain_id: str, disk: DomainDisk, limit: float) -> None:
        raise OSError(5, "requests of its disk 0 do not end")

    async with Bench(short_tmp, *bridges, fake) as bench:
        spec = await bench.running()
        monkeypatch.setattr(xen_disks, "settle", stuck)
        with pytest.raises(DomainError, match="do not end"):
            await bench.sender.pause(spec.domain_id)
        assert await bench.sender.state(spec.domain_id) is DomainState.RUNNING
        with tempfile.TemporaryFile() as file:
            suspension = await bench.sender.suspend(spec.domain_id, file.fileno())
        for wait in (suspension.suspended, suspension.finished):
            with pytest.raises(DomainError, match="do not end"):
                await wait()
        await bench.sender.resume(spec.domain_id)
        stood = len(bench.printed(spec))
        await bench.until(lambda: len(bench.printed(spec)) > stood, "that it runs on")


@ensureDeferred
async def test_it_runs_again_when_a_suspend_of_an_earlier_daemon_is_over(
    short_tmp: Path, fake: FakeXen, devices: dict[str, DomainDisk], bridges: tuple[Bridge, Bridge]
) -> None:
    """That one may stop the guest yet: whoever looked before would leave it so."""
    async with Bench(short_tmp, *bridges, fake) as bench:
        spec = await bench.running()
        with (short_tmp / "sender" / "domains" / spec.domain_id / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            resumed = defer.Deferred.fromCoroutine(bench.sender.resume(spec.domain_id))
            await bench.sleep(0.5)
            assert not resumed.called
            fake.stop(spec.domain_id)
        await resumed
        assert await bench.sender.state(spec.domain_id) is DomainState.RUNNING


@pytest.mark.parametrize("reboot", [True, False])
@ensureDeferred
async def test_a_domain_that_is_gone_at_the_daemons_start(
    short_tmp: Path, fake: FakeXen, devices: dict[str, DomainDisk], bridges: tuple[Bridge, Bridge], reboot: bool
) -> None:
    """One that ended with its host has not crashed by itself."""
    async with Bench(short_tmp, *bridges, fake) as bench:
        spec = await bench.running()
        await bench.sender.close()
        fake.crash(spec.domain_id)
        if reboot:
            (short_tmp / "sender" / "domains" / spec.domain_id / "boot").write_text("another")
        bench.sender = bench._driver("sender")
        await bench.sender.open()
        assert await bench.sender.state(spec.domain_id) is DomainState.CRASHED
        assert bool(bench.sender.why(spec.domain_id)) is not reboot


@ensureDeferred
async def test_the_watcher_is_killed(
    short_tmp: Path, fake: FakeXen, devices: dict[str, DomainDisk], bridges: tuple[Bridge, Bridge]
) -> None:
    """Another one comes: what happens afterwards is told."""
    async with Bench(short_tmp, *bridges, fake) as bench:
        spec = await bench.running()
        told: list[tuple[str, DomainState]] = []
        bench.sender.watch(lambda *change: told.append(change))
        process = bench.sender._xen._process
        assert process is not None
        process.kill()
        await process.ended.wait()
        fake.crash(spec.domain_id)
        await bench.until(lambda: bool(told), "that it is told of")
        assert told == [(spec.domain_id, DomainState.CRASHED)]
