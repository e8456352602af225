"""What every domain driver must do: plain `async def check_*(bench)`, each on a bench of its own.

The author of a driver writes a bench (see `DomainBench`) and runs `CHECKS` on it with whatever runner there is. A check
raises AssertionError with what it missed.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Awaitable, Callable
from typing import Protocol

import attrs
from zope.interface.verify import verifyObject

from xapi_migrate.domains.interfaces import DomainNic, DomainSpec, DomainState, IDomainDriver, IRestoration, ISuspension
from xapi_migrate.errors import DomainError


class DomainBench(Protocol):
    """Two hosts with a driver each, and guests that print one number after another, each one more than the last.

    Both drivers are open. The disks of a spec are there, active, and seen by both hosts. The one who made the bench
    destroys what is left on it.
    """

    sender: IDomainDriver
    receiver: IDomainDriver

    async def spec(self) -> DomainSpec:
        """A new domain for the sender, with a new domain id."""

    def there(self, spec: DomainSpec) -> DomainSpec:
        """The same hardware as the receiver builds it, under a domain id of its own."""

    def impossible(self, spec: DomainSpec) -> DomainSpec:
        """A spec that cannot come up."""

    def on_a_bridge(self, spec: DomainSpec) -> DomainSpec:
        """The spec with one network interface more, on a bridge of the sender's. `there` puts it on the receiver's."""

    def connected(self) -> tuple[int, int]:
        """How many interfaces are on these bridges now, at sender and receiver."""

    def announced(self) -> tuple[list[str], list[str]]:
        """The MAC addresses that announced themselves on these bridges so far, at sender and receiver."""

    def printed(self, *specs: DomainSpec) -> list[int]:
        """All numbers that the guest has printed, on its way through these domains."""

    def wire(self) -> tuple[int, int]:
        """Two connected descriptors, to write to and to read from, of a kind that the driver takes. The check closes
        both with os.close."""

    async def sleep(self, seconds: float) -> None:
        """Let time pass; no driver needs more than ten seconds for anything on this bench."""

    async def restart(self) -> None:
        """The sender's daemon ends and a new one begins: `sender` is closed, and then is another driver, open."""

    async def crash(self, domain_id: str) -> None:
        """Kill the domain at the sender behind its driver's back."""


Check = Callable[[DomainBench], Awaitable[None]]
CHECKS: list[Check] = []
"""All checks, to be run one by one."""


def _check(check: Check) -> Check:
    CHECKS.append(check)
    return check


async def _until(bench: DomainBench, condition: Callable[[], bool], what: str) -> None:
    for _ in range(500):
        if condition():
            return
        await bench.sleep(0.02)
    raise AssertionError(f"{what}: did not happen")


async def _ticks(bench: DomainBench, *specs: DomainSpec, more: int = 5) -> None:
    """The guest prints so many more numbers, and never left one out or said one twice."""
    wanted = len(bench.printed(*specs)) + more
    await _until(bench, lambda: len(bench.printed(*specs)) >= wanted, "the guest does not run: its next number")
    numbers = bench.printed(*specs)
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers))), f"time was lost or repeated: {numbers[-50:]}"


async def _silent(bench: DomainBench, *specs: DomainSpec) -> None:
    """The guest prints nothing."""
    before = bench.printed(*specs)
    await bench.sleep(0.2)
    assert bench.printed(*specs) == before, "the guest runs, and should not"


async def _running(bench: DomainBench) -> DomainSpec:
    spec = await bench.spec()
    await bench.sender.start(spec)
    await _ticks(bench, spec, more=20)
    return spec


async def _fails(doing: Awaitable[object], what: str) -> DomainError:
    try:
        await doing
    except DomainError as error:
        return error
    raise AssertionError(f"{what}: should have failed with DomainError")


class _Wire:
    """A wire that closes each end once."""

    def __init__(self, bench: DomainBench) -> None:
        self.near, self.far = bench.wire()

    def close_near(self) -> None:
        if self.near >= 0:
            os.close(self.near)
            self.near = -1

    def close_far(self) -> None:
        if self.far >= 0:
            os.close(self.far)
            self.far = -1

    def __enter__(self) -> _Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self.close_near()
        self.close_far()


