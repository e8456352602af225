"""A hypervisor in memory: guests that count, and all that a driver does with them except streams.

`FakeHypervisor` is the host's: it outlives the drivers that are made for it, as real domains outlive the daemon. Its
guests live by the clock that it is given, so they run under `twisted.internet.task.Clock` too.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs

from xapi_migrate.domains.host_memory import linux_memory
from xapi_migrate.domains.interfaces import DomainCapabilities, DomainDisk, DomainSpec, DomainState, HostMemory
from xapi_migrate.errors import DomainError

Write = Callable[[DomainSpec, DomainDisk, int], None]
"""Called for each disk at each tick, before the counter is printed. It raises OSError to refuse the write: the guest
then stops and makes it again when it goes on."""


def no_disks(spec: DomainSpec, disk: DomainDisk, counter: int) -> None:
    """A `Write` that takes everything."""


@attrs.define
class Faults:
    """What is to go wrong; change it at any time. Each is a sentence, "" for nothing."""

    start: str = ""
    """`start` and `restore` fail."""
    suspend: str = ""
    """A suspend fails while the guest runs."""
    final: str = ""
    """A suspend fails after `proceed`."""
    restore: str = ""
    """A restore fails when the whole stream is in."""


@attrs.define(eq=False)
class FakeGuest:
    """One domain. `memory` is dirtied at each tick, and travels; `printed` is its console."""

    spec: DomainSpec
    state: DomainState
    counter: int = 0
    memory: bytearray = attrs.field(factory=lambda: bytearray(64 << 10))
    printed: list[int] = attrs.field(factory=list)
    ignores_button: bool = False
    measures: str = ""
    """What its suspensions say of it."""
    owed: bool = False
    """A write was refused and has to be made again before the counter is printed."""
    tick: Any = None
    why: str = ""
    """Why it crashed."""


@attrs.define(eq=False)
class FakeHypervisor:
    """One host's hypervisor. `interval` seconds between two ticks."""

    clock: Any
    host: str = "fake"
    write: Write = no_disks
    interval: float = 0.01
    faults: Faults = attrs.field(factory=Faults)
    guests: dict[str, FakeGuest] = attrs.field(factory=dict)
    machines: tuple[str, ...] = ()
    """Machine types besides its own."""
    consoles: dict[str, list[int]] = attrs.field(factory=dict)
    """What each domain printed, by its id; kept when the domain is gone."""
    started: list[str] = attrs.field(factory=list)
    """The domain ids in the order in which their processors were let run, for those who check that never two do."""
    bridges: set[str] = attrs.field(factory=set)
    """The bridges that the host has."""
    announced: list[str] = attrs.field(factory=list)
    """The MAC addresses that were announced on them, in order."""
    watchers: list[Callable[[str, DomainState], None]] = attrs.field(factory=list)

    # -- processors ---------------------------------------------------------------------------

    def run(self, guest: FakeGuest) -> None:
        if guest.state is DomainState.RUNNING:
            return
        guest.state = DomainState.RUNNING
        self.started.append(guest.spec.domain_id)
        if guest.owed:
            self._finish_tick(guest)
        else:
            self._schedule(guest)

    def halt(self, guest: FakeGuest, state: DomainState) -> None:
        guest.state = state
        tick, guest.tick = guest.tick, None
        if tick is not None and tick.active():
            tick.cancel()

    def _schedule(self, guest: FakeGuest) -> None:
        guest.tick = self.clock.callLater(self.interval, self._tick, guest)

    def _tick(self, guest: FakeGuest) -> None:
        guest.tick = None
        guest.counter += 1
        page = guest.counter % (len(guest.memory) // 8) * 8
        guest.memory[page : page + 8] = guest.counter.to_bytes(8, "little")
        self._finish_tick(guest)

    def _finish_tick(self, guest: FakeGuest) -> None:
        try:
            for disk in guest.spec.disks:
                if not disk.read_only:
                    self.write(guest.spec, disk, guest.counter)
        except OSError:
            guest.owed = True
            self.halt(guest, DomainState.PAUSED)
            self.tell(guest)
            return
        guest.owed = False
        guest.printed.append(guest.counter)
        if guest.spec.console_path:
            console = Path(guest.spec.console_path)
            console.parent.mkdir(parents=True, exist_ok=True)
            with console.open("a") as file:
                file.write(f"{guest.counter}\n")
        self._schedule(guest)

    # -- network ------------------------------------------------------------------------------

    def connected(self) -> int:
        """How many interfaces are on bridges."""
        ended = (DomainState.CRASHED, DomainState.ABSENT)
        there = [guest for guest in self.guests.values() if guest.state not in ended]
        return sum(bool(nic.bridge) for guest in there for nic in guest.spec.nics)

    # -- what happens by itself ---------------------------------------------------------------

    def crash(self, domain_id: str, why: str = "the hypervisor made a mistake") -> None:
        """The hypervisor kills the domain."""
        self.guests[domain_id].why = why
        self.halt(self.guests[domain_id], DomainState.CRASHED)
        self.tell(self.guests[domain_id])

    def power_off(self, domain_id: str) -> None:
        """The guest powers off by itself."""
        self.halt(self.guests[domain_id], DomainState.SHUTDOWN)
        self.tell(self.guests[domain_id])

    def tell(self, guest: FakeGuest) -> None:
        for watcher in list(self.watchers):
            watcher(guest.spec.domain_id, guest.state)


class FakeDriver:
    """The part of IDomainDriver that has nothing to do with streams."""

    name = "fake"
    stream = "fake"
    takes_socket = True

    def __init__(self, hypervisor: FakeHypervisor) -> None:
        self.hypervisor = hypervisor
        self._watchers: list[Callable[[str, DomainState], None]] = []
        self._disk_watchers: list[Callable[[str, DomainDisk, str], None]] = []
        self._open = False

    def capabilities(self) -> DomainCapabilities:
        return DomainCapabilities(
            stream=self.stream, takes_socket=self.takes_socket, live=True, machine="fake-1", cpu="fake"
        )

    async def open(self) -> None:
        if not self._open:
            self.hypervisor.watchers.append(self._tell)
            self._open = True

    async def close(self) -> None:
        if self._open:
            self.hypervisor.watchers.remove(self._tell)
            self._open = False

    def _tell(self, domain_id: str, state: DomainState) -> None:
        for watcher in list(self._watchers):
            watcher(domain_id, state)

    def watch(self, callback: Callable[[str, DomainState], None]) -> None:
        self._watchers.append(callback)

    def watch_disks(self, callback: Callable[[str, DomainDisk, str], None]) -> None:
        self._disk_watchers.append(callback)

    def tell_disk(self, domain_id: str, device: str, why: str) -> None:
        """A disk of this domain refuses a request, or ("") takes them again."""
        [disk] = [disk for disk in self.hypervisor.guests[domain_id].spec.disks if disk.device == device]
        for watcher in list(self._disk_watchers):
            watcher(domain_id, disk, why)

    async def lose_disk(self, socket_path: str, reason: str) -> None:
        for domain_id, guest in list(self.hypervisor.guests.items()):
            if any(disk.socket_path == socket_path for disk in guest.spec.disks):
                self.hypervisor.crash(domain_id, reason)

    def why(self, domain_id: str) -> str:
        guest = self.hypervisor.guests.get(domain_id)
        return guest.why if guest is not None and guest.state is DomainState.CRASHED else ""

    def error(self, domain_id: str, action: str, reason: str) -> DomainError:
        return DomainError(domain=domain_id, host=self.hypervisor.host, action=action, reason=reason)

    def guest(self, domain_id: str, action: str, *states: DomainState) -> FakeGuest:
        """The domain, if it is there and in one of the states (none given: any)."""
        guest = self.hypervisor.guests.get(domain_id)
        if guest is None:
            raise self.error(domain_id, action, "there is no such domain")
        if states and guest.state not in states:
            raise self.error(domain_id, action, f"it is {guest.state.value}")
        return guest

    def make(self, spec: DomainSpec, action: str, state: DomainState) -> FakeGuest:
        """A new domain, stopped."""
        if spec.domain_id in self.hypervisor.guests:
            raise self.error(spec.domain_id, action, "there is a domain with this id already")
        if self.hypervisor.faults.start or spec.memory <= 0:
            raise self.error(spec.domain_id, action, self.hypervisor.faults.start or "it has no memory")
        self._check_bridges(spec, action)
        console = self.hypervisor.consoles.setdefault(spec.domain_id, [])
        guest = self.hypervisor.guests[spec.domain_id] = FakeGuest(spec, state, printed=console)
        return guest

    def _check_bridges(self, spec: DomainSpec, action: str) -> None:
        for nic in spec.nics:
            if nic.bridge and nic.bridge not in self.hypervisor.bridges:
                raise self.error(spec.domain_id, action, f"this host has no bridge {nic.bridge!r}")

    async def start(self, spec: DomainSpec) -> None:
        known = self.hypervisor.guests.get(spec.domain_id)
        if known is not None and known.spec == spec and known.state is DomainState.RUNNING:
            return
        self.hypervisor.run(self.make(spec, "start", DomainState.PAUSED))

    async def unpause(self, domain_id: str) -> None:
        guest = self.guest(domain_id, "run", DomainState.RUNNING, DomainState.PAUSED)
        self.hypervisor.run(guest)
        self.hypervisor.announced += [nic.mac for nic in guest.spec.nics if nic.bridge]

    async def pause(self, domain_id: str) -> None:
        guest = self.guest(domain_id, "pause", DomainState.RUNNING, DomainState.PAUSED)
        self.hypervisor.halt(guest, DomainState.PAUSED)

    async def resume(self, domain_id: str, paused: bool = False) -> None:
        guest = self.guest(domain_id, "run again")
        if guest.state is DomainState.CRASHED:
            raise self.error(domain_id, "run again", "it has crashed")
        if paused and guest.state in (DomainState.RUNNING, DomainState.SUSPENDED):
            self.hypervisor.halt(guest, DomainState.PAUSED)
        elif guest.state in (DomainState.PAUSED, DomainState.SUSPENDED) and not paused:
            self.hypervisor.run(guest)

    async def shutdown(self, domain_id: str) -> None:
        guest = self.guest(domain_id, "be shut down")
        if guest.state is DomainState.RUNNING and not guest.ignores_button:
            self.hypervisor.power_off(domain_id)

    async def destroy(self, domain_id: str) -> None:
        guest = self.hypervisor.guests.pop(domain_id, None)
        if guest is not None:
            self.hypervisor.halt(guest, DomainState.ABSENT)

    async def state(self, domain_id: str) -> DomainState:
        guest = self.hypervisor.guests.get(domain_id)
        return DomainState.ABSENT if guest is None else guest.state

    def memory(self) -> HostMemory:
        return linux_memory()

    def untouched(self) -> int:
        return 0

    async def refuses(self, machine: str, cpu: str) -> str:
        known = self.capabilities()
        if machine not in ("", known.machine) and machine not in self.hypervisor.machines:
            return f"it has no machine type {machine}"
        return ""

    async def domains(self) -> list[str]:
        return sorted(self.hypervisor.guests)
