"""FakeDomains: a hypervisor that takes sockets, holds its stream back at the suspend point and lets the guest run on by
itself when the stream fails, as QEMU does.

It reads and writes real descriptors (a socketpair, a pipe, a file) and looks at them by the hypervisor's clock and not
by the reactor: under `twisted.internet.task.Clock` everything happens in `clock.advance`, 0.001 s a step.

The stream: "FAKE1\\n", frames of a length (4 bytes, network order) and so many bytes of memory, a frame of
length 0, and the rest of the state as one line of JSON.
"""

from __future__ import annotations

import json
import os
import select
from collections.abc import Generator
from typing import Any

from twisted.internet import defer
from zope.interface import implementer

from xapi_migrate.domains.interfaces import DomainSpec, DomainState, IDomainDriver, IRestoration, ISuspension
from xapi_migrate.moment import Moment
from xapi_migrate.testing.fake_hypervisor import FakeDriver, FakeGuest

MAGIC = b"FAKE1\n"
STEP = 0.001
_CHUNK = 4096  # a pipe that is writable at all takes this much


class _Steps:
    """Runs a generator a step at a time by a clock; each `yield` waits for the next step."""

    def __init__(self, clock: Any, work: Generator[None, None, None]) -> None:
        self._clock = clock
        self._work = work
        self._stopped = self._working = False
        self._next = clock.callLater(0, self._step)

    def _step(self) -> None:
        self._working = True
        try:
            next(self._work)
        except StopIteration:
            return
        finally:
            self._working = False
        if self._stopped:  # by somebody who waited for what the work just told
            self._work.close()
            return
        self._next = self._clock.callLater(STEP, self._step)

    def stop(self) -> None:
        self._stopped = True
        if self._next.active():
            self._next.cancel()
        if not self._working:
            self._work.close()


def _ready(fd: int, event: int) -> bool:
    poll = select.poll()
    poll.register(fd, event)
    return bool(poll.poll(0))


def _send(fd: int, data: bytes) -> Generator[None, None, None]:
    """Write it all, a little at a time. OSError when nobody reads any more."""
    while data:
        while not _ready(fd, select.POLLOUT):
            yield
        data = data[os.write(fd, data[:_CHUNK]) :]


@implementer(ISuspension)
class FakeSuspension:
    """Made by FakeDomains.suspend."""

    def __init__(self, driver: FakeDomains, guest: FakeGuest, fd: int, live: bool) -> None:
        self._driver = driver
        self._guest = guest
        self._fd = os.dup(fd)
        self._suspended: Moment[None] = Moment()
        self._finished: Moment[None] = Moment()
        self._proceed = False
        self._sent = 0
        self._ran = live and guest.state is DomainState.RUNNING
        if not live:
            driver.hypervisor.halt(guest, DomainState.PAUSED)
        self._steps = _Steps(driver.hypervisor.clock, self._work())

    @property
    def over(self) -> bool:
        return self._finished.happened

    def suspended(self) -> defer.Deferred[None]:
        return self._suspended.wait()

    async def proceed(self) -> None:
        self._proceed = True

    def finished(self) -> defer.Deferred[None]:
        return self._finished.wait()

    def progress(self) -> tuple[int, int]:
        return self._sent, max(self._sent, len(self._guest.memory))

    def measures(self) -> str:
        return self._guest.measures

    async def cancel(self) -> None:
        if not self.over:
            self._steps.stop()
            self.fail("it was cancelled")

    def _work(self) -> Generator[None, None, None]:
        driver, guest = self._driver, self._guest
        faults = driver.hypervisor.faults
        try:
            yield from _send(self._fd, MAGIC)
            for start in range(0, len(guest.memory), _CHUNK):  # what changes later is sent again with the state
                chunk = bytes(guest.memory[start : start + _CHUNK])
                yield from _send(self._fd, len(chunk).to_bytes(4, "big") + chunk)
                self._sent += len(chunk)
                yield
            self._check(faults.suspend)
            driver.hypervisor.halt(guest, DomainState.SUSPENDED)
            self._suspended.happen(None)
            yield
            while not self._proceed:
                yield
            self._check(faults.final)
            state = {"counter": guest.counter, "owed": guest.owed, "memory": guest.memory.hex()}
            yield from _send(self._fd, bytes(4) + json.dumps(state).encode() + b"\n")
        except OSError as failure:
            self.fail(failure.strerror or str(failure))
        else:
            self._close()
            self._finished.happen(None)

    def _check(self, fault: str) -> None:
        if fault:
            raise OSError(5, fault)
        if self._guest.state is DomainState.CRASHED:
            raise OSError(5, "the domain crashed")

    def _close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def fail(self, reason: str) -> None:
        self._close()
        error = self._driver.error(self._guest.spec.domain_id, "suspend", reason)
        if self._guest.state is DomainState.SUSPENDED and self._ran:
            self._driver.hypervisor.run(self._guest)
        self._suspended.fail(error)
        self._finished.fail(error)


