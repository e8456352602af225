"""Every domain driver that is here keeps the contract."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path
from uuid import uuid4

import attrs
import pytest
from pytest_twisted import ensureDeferred
from twisted.internet import defer, reactor, task
from twisted.internet.task import Clock

from tests.domains.bridges import Bridge
from tests.domains.hosts import Hosts, sleep
from xapi_migrate.domains.interfaces import DomainDisk, DomainNic, DomainSpec, DomainState
from xapi_migrate.processes import child
from xapi_migrate.testing.domain_contract import CHECKS
from xapi_migrate.testing.fake_domains import FakeDomains
from xapi_migrate.testing.fake_hypervisor import FakeHypervisor
from xapi_migrate.testing.pipe_domains import PipeDomains


def each_check():
    return pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))


MAC = "52:54:00:00:0a:01"


class QEMUBench:
    def __init__(self, hosts: Hosts, here: Bridge, far: Bridge) -> None:
        self.hosts = hosts
        self.receiver = hosts.receiver
        self.here, self.far = here, far

    @property
    def sender(self):
        return self.hosts.sender

    async def spec(self):
        return self.hosts.spec(await self.hosts.disk())

    def there(self, spec):
        nics = tuple(_on(nic, self.here.name, self.far.name) for nic in spec.nics)
        return attrs.evolve(self.hosts.there(spec), nics=nics)

    def on_a_bridge(self, spec):
        return attrs.evolve(spec, nics=(*spec.nics, DomainNic("0", MAC, self.here.name)))

    def connected(self):
        return len(self.here.ports()), len(self.far.ports())

    def announced(self):
        return self.here.announced(), self.far.announced()

    def impossible(self, spec):
        return attrs.evolve(spec, disks=(attrs.evolve(spec.disks[0], export="missing"),))

    def printed(self, *specs):
        return self.hosts.console(*specs).counters

    def wire(self):
        near, far = socket.socketpair()
        return near.detach(), far.detach()

    async def sleep(self, seconds):
        await sleep(seconds)

    async def restart(self):
        await self.hosts.restart_sender()

    async def crash(self, domain_id):
        process = child.find(reactor, self.hosts.root / "sender" / "domains" / domain_id)
        process.abandon()
        os.kill(process.pid, signal.SIGKILL)


def _on(nic, here, far):
    """The interface on the receiver's bridge, if it is on the sender's."""
    return attrs.evolve(nic, bridge=far if nic.bridge == here else nic.bridge)


class FakeBench:
    """Fakes, by the clock that is given."""

    def __init__(self, clock, driver, pipe) -> None:
        self.clock = clock
        self.driver = driver
        self.pipe = pipe
        self.here, self.far = FakeHypervisor(clock, "sender"), FakeHypervisor(clock, "receiver")
        self.here.bridges.add("here")
        self.far.bridges.add("far")
        self.sender, self.receiver = driver(self.here), driver(self.far)

    async def __aenter__(self):
        await self.sender.open()
        await self.receiver.open()
        return self

    async def __aexit__(self, *_):
        for side in (self.sender, self.receiver):
            for domain_id in await side.domains():
                await side.destroy(domain_id)
            await side.close()

    async def spec(self):
        disks = (DomainDisk("0", "/none", "disk"),)
        return DomainSpec(str(uuid4()), str(uuid4()), "fake", 64 << 10, 1, disks)

    def there(self, spec):
        nics = tuple(_on(nic, "here", "far") for nic in spec.nics)
        return attrs.evolve(spec, domain_id=str(uuid4()), nics=nics)

    def on_a_bridge(self, spec):
        return attrs.evolve(spec, nics=(*spec.nics, DomainNic("0", MAC, "here")))

    def connected(self):
        return self.here.connected(), self.far.connected()

    def announced(self):
        return self.here.announced, self.far.announced

    def impossible(self, spec):
        return attrs.evolve(spec, memory=0)

    def printed(self, *specs):
        consoles = {**self.here.consoles, **self.far.consoles}
        return [number for spec in specs for number in consoles.get(spec.domain_id, [])]

    def wire(self):
        if self.pipe:
            read, write = os.pipe()
            return write, read
        near, far = socket.socketpair()
        return near.detach(), far.detach()

    async def sleep(self, seconds):
        await task.deferLater(self.clock, seconds)

    async def restart(self):
        await self.sender.close()
        self.sender = self.driver(self.here)
        await self.sender.open()

    async def crash(self, domain_id):
        self.here.crash(domain_id)


@pytest.mark.system
@each_check()
@ensureDeferred
async def test_qemu(short_tmp: Path, check):
    with Bridge() as here, Bridge() as far:
        async with Hosts(short_tmp) as hosts:
            await check(QEMUBench(hosts, here, far))


@pytest.mark.system
@each_check()
@ensureDeferred
async def test_pipe_domains(check):
    async with FakeBench(reactor, PipeDomains, pipe=True) as bench:
        await check(bench)


@pytest.mark.parametrize("pipe", [False, True], ids=["socket", "pipe"])
@each_check()
def test_fake_domains(check, pipe):
    clock = Clock()

    async def run():
        async with FakeBench(clock, FakeDomains, pipe) as bench:
            await check(bench)

    done = defer.Deferred.fromCoroutine(run())
    results = []
    done.addBoth(results.append)
    for _ in range(60_000):
        if results:
            break
        clock.advance(0.001)
    assert results == [None], results
    assert clock.getDelayedCalls() == []


def test_fake_guests_stop_when_a_disk_refuses_a_write():
    clock = Clock()
    written, gate = [], [True]

    def write(spec, disk, counter):
        if not gate[0]:
            raise OSError(5, "the gate is shut")
        written.append(counter)

    hypervisor = FakeHypervisor(clock, write=write)
    driver = FakeDomains(hypervisor)
    told = []
    driver.watch(lambda *change: told.append(change))
    spec = DomainSpec("d", "v", "fake", 64 << 10, 1, (DomainDisk("0", "/none", "disk"),))
    for doing in (driver.open(), driver.start(spec)):
        defer.Deferred.fromCoroutine(doing)
    clock.pump([0.01] * 5)
    gate[0] = False
    clock.pump([0.01] * 5)
    assert told == [("d", DomainState.PAUSED)]
    gate[0] = True
    defer.Deferred.fromCoroutine(driver.resume("d"))
    clock.pump([0.01] * 5)
    assert written == hypervisor.guests["d"].printed == list(range(1, 12))
