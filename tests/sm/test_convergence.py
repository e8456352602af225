"""Guests that write faster than their disk is copied: they are slowed down until the copy arrives, or the copy ends
with a reason; and afterwards they are as fast as before."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import attrs
import pytest
import pytest_twisted
from twisted.internet import defer, reactor, task
from twisted.protocols import portforward

from tests.sm.two_hosts import MIB, QUICK, Host, begin_copy, compare, image, make_disk, say, two_hosts, until
from xapi_migrate.sm.convergence import SLOWEST, Convergence
from xapi_migrate.sm.interfaces import CopyState, Purpose, TargetUrl
from xapi_migrate.testing.nbd_guest import connect

# -- the rule, against a simulated link ----------------------------------------------------------

PATIENCE = 20.0


@attrs.define
class Link:
    """A disk on its way: `dirty` bytes are to be copied, `hot` is what the guest can have made dirty at most."""

    speed: float
    writes: float
    size: float
    hot: float
    dirty: float = 0.0
    done: float = 0.0
    seconds: float = 0.0
    slowed: list[int] = attrs.Factory(list)

    def run(self, rule: Convergence, most: float, ready: bool = False) -> bool:
        """Whether the copy came to its end within `most` seconds."""
        bulk = 0.0 if ready else self.size
        end, step = self.seconds + most, 0.5
        while self.seconds < end:
            self.seconds += step
            writes = min(self.writes, rule.limit) if rule.limit else self.writes
            self.dirty = min(self.hot, self.dirty + writes * step)
            room = self.speed * step
            from_bulk = min(bulk, room)
            from_dirty = min(self.dirty, room - from_bulk)
            bulk -= from_bulk
            self.dirty -= from_dirty
            self.done += from_bulk + from_dirty
            if not ready and bulk + self.dirty < 1:
                return True
            before = rule.limit
            total = int(self.done + bulk + self.dirty)
            if rule.look(self.seconds, int(self.done), total, ready) != before:
                self.slowed.append(rule.limit)
        return False


@pytest.mark.parametrize("size", [MIB, 1 << 30, 1 << 40])
@pytest.mark.parametrize("share", [0.0, 0.2, 0.5])
def test_a_guest_that_is_slower_than_the_link_is_left_alone(size: int, share: float) -> None:
    link = Link(speed=100 * MIB, writes=share * 100 * MIB, size=size, hot=size)
    assert link.run(Convergence(PATIENCE), 10 + 3 * size / (100 * MIB))
    assert link.slowed == []


@pytest.mark.parametrize("speed", [MIB, 25 * MIB, 1 << 30])
@pytest.mark.parametrize("share", [1.0, 2.0, 50.0])
def test_a_guest_that_is_faster_is_slowed_until_the_copy_arrives(speed: int, share: float) -> None:
    link = Link(speed=speed, writes=share * speed, size=60 * speed, hot=30 * speed)
    rule = Convergence(PATIENCE)
    assert link.run(rule, 600), rule
    assert link.slowed and link.slowed == sorted(link.slowed, reverse=True)
    assert link.slowed[0] <= speed


def test_a_ready_copy_only_has_to_keep_up() -> None:
    link = Link(speed=10 * MIB, writes=5 * MIB, size=1 << 30, hot=1 << 30)
    assert not link.run(Convergence(PATIENCE), 300, ready=True)
    assert link.slowed == []
    link.writes = 30 * MIB
    rule = Convergence(PATIENCE)
    link.run(rule, 600, ready=True)
    assert link.slowed
    assert link.dirty <= 2.5 * link.speed + MIB, "what is left is more than can be sent while the guest stands still"


def test_at_the_lowest_limit_it_is_told_that_nothing_helps() -> None:
    link = Link(speed=SLOWEST, writes=MIB, size=MIB, hot=100 * MIB)
    rule = Convergence(PATIENCE)
    assert not link.run(rule, 600)
    assert rule.hopeless and rule.limit == SLOWEST


def test_a_copy_that_stands_still_says_nothing_about_the_guest() -> None:
    rule = Convergence(PATIENCE)
    for second in range(300):
        assert rule.look(float(second), 0, MIB + second * MIB, False) == 0


# -- a real copy ---------------------------------------------------------------------------------

LINK = 8 * MIB
SLOW_LINK = attrs.evolve(QUICK, falling_behind=2.0, stall=5.0, guard=5.0)


class SlowServer(portforward.ProxyServer):
    """What comes goes on at `rate` bytes per second."""

    rate = LINK

    def dataReceived(self, data: bytes) -> None:
        super().dataReceived(data)
        self.transport.pauseProducing()
        reactor.callLater(len(data) / self.rate, self._go_on)

    def _go_on(self) -> None:
        if self.transport.connected:
            self.transport.resumeProducing()


@asynccontextmanager
async def slow_link(theirs: Host, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    """Whoever copies to `theirs` goes through a relay that is slow."""
    ports = []
    offered = theirs.sr.vdi_get_url

    async def vdi_get_url(*arguments: Any) -> TargetUrl:
        url = await offered(*arguments)
        parts = urlsplit(url.url)
        factory = portforward.ProxyFactory(parts.hostname, parts.port)
        factory.protocol = SlowServer
        port = reactor.listenTCP(0, factory, interface="127.0.0.1")
        ports.append(port)
        return attrs.evolve(url, url=url.url.replace(f":{parts.port}/", f":{port.getHost().port}/"))

    monkeypatch.setattr(theirs.sr, "vdi_get_url", vdi_get_url)
    try:
        yield
    finally:
        for port in ports:
            await port.stopListening()


@attrs.define
class Writer:
    """Writes as fast as it is let, over and over, one MiB after the other."""

    client: Any
    written: int = 0
    running: bool = True
    slowest: float = 0.0
    """Seconds that one MiB took."""
    _work: Any = None

    def start(self) -> None:
        self._work = defer.ensureDeferred(self._write())

    async def _write(self) -> None:
        dice = random.Random(3)
        while self.running:
            for offset in range(0, self.client.size, MIB):
                if self.running:
                    began = reactor.seconds()
                    await self.client.write(offset, dice.randbytes(MIB))
                    self.slowest = max(self.slowest, reactor.seconds() - began)
                    self.written += MIB

    async def stop(self) -> None:
        self.running = False
        await self._work
        await self.client.flush()

    async def rate(self, seconds: float) -> float:
        before = self.written
        await task.deferLater(reactor, seconds)
        return (self.written - before) / seconds


async def writer_on(host: Host, vdi: str) -> Writer:
    attachment = await host.sr.vdi_attach(vdi, Purpose.DOMAIN)
    await host.sr.vdi_activate(vdi)
    writer = Writer(await connect(reactor, attachment.socket_path, attachment.export))
    writer.start()
    return writer


@pytest.mark.system
@pytest_twisted.ensureDeferred
async def test_a_guest_that_writes_faster_than_the_link(
    tmp_path: Path, request: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = 32 * MIB
    async with two_hosts(tmp_path, "qcow2", "raw", SLOW_LINK) as (ours, theirs), slow_link(theirs, monkeypatch):
        vdi = await make_disk(ours, size, filled=size)
        writer = await writer_on(ours, vdi)
        free = await writer.rate(1.0)
        assert free > 2 * LINK, "the machine is too slow for this test"
        began = reactor.seconds()
        fresh, _ = await begin_copy(ours, theirs, vdi, size)
        status = await until(ours, "copy-1", CopyState.READY, CopyState.FAILED, timeout=90)
        assert status.state is CopyState.READY, status
        assert 0 < status.slowed < LINK
        took = reactor.seconds() - began
        await writer.stop()
        await ours.sr.vdi_deactivate(vdi)
        status = await ours.sr.copy_state("copy-1")
        assert status.state is CopyState.FINISHED, status
        await theirs.sr.vdi_close_url(fresh, "migration-1")
        await ours.services.copies.tidied(vdi)
        assert await compare(image(ours, vdi), image(theirs, fresh)) == ""
        writer.client.close()
        say(
            request,
            f"{free / MIB:.0f} MiB/s were written over a link of {LINK / MIB:.0f} MiB/s, at last "
            f"{status.slowed / MIB:.1f}; ready after {took:.1f} s, slowest MiB {writer.slowest:.2f} s",
        )
        await ours.sr.vdi_detach(vdi)


@pytest.mark.system
@pytest_twisted.ensureDeferred
async def test_afterwards_the_guest_is_as_fast_as_before_also_when_the_daemon_restarts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = 64 * MIB
    async with two_hosts(tmp_path, "raw", "raw", SLOW_LINK) as (ours, theirs), slow_link(theirs, monkeypatch):
        vdi = await make_disk(ours, size, filled=size)
        writer = await writer_on(ours, vdi)
        await begin_copy(ours, theirs, vdi, size)
        for _ in range(600):
            if 0 < (await ours.sr.copy_state("copy-1")).slowed < LINK:
                break
            await task.deferLater(reactor, 0.1)
        else:
            raise AssertionError("the guest was never slowed down")
        assert await writer.rate(2.0) < 2 * LINK
        datapaths = ours.services.datapaths
        ours.services.let_go()
        await ours.services.recover()
        assert datapaths.get(vdi) is not None
        assert (await ours.sr.copy_state("copy-1")).slowed == 0
        await ours.sr.copy_cancel("copy-1")
        assert await writer.rate(1.0) > 2 * LINK
        await writer.stop()
        writer.client.close()
        await ours.sr.copy_cancel("copy-1")
        await ours.sr.vdi_detach(vdi)


@pytest.mark.system
@pytest_twisted.ensureDeferred
async def test_where_guests_are_not_to_be_slowed_the_copy_ends_with_a_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size, timeouts = 32 * MIB, attrs.evolve(SLOW_LINK, slow_guests=False)
    async with two_hosts(tmp_path, "raw", "raw", timeouts) as (ours, theirs), slow_link(theirs, monkeypatch):
        vdi = await make_disk(ours, size, filled=size)
        writer = await writer_on(ours, vdi)
        await begin_copy(ours, theirs, vdi, size)
        status = await until(ours, "copy-1", CopyState.READY, CopyState.FAILED, timeout=60)
        assert status.state is CopyState.FAILED
        assert "writes faster than it copies, 2 s long" in status.error
        assert status.slowed == 0
        assert await writer.rate(1.0) > 2 * LINK
        await writer.stop()
        writer.client.close()
        await ours.sr.vdi_detach(vdi)