async def _begin(bench: DomainBench, wire: _Wire, spec: DomainSpec, live: bool = True) -> ISuspension:
    suspension = await bench.sender.suspend(spec.domain_id, wire.near, live)
    wire.close_near()
    return suspension


async def _accept(bench: DomainBench, wire: _Wire, spec: DomainSpec) -> IRestoration:
    restoration = await bench.receiver.restore(spec, wire.far)
    await restoration.accepting()
    wire.close_far()
    return restoration


@_check
async def check_interface(bench: DomainBench) -> None:
    verifyObject(IDomainDriver, bench.sender)
    capabilities = bench.sender.capabilities()
    assert capabilities == bench.receiver.capabilities()
    assert capabilities.stream
    assert capabilities.machine
    assert await bench.sender.refuses(capabilities.machine, capabilities.cpu) == ""
    assert await bench.sender.refuses("", "") == ""
    assert "pc-i440fx-0.1" in await bench.sender.refuses("pc-i440fx-0.1", "")


@_check
async def check_a_life(bench: DomainBench) -> None:
    spec = await _running(bench)
    assert await bench.sender.state(spec.domain_id) is DomainState.RUNNING
    assert await bench.sender.domains() == [spec.domain_id]
    assert 0 <= bench.sender.untouched() <= spec.memory
    assert bench.receiver.untouched() == 0
    assert 0 < bench.sender.memory().free < bench.sender.memory().total
    assert await bench.receiver.state(spec.domain_id) is DomainState.ABSENT
    await bench.sender.start(spec)
    await bench.sender.pause(spec.domain_id)
    await bench.sender.pause(spec.domain_id)
    assert await bench.sender.state(spec.domain_id) is DomainState.PAUSED
    await _silent(bench, spec)
    await bench.sender.unpause(spec.domain_id)
    await bench.sender.unpause(spec.domain_id)
    await _ticks(bench, spec)
    await bench.sender.resume(spec.domain_id)  # runs already
    await _ticks(bench, spec)
    await bench.sender.destroy(spec.domain_id)
    await bench.sender.destroy(spec.domain_id)
    assert await bench.sender.state(spec.domain_id) is DomainState.ABSENT
    assert await bench.sender.domains() == []
    await _silent(bench, spec)


@_check
async def check_no_such_domain(bench: DomainBench) -> None:
    spec = await bench.spec()
    driver, name = bench.sender, spec.domain_id
    await _fails(driver.pause(name), "pause")
    await _fails(driver.unpause(name), "unpause")
    await _fails(driver.resume(name), "resume")
    await _fails(driver.shutdown(name), "shutdown")
    with _Wire(bench) as wire:
        await _fails(driver.suspend(name, wire.near), "suspend")


@_check
async def check_a_start_that_fails_leaves_nothing(bench: DomainBench) -> None:
    spec = await bench.spec()
    await _fails(bench.sender.start(bench.impossible(spec)), "start")
    assert await bench.sender.domains() == []
    await bench.sender.start(spec)
    await _ticks(bench, spec)


async def _migrate(bench: DomainBench, live: bool) -> None:
    here = await _running(bench)
    there = bench.there(here)
    told: list[object] = []
    bench.sender.watch(lambda *change: told.append(change))
    bench.receiver.watch(lambda *change: told.append(change))
    with _Wire(bench) as wire:
        restoration = await _accept(bench, wire, there)
        suspension = await _begin(bench, wire, here, live)
        await suspension.suspended()
        await suspension.suspended()
        await _silent(bench, here, there)
        await suspension.proceed()
        await suspension.finished()
        await restoration.finished()
        await restoration.finished()
    assert await bench.sender.state(here.domain_id) is DomainState.SUSPENDED
    assert await bench.receiver.state(there.domain_id) is DomainState.PAUSED
    sent, total = suspension.progress()
    assert 0 < sent <= total, (sent, total)
    await _silent(bench, here, there)
    await suspension.cancel()  # too late: nothing happens
    assert await bench.sender.state(here.domain_id) is DomainState.SUSPENDED
    await bench.receiver.unpause(there.domain_id)
    await bench.sender.destroy(here.domain_id)
    await _ticks(bench, here, there)
    assert await bench.receiver.domains() == [there.domain_id]
    assert told == [], "a watcher was told of a change that was asked for"