@implementer(IRestoration)
class FakeRestoration:
    """Made by FakeDomains.restore."""

    def __init__(self, driver: FakeDomains, guest: FakeGuest, fd: int) -> None:
        self._driver = driver
        self._guest = guest
        self._fd = os.dup(fd)
        self._buffer = b""
        self._accepting: Moment[None] = Moment()
        self._finished: Moment[None] = Moment()
        self._steps = _Steps(driver.hypervisor.clock, self._work())

    def accepting(self) -> defer.Deferred[None]:
        return self._accepting.wait()

    def finished(self) -> defer.Deferred[None]:
        return self._finished.wait()

    async def cancel(self) -> None:
        self._steps.stop()
        await self._driver.destroy(self._guest.spec.domain_id)
        self._fail("it was cancelled")

    def _take(self, size: int) -> Generator[None, None, None]:
        """Read until the buffer holds so many bytes; -1: a whole line."""
        while len(self._buffer) < size or (size < 0 and b"\n" not in self._buffer):
            while not _ready(self._fd, select.POLLIN):
                yield
            data = os.read(self._fd, 1 << 16)
            if not data:
                raise OSError(5, "the stream broke off")
            self._buffer += data

    def _work(self) -> Generator[None, None, None]:
        driver, guest = self._driver, self._guest
        self._accepting.happen(None)
        yield
        try:
            yield from self._take(len(MAGIC))
            if not self._buffer.startswith(MAGIC):
                raise OSError(5, "the stream is not one of this hypervisor's")
            self._buffer = self._buffer[len(MAGIC) :]
            while True:
                yield from self._take(4)
                size = int.from_bytes(self._buffer[:4], "big")
                yield from self._take(4 + size)
                self._buffer = self._buffer[4 + size :]
                if not size:
                    break
            yield from self._take(-1)
            state = json.loads(self._buffer.split(b"\n")[0])
            if driver.hypervisor.faults.restore:
                raise OSError(5, driver.hypervisor.faults.restore)
            guest.counter, guest.owed = state["counter"], state["owed"]
            guest.memory = bytearray.fromhex(state["memory"])
        except (OSError, ValueError, KeyError) as failure:
            driver.hypervisor.guests.pop(guest.spec.domain_id, None)
            self._fail(getattr(failure, "strerror", None) or str(failure))
        else:
            driver.hypervisor.halt(guest, DomainState.PAUSED)
            self._close()
            self._finished.happen(None)

    def _close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _fail(self, reason: str) -> None:
        self._close()
        error = self._driver.error(self._guest.spec.domain_id, "take its memory in", reason)
        self._accepting.fail(error)
        self._finished.fail(error)


@implementer(IDomainDriver)
class FakeDomains(FakeDriver):
    """See the module."""

    def __init__(self, hypervisor: Any) -> None:
        super().__init__(hypervisor)
        self._suspensions: dict[str, FakeSuspension] = {}
        self._restorations: dict[str, FakeRestoration] = {}

    async def suspend(self, domain_id: str, fd: int, live: bool = True) -> ISuspension:
        guest = self.guest(domain_id, "suspend", DomainState.RUNNING, DomainState.PAUSED)
        earlier = self._suspensions.get(domain_id)
        if earlier is not None and not earlier.over:
            raise self.error(domain_id, "suspend", "it is being suspended already")
        suspension = self._suspensions[domain_id] = FakeSuspension(self, guest, fd, live)
        return suspension

    async def restore(self, spec: DomainSpec, fd: int) -> IRestoration:
        guest = self.make(spec, "take its memory in", DomainState.INCOMING)
        restoration = self._restorations[spec.domain_id] = FakeRestoration(self, guest, fd)
        return restoration

    async def resume(self, domain_id: str, paused: bool = False) -> None:
        suspension = self._suspensions.pop(domain_id, None)
        if suspension is not None:
            await suspension.cancel()
        await super().resume(domain_id, paused)

    async def destroy(self, domain_id: str) -> None:
        guest = self.hypervisor.guests.get(domain_id)
        if guest is not None:
            self.hypervisor.halt(guest, DomainState.ABSENT)  # first: a suspend that is given up would let it run
        suspension = self._suspensions.pop(domain_id, None)
        if suspension is not None and not suspension.over:
            await suspension.cancel()
        restoration = self._restorations.pop(domain_id, None)
        if restoration is not None:
            await restoration.cancel()
        await super().destroy(domain_id)

    async def close(self) -> None:
        for suspension in self._suspensions.values():
            await suspension.cancel()
        await super().close()
