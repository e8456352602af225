"""Migrations over real loopback HTTP, between hypervisors of both kinds: one that is handed sockets, and one whose
child process writes a one-way stream into a pipe."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import defer

from tests.migration.over_http import Driver, OverHttp
from xapi_migrate.domains.interfaces import DomainState, ISuspension
from xapi_migrate.testing.fake_domains import FakeDomains
from xapi_migrate.testing.fake_hypervisor import FakeGuest
from xapi_migrate.testing.pipe_domains import PipeDomains
from xapi_migrate.testing.two_hosts import SECTOR, SPAN, SimHost

pytestmark = pytest.mark.system

MARKER = b"at the end of the guest's memory"
LARGE = 16 << 20
"""More memory than all buffers between two hypervisors hold."""

Open = Callable[[Driver, Driver], Awaitable[OverHttp]]


class PipeLikeFakes(FakeDomains):
    """Reads the streams of FakeDomains, but takes no sockets."""

    takes_socket = False


@pytest_twisted.async_yield_fixture
async def hosts(tmp_path: Path) -> AsyncIterator[Open]:
    opened: list[OverHttp] = []

    async def open_(source: Driver, destination: Driver) -> OverHttp:
        world = OverHttp(tmp_path, source, destination)
        opened.append(world)
        await world.open()
        return world

    yield open_
    for world in opened:
        await world.close()


def guest_of(host: SimHost) -> FakeGuest:
    [guest] = host.hypervisor.guests.values()
    return guest


async def ticking(world: OverHttp, memory: int = 1 << 16) -> str:
    """A VM at the source that has counted for a while, its memory marked at the end; its ref."""
    vm = world.source.new_vm()
    guest = guest_of(world.source)
    guest.memory = bytearray(memory - len(MARKER)) + MARKER
    await world.until(lambda: guest.counter > 10, "the guest does not count")
    return vm


async def moved(world: OverHttp) -> None:
    """The guest runs at the destination alone, and goes on where it stopped, with its memory and its disks."""
    assert world.most_running == 1
    assert world.source.left_behind() == []
    guest = guest_of(world.destination)
    assert guest.state is DomainState.RUNNING
    assert guest.memory.endswith(MARKER)
    first = guest.printed[0] if guest.printed else guest.counter
    await world.until(lambda: guest.counter > first + 10, "it does not count at the destination")
    [before] = world.source.hypervisor.consoles.values()
    assert guest.printed[0] == before[-1] + 1
    assert before + guest.printed == list(range(1, guest.counter + 1))
    last = guest.counter
    for disk in world.destination.srs[world.destination.sr].storage.disks.values():
        for number in range(max(1, last - SPAN + 2), last + 1):
            assert disk[number % SPAN * SECTOR :][:SECTOR] == number.to_bytes(SECTOR, "big")
    await ended(world)


async def stayed(world: OverHttp) -> None:
    """The guest runs on at the source alone, nothing missed, and the destination is empty."""
    await ended(world)
    assert world.most_running == 1
    assert world.destination.left_behind() == []
    guest = guest_of(world.source)
    assert guest.state is DomainState.RUNNING
    first = guest.counter
    await world.until(lambda: guest.counter > first + 10, "it does not count any more")
    assert guest.printed == list(range(1, guest.counter + 1))
    assert world.source.srs[world.source.sr].left_behind == [
        f"attachment {vdi} domain" for vdi in world.source.srs[world.source.sr].storage.disks
    ]
    assert world.source.toolstack.busy == {}


async def ended(world: OverHttp) -> None:
    """Both sides have forgotten the migration, and no child of a hypervisor is left."""
    await world.until(lambda: not world.source.journals.all, "the sender has not ended")
    await world.until(lambda: not world.destination.journals.all, "the receiver has not been told")
    await world.until(lambda: not world.children(), "a child process lives on")


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest_twisted.ensureDeferred
async def test_a_one_way_stream_is_carried_as_a_body(hosts: Open, scheme: str) -> None:
    world = await hosts(PipeDomains, PipeDomains)
    vm = await ticking(world, 1 << 20)
    task = await world.migrate(vm, scheme)
    assert (task.status, task.value) == ("success", vm)
    [put] = world.watch.puts
    assert (put.upgrade, put.chunked, put.interim) == (False, True, [b"100"])
    assert put.carried > 2 << 20  # the memory, and what changed of it
    await moved(world)


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest_twisted.ensureDeferred
async def test_a_hypervisor_takes_the_socket_where_it_can(hosts: Open, scheme: str) -> None:
    world = await hosts(FakeDomains, FakeDomains)
    vm = await ticking(world)
    task = await world.migrate(vm, scheme)
    assert (task.status, task.value) == ("success", vm)
    [put] = world.watch.puts
    if scheme == "http":
        assert (put.upgrade, put.chunked, put.interim, put.carried) == (True, False, [b"101"], 0)
    else:
        assert (put.upgrade, put.chunked, put.interim) == (False, True, [b"100"])
        assert put.carried > 1 << 16
    await moved(world)


@pytest_twisted.ensureDeferred
async def test_a_receiver_without_a_hypervisor_that_takes_sockets_asks_for_the_body(hosts: Open) -> None:
    world = await hosts(FakeDomains, PipeLikeFakes)
    vm = await ticking(world)
    task = await world.migrate(vm, "http")
    assert (task.status, task.value) == ("success", vm)
    assert [(put.upgrade, put.chunked, put.interim) for put in world.watch.puts] == [
        (True, False, []),
        (False, True, [b"100"]),
    ]
    await moved(world)


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("drivers", [(FakeDomains, PipeDomains), (PipeDomains, FakeDomains)])
@pytest_twisted.ensureDeferred
async def test_hypervisors_of_two_kinds_are_refused_before_a_byte_moves(
    hosts: Open, drivers: tuple[Driver, Driver], scheme: str
) -> None:
    world = await hosts(*drivers)
    vm = await ticking(world)
    task = await world.migrate(vm, scheme)
    assert task.status == "failure"
    assert task.value.failure()[0] == "VM_INCOMPATIBLE_WITH_THIS_HOST"  # type: ignore[attr-defined]
    await stayed(world)
    assert [request for request in world.watch.requests if request.startswith(("GET disk", "PUT memory"))] == []
    assert "vdi_create" not in [call[0] for call in world.destination.srs[world.destination.sr].calls]
    assert "vdi_copy" not in [call[0] for call in world.source.srs[world.source.sr].calls]


def kill(host: SimHost) -> list[int]:
    """End the child processes of this host's hypervisor; their pids."""
    driver: Any = host.domains
    children: list[int] = driver.children()
    for pid in children:
        os.kill(pid, signal.SIGKILL)
    return children


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("whose", ["source", "destination"])
@pytest_twisted.ensureDeferred
async def test_a_child_that_dies_while_the_guest_runs(hosts: Open, whose: str, scheme: str) -> None:
    world = await hosts(PipeDomains, PipeDomains)
    vm = await ticking(world, LARGE)
    killed: list[int] = []

    def at_body() -> None:
        if not killed:
            assert guest_of(world.source).state is DomainState.RUNNING
            killed.extend(kill(getattr(world, whose)))

    world.watch.at_body = at_body
    task = await world.migrate(vm, scheme)
    assert len(killed) == 1
    assert task.status == "failure"
    assert "the child process was ended" in str(task.value)
    assert world.watch.puts[0].carried < LARGE
    await stayed(world)
    assert len(world.source.hypervisor.started) == 1  # it was never stopped


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("whose", ["source", "destination"])
@pytest_twisted.ensureDeferred
async def test_a_child_that_dies_when_the_guest_has_been_suspended(hosts: Open, whose: str, scheme: str) -> None:
    killed: list[int] = []

    class Killed(PipeDomains):
        async def suspend(self, domain_id: str, fd: int, live: bool = True) -> ISuspension:
            suspension = await super().suspend(domain_id, fd, live)
            suspended: defer.Deferred[None] = suspension.suspended()  # type: ignore[assignment]
            suspended.addCallback(lambda _: killed.extend(kill(getattr(world, whose))))
            return suspension

    world = await hosts(Killed, PipeDomains)
    vm = await ticking(world)
    task = await world.migrate(vm, scheme)
    assert len(killed) == 1
    assert task.status == "failure"
    assert "the child process was ended" in str(task.value)
    await stayed(world)
    assert world.source.hypervisor.started == [guest_of(world.source).spec.domain_id] * 2


@pytest_twisted.ensureDeferred
async def test_a_second_migration_after_one_that_failed(hosts: Open) -> None:
    """What the first left of its stream does not stand in the way of the next."""
    world = await hosts(PipeDomains, PipeDomains)
    world.source.hypervisor.faults.final = "the simulation said so"
    vm = await ticking(world)
    task = await world.migrate(vm, "http")
    assert task.status == "failure"
    await stayed(world)
    world.source.hypervisor.faults.final = ""
    task = await world.migrate(vm, "http")
    assert (task.status, task.value) == ("success", vm)
    await moved(world)