@_check
async def check_live_migration(bench: DomainBench) -> None:
    await _migrate(bench, live=True)


@_check
async def check_cold_migration(bench: DomainBench) -> None:
    await _migrate(bench, live=False)


@_check
async def check_to_a_file_and_back(bench: DomainBench) -> None:
    """As a VM is suspended to a VDI and resumed: the file's position, which all that have it open share, says how long
    the stream is."""
    here = await _running(bench)
    there = bench.there(here)
    with tempfile.TemporaryFile() as file:
        suspension = await bench.sender.suspend(here.domain_id, file.fileno(), live=False)
        await suspension.suspended()
        await suspension.proceed()
        await suspension.finished()
        assert os.lseek(file.fileno(), 0, os.SEEK_CUR) == os.fstat(file.fileno()).st_size > 0
        await bench.sender.destroy(here.domain_id)
        os.lseek(file.fileno(), 0, os.SEEK_SET)
        restoration = await bench.sender.restore(there, file.fileno())
        await restoration.finished()
    assert await bench.sender.state(there.domain_id) is DomainState.PAUSED
    await _silent(bench, here, there)
    await bench.sender.unpause(there.domain_id)
    await _ticks(bench, here, there)


@_check
async def check_resume_after_the_whole_stream(bench: DomainBench) -> None:
    here = await _running(bench)
    there = bench.there(here)
    with _Wire(bench) as wire:
        restoration = await _accept(bench, wire, there)
        suspension = await _begin(bench, wire, here)
        await suspension.suspended()
        await suspension.proceed()
        await suspension.finished()
        await restoration.finished()
    await bench.receiver.destroy(there.domain_id)
    await bench.sender.resume(here.domain_id)
    await bench.sender.resume(here.domain_id)
    assert await bench.sender.state(here.domain_id) is DomainState.RUNNING
    await _ticks(bench, here)
    await _again(bench, here)


@_check
async def check_a_paused_domain_comes_back_paused(bench: DomainBench) -> None:
    here = await _running(bench)
    for whole in (True, False):
        await bench.sender.pause(here.domain_id)
        with _Wire(bench) as wire:
            restoration = await _accept(bench, wire, bench.there(here))
            suspension = await _begin(bench, wire, here)
            await suspension.suspended()
            if whole:
                await suspension.proceed()
                await suspension.finished()
                await restoration.finished()
            else:
                await suspension.cancel()
            await restoration.cancel()
        for _ in range(2):
            await bench.sender.resume(here.domain_id, paused=True)
        assert await bench.sender.state(here.domain_id) is DomainState.PAUSED
        await _silent(bench, here)
        await bench.sender.unpause(here.domain_id)
        await _ticks(bench, here)
    await _again(bench, here)


async def _again(bench: DomainBench, here: DomainSpec) -> None:
    """After a rollback the same domain can be migrated."""
    there = bench.there(here)
    with _Wire(bench) as wire:
        restoration = await _accept(bench, wire, there)
        suspension = await _begin(bench, wire, here)
        await suspension.suspended()
        await suspension.proceed()
        await suspension.finished()
        await restoration.finished()
    await bench.receiver.unpause(there.domain_id)
    await _ticks(bench, here, there)


@_check
async def check_the_reader_goes_away(bench: DomainBench) -> None:
    here = await _running(bench)
    with _Wire(bench) as wire:
        suspension = await _begin(bench, wire, here)
        wire.close_far()
        await _fails(suspension.finished(), "a suspend that nobody reads")
    await bench.sender.resume(here.domain_id)
    await _ticks(bench, here)
    await _again(bench, here)


