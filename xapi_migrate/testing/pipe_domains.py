"""PipeDomains: a hypervisor whose streams are written and read by a child process, one way, into a pipe, as libxl's
are. It takes no sockets and cannot hold its stream back: `suspended` and the end come when they come. A guest whose
suspend fails after its processors were stopped stays stopped until `resume`. It needs the real reactor."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Any

from twisted.internet import defer
from twisted.internet.error import ProcessExitedAlready
from twisted.internet.protocol import ProcessProtocol
from twisted.python.failure import Failure
from zope.interface import implementer

from xapi_migrate.domains.interfaces import DomainSpec, DomainState, IDomainDriver, IRestoration, ISuspension
from xapi_migrate.moment import Moment
from xapi_migrate.testing.fake_hypervisor import FakeDriver, FakeGuest
from xapi_migrate.testing.pipe_hypervisor import STREAM_FD, framed


class _Child(ProcessProtocol):
    """One such process."""

    def __init__(self, reactor: Any, verb: str, fd: int, lines: Callable[[str], None]) -> None:
        self._lines = lines
        self._buffer = b""
        self._said = b""
        self.ended: Moment[str] = Moment()
        """"" when it ended well, its last words otherwise."""
        argv = [sys.executable, "-m", "xapi_migrate.testing.pipe_hypervisor", verb]
        reactor.spawnProcess(self, argv[0], argv, env=os.environ, childFDs={0: "w", 1: "r", 2: "r", STREAM_FD: fd})

    def feed(self, data: bytes) -> None:
        transport: Any = self.transport
        transport.write(data)

    def outReceived(self, data: bytes) -> None:
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        for line in lines:
            self._lines(line.decode())

    def errReceived(self, data: bytes) -> None:
        self._said += data

    def processEnded(self, reason: Failure) -> None:
        code = getattr(reason.value, "exitCode", None)
        said = self._said.decode("utf-8", "replace").strip().rsplit("\n", 1)[-1]
        self.ended.happen("" if code == 0 else said or "the child process was ended")

    @property
    def pid(self) -> int | None:
        """None when it has ended."""
        transport: Any = self.transport
        return None if self.ended.happened else transport.pid

    async def end(self) -> None:
        transport: Any = self.transport
        if not self.ended.happened:
            try:
                transport.signalProcess("KILL")
            except ProcessExitedAlready:
                pass
        await self.ended.wait()


@implementer(ISuspension)
class PipeSuspension:
    """Made by PipeDomains.suspend."""

    def __init__(self, driver: PipeDomains, guest: FakeGuest, fd: int, live: bool) -> None:
        self._driver = driver
        self._guest = guest
        self._suspended: Moment[None] = Moment()
        self._finished: Moment[None] = Moment()
        self._cancelled = False
        if not live:
            driver.hypervisor.halt(guest, DomainState.PAUSED)
        self._child = _Child(driver.hypervisor.clock, "save", fd, self._line)
        self._child.feed(framed(bytes(guest.memory)))
        self._child.ended.wait().addCallback(self._ended)

    @property
    def over(self) -> bool:
        return self._finished.happened

    def suspended(self) -> defer.Deferred[None]:
        return self._suspended.wait()

    async def proceed(self) -> None:
        """This hypervisor cannot hold its stream back."""

    def finished(self) -> defer.Deferred[None]:
        return self._finished.wait()

    def progress(self) -> tuple[int, int]:
        size = len(self._guest.memory)
        return (size if self._suspended.happened else 0), size

    def measures(self) -> str:
        return self._guest.measures

    async def cancel(self) -> None:
        if not self.over:
            self._cancelled = True
            await self._child.end()

    def _line(self, line: str) -> None:
        """The memory is out: stop the guest, and give the rest of its state."""
        guest, faults = self._guest, self._driver.hypervisor.faults
        if faults.suspend or guest.state is DomainState.CRASHED:
            defer.Deferred.fromCoroutine(self._child.end())
            return
        self._driver.hypervisor.halt(guest, DomainState.SUSPENDED)
        self._suspended.happen(None)
        if faults.final:
            defer.Deferred.fromCoroutine(self._child.end())
            return
        state = {"counter": guest.counter, "owed": guest.owed, "memory": guest.memory.hex()}
        self._child.feed(framed(json.dumps(state).encode()))

    def _ended(self, words: str) -> None:
        faults = self._driver.hypervisor.faults
        reason = "it was cancelled" if self._cancelled else faults.suspend or faults.final or words
        if not words and not self._cancelled:
            self._finished.happen(None)
            return
        error = self._driver.error(self._guest.spec.domain_id, "suspend", reason)
        self._suspended.fail(error)
        self._finished.fail(error)


@implementer(IRestoration)
class PipeRestoration:
    """Made by PipeDomains.restore."""

    def __init__(self, driver: PipeDomains, guest: FakeGuest, fd: int) -> None:
        self._driver = driver
        self._guest = guest
        self._state = ""
        self._reason = ""
        self._accepting: Moment[None] = Moment()
        self._finished: Moment[None] = Moment()
        self._child = _Child(driver.hypervisor.clock, "restore", fd, self._line)
        self._child.ended.wait().addCallback(self._ended)
        self._accepting.happen(None)

    def accepting(self) -> defer.Deferred[None]:
        return self._accepting.wait()

    def finished(self) -> defer.Deferred[None]:
        return self._finished.wait()

    async def cancel(self) -> None:
        self._reason = "it was cancelled"
        await self._child.end()
        await self._driver.forget(self._guest.spec.domain_id)

    def _line(self, line: str) -> None:
        self._state = line

    def _ended(self, words: str) -> None:
        hypervisor, guest = self._driver.hypervisor, self._guest
        reason = self._reason or words or hypervisor.faults.restore
        if reason:
            if hypervisor.guests.get(guest.spec.domain_id) is guest:
                del hypervisor.guests[guest.spec.domain_id]
            self._finished.fail(self._driver.error(guest.spec.domain_id, "take its memory in", reason))
            return
        state = json.loads(bytes.fromhex(self._state))
        guest.counter, guest.owed = state["counter"], state["owed"]
        guest.memory = bytearray.fromhex(state["memory"])
        hypervisor.halt(guest, DomainState.PAUSED)
        self._finished.happen(None)


@implementer(IDomainDriver)
class PipeDomains(FakeDriver):
    """See the module. The hypervisor's clock must be the reactor."""

    name = "pipe"
    stream = "pipe"
    takes_socket = False

    def __init__(self, hypervisor: Any) -> None:
        super().__init__(hypervisor)
        self._suspensions: dict[str, PipeSuspension] = {}
        self._restorations: dict[str, PipeRestoration] = {}

    def children(self) -> list[int]:
        """The pids of the child processes that write or read a stream now."""
        streams: list[Any] = [*self._suspensions.values(), *self._restorations.values()]
        return [pid for stream in streams if (pid := stream._child.pid) is not None]

    async def suspend(self, domain_id: str, fd: int, live: bool = True) -> ISuspension:
        guest = self.guest(domain_id, "suspend", DomainState.RUNNING, DomainState.PAUSED)
        earlier = self._suspensions.get(domain_id)
        if earlier is not None and not earlier.over:
            raise self.error(domain_id, "suspend", "it is being suspended already")
        suspension = self._suspensions[domain_id] = PipeSuspension(self, guest, fd, live)
        return suspension

    async def restore(self, spec: DomainSpec, fd: int) -> IRestoration:
        guest = self.make(spec, "take its memory in", DomainState.INCOMING)
        restoration = self._restorations[spec.domain_id] = PipeRestoration(self, guest, fd)
        return restoration

    async def resume(self, domain_id: str, paused: bool = False) -> None:
        suspension = self._suspensions.pop(domain_id, None)
        if suspension is not None:
            await suspension.cancel()
        await super().resume(domain_id, paused)

    async def destroy(self, domain_id: str) -> None:
        suspension = self._suspensions.pop(domain_id, None)
        if suspension is not None:
            await suspension.cancel()
        restoration = self._restorations.pop(domain_id, None)
        if restoration is not None:
            await restoration.cancel()
        await self.forget(domain_id)

    async def forget(self, domain_id: str) -> None:
        """Remove the domain itself."""
        await super().destroy(domain_id)

    async def close(self) -> None:
        for suspension in self._suspensions.values():
            await suspension.cancel()
        for restoration in self._restorations.values():
            await restoration.cancel() if not restoration._finished.happened else None
        await super().close()