@_check
async def check_cancel_at_once(bench: DomainBench) -> None:
    here = await _running(bench)
    with _Wire(bench) as wire:
        suspension = await _begin(bench, wire, here)
        await suspension.cancel()
        await suspension.cancel()
        wire.close_far()
        await _fails(suspension.finished(), "a suspend that was cancelled")
    await bench.sender.resume(here.domain_id)
    assert await bench.sender.state(here.domain_id) is DomainState.RUNNING
    await _ticks(bench, here)
    await _again(bench, here)


@_check
async def check_cancel_when_suspended(bench: DomainBench) -> None:
    here = await _running(bench)
    there = bench.there(here)
    with _Wire(bench) as wire:
        restoration = await _accept(bench, wire, there)
        suspension = await _begin(bench, wire, here)
        await suspension.suspended()
        await suspension.cancel()
        await restoration.cancel()
    assert await bench.receiver.state(there.domain_id) is DomainState.ABSENT
    await bench.sender.resume(here.domain_id)
    await _ticks(bench, here)


@_check
async def check_a_stream_that_breaks_off(bench: DomainBench) -> None:
    spec = bench.there(await bench.spec())
    with _Wire(bench) as wire:
        restoration = await _accept(bench, wire, spec)
        assert await bench.receiver.state(spec.domain_id) is DomainState.INCOMING
        await _fails(bench.receiver.unpause(spec.domain_id), "unpause of a domain that waits for its memory")
        wire.close_near()
        await _fails(restoration.finished(), "a restore from nothing")
        await _fails(restoration.finished(), "a restore from nothing, asked again")
    assert await bench.receiver.state(spec.domain_id) is DomainState.ABSENT
    assert await bench.receiver.domains() == []


@_check
async def check_a_stream_that_is_not_one(bench: DomainBench) -> None:
    spec = bench.there(await bench.spec())
    with _Wire(bench) as wire:
        restoration = await _accept(bench, wire, spec)
        os.write(wire.near, b"GET / HTTP/1.1\r\n" * 8)
        wire.close_near()
        await _fails(restoration.finished(), "a restore from something else")
    assert await bench.receiver.domains() == []


@_check
async def check_cancel_a_restore(bench: DomainBench) -> None:
    spec = bench.there(await bench.spec())
    with _Wire(bench) as wire:
        restoration = await _accept(bench, wire, spec)
        await restoration.cancel()
        await restoration.cancel()
        await _fails(restoration.finished(), "a restore that was cancelled")
    assert await bench.receiver.domains() == []


@_check
async def check_destroyed_while_it_suspends(bench: DomainBench) -> None:
    here = await _running(bench)
    with _Wire(bench) as wire:
        suspension = await _begin(bench, wire, here)
        await bench.sender.destroy(here.domain_id)
        await _fails(suspension.finished(), "the suspend of a domain that was destroyed")
    assert await bench.sender.domains() == []


@_check
async def check_found_again(bench: DomainBench) -> None:
    here = await _running(bench)
    await bench.restart()
    assert await bench.sender.domains() == [here.domain_id]
    assert await bench.sender.state(here.domain_id) is DomainState.RUNNING
    await _ticks(bench, here)
    await _again(bench, here)
    await bench.restart()
    assert await bench.sender.state(here.domain_id) is DomainState.SUSPENDED
    await bench.sender.destroy(here.domain_id)
    assert await bench.sender.domains() == []


@_check
async def check_power_button(bench: DomainBench) -> None:
    here = await _running(bench)
    told: list[tuple[str, DomainState]] = []
    bench.sender.watch(lambda *change: told.append(change))
    await bench.sender.shutdown(here.domain_id)
    await _until(bench, lambda: bool(told), "that the guest powered off")
    assert told == [(here.domain_id, DomainState.SHUTDOWN)]
    assert await bench.sender.state(here.domain_id) is DomainState.SHUTDOWN


@_check
async def check_crash(bench: DomainBench) -> None:
    here = await _running(bench)
    told: list[tuple[str, DomainState]] = []
    bench.sender.watch(lambda *change: told.append(change))
    await bench.crash(here.domain_id)
    await _until(bench, lambda: bool(told), "that the domain crashed")
    assert told == [(here.domain_id, DomainState.CRASHED)]
    assert await bench.sender.state(here.domain_id) is DomainState.CRASHED
    await _fails(bench.sender.resume(here.domain_id), "resume of a crashed domain")
    await bench.sender.destroy(here.domain_id)
    assert await bench.sender.state(here.domain_id) is DomainState.ABSENT


@_check
async def check_a_disk_that_lost_writes(bench: DomainBench) -> None:
    here = await _running(bench)
    told: list[tuple[str, DomainState]] = []
    bench.sender.watch(lambda *change: told.append(change))
    await bench.sender.lose_disk("/another", "it is another's")
    assert await bench.sender.state(here.domain_id) is DomainState.RUNNING
    assert bench.sender.why(here.domain_id) == ""
    await bench.sender.lose_disk(here.disks[0].socket_path, "its disk is gone")
    await _until(bench, lambda: bool(told), "that the domain crashed")
    assert told == [(here.domain_id, DomainState.CRASHED)]
    assert await bench.sender.state(here.domain_id) is DomainState.CRASHED
    assert bench.sender.why(here.domain_id) == "its disk is gone"
    printed = len(bench.printed(here))
    await bench.sleep(0.5)
    assert len(bench.printed(here)) == printed
    await bench.sender.destroy(here.domain_id)
    assert bench.sender.why(here.domain_id) == ""


@_check
async def check_interfaces_are_on_bridges_as_long_as_the_domain_is_there(bench: DomainBench) -> None:
    spec = bench.on_a_bridge(await bench.spec())
    await bench.sender.start(spec)
    await _ticks(bench, spec)
    assert bench.connected() == (1, 0)
    await bench.restart()
    assert bench.connected() == (1, 0)
    await bench.sender.destroy(spec.domain_id)
    await _until(bench, lambda: bench.connected() == (0, 0), "the interface's end")
    again = attrs.evolve(spec, domain_id=f"{spec.domain_id[:-4]}next")
    await bench.sender.start(again)
    assert bench.connected() == (1, 0)
    await bench.crash(again.domain_id)
    await _until(bench, lambda: bench.connected() == (0, 0), "the interface's end when the domain crashed")


async def _restored(bench: DomainBench, spec: DomainSpec, wire: _Wire) -> None:
    await (await bench.receiver.restore(spec, wire.far)).finished()


@_check
async def check_a_bridge_that_is_not_there(bench: DomainBench) -> None:
    spec = await bench.spec()
    lacking = attrs.evolve(spec, nics=(DomainNic("0", "52:54:00:0a:0b:0c", bridge="no-such-bridge"),))
    error = await _fails(bench.sender.start(lacking), "start")
    assert "no-such-bridge" in str(error), error
    assert await bench.sender.domains() == []
    with _Wire(bench) as wire:
        await _fails(_restored(bench, bench.there(lacking), wire), "a restore without its bridge")
    assert await bench.receiver.domains() == []


@_check
async def check_announced_when_it_runs_and_not_before(bench: DomainBench) -> None:
    here = bench.on_a_bridge(await bench.spec())
    there = bench.there(here)
    mac = here.nics[0].mac
    await bench.sender.start(here)
    await _ticks(bench, here)
    with _Wire(bench) as wire:
        restoration = await _accept(bench, wire, there)
        suspension = await _begin(bench, wire, here)
        await suspension.suspended()
        await suspension.proceed()
        await suspension.finished()
        await restoration.finished()
    await bench.sleep(0.5)
    assert mac not in bench.announced()[1], "announced before it was decided where it runs"
    await bench.receiver.unpause(there.domain_id)
    await _until(bench, lambda: mac in bench.announced()[1], "the announcement at the receiver")
    assert mac not in bench.announced()[0], "announced at the sender, which it has left"
    await _ticks(bench, here, there)
    said = bench.announced()[1].count(mac)
    await bench.receiver.unpause(there.domain_id)
    await _until(bench, lambda: bench.announced()[1].count(mac) > said, "the announcement of one that runs already")
