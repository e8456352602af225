"""Two hosts in one process: the real machines, phases and engine, on storage, hypervisors, journals and a wire that are
in memory. Everything moves by one Clock.

    world = TwoHosts(Clock()); vm = world.source.new_vm(); outcome = world.migrate(vm); world.run(10)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

import attrs
from twisted.internet import defer
from twisted.internet.task import Clock

from ..config import Config, MigrationTimes
from ..domains.interfaces import DomainDisk, DomainSpec, DomainState, IDomainDriver
from ..errors import OtherOperationInProgress, SrNotAttached, TaskCancelled
from ..migration.claims import Claims
from ..migration.engine import Engine
from ..migration.host import Host
from ..migration.interfaces import IPeer
from ..sm.interfaces import Attachment, Purpose
from ..store.commits import Row
from ..store.records import Records
from ..together import started
from ..uris.capability import Capability
from ..xenapi.datamodel import shipped
from .direct_peer import DirectPeer, Wire
from .fake_domains import FakeDomains
from .fake_hypervisor import FakeHypervisor
from .fake_sm import FakeLuns, FakeSR, FakeStorage
from .memory_journals import Crash, MemoryJournals

TIMES = MigrationTimes(
    heartbeat_interval=3.0, heartbeat_lost=10.0, connect=2.0, request=5.0, offer=60.0, poll=0.05, ask=1.0
)
SIZE = 1 << 20
SPAN = 64
SECTOR = 16
IMAGE = b"what a Suspended VM remembers"


class Unwritten:
    """In the place of the store's database: takes everything at once and keeps nothing."""

    generation = 0
    secret = "of the simulation"

    def write(self, row: Row, local: int) -> None:
        pass

    def number(self, local: int) -> None:
        pass

    def flush(self) -> defer.Deferred[None]:
        return defer.succeed(None)

    def follow(self) -> defer.Deferred[bool]:
        return defer.succeed(True)

    async def close(self) -> None:
        pass


@attrs.define(eq=False)
class SimTask:
    """A task that writes down what became of it."""

    ref: str
    progress: list[float] = attrs.Factory(list)
    other: dict[str, str] = attrs.Factory(dict)
    cancel_with: Callable[[], None] | None = None
    status: str = "pending"
    value: object = None
    at_step: Callable[[str], None] = lambda step: None
    """Called with each step's id and text."""

    def set_progress(self, progress: float) -> None:
        self.progress.append(progress)

    def set_other(self, key: str, value: str) -> None:
        if value:
            self.other[key] = value
        else:
            self.other.pop(key, None)
        if key == "step":
            self.at_step(value)

    def on_cancel(self, callback: Callable[[], None] | None) -> None:
        self.cancel_with = callback

    def cancel(self) -> bool:
        """Whether it could be cancelled."""
        callback, self.cancel_with = self.cancel_with, None
        if callback is not None:
            callback()
        return callback is not None


class SimTasks:
    def __init__(self) -> None:
        self.all: list[SimTask] = []
        self.begun: Callable[[SimTask], None] = lambda task: None

    def begin(self, label: str, description: str) -> SimTask:
        task = SimTask(f"OpaqueRef:{uuid4()}")
        self.all.append(task)
        self.begun(task)
        return task

    def succeed(self, task: Any, value: str) -> None:
        self._end(task.ref, "success", value)

    def fail(self, task: Any, error: Exception) -> None:
        if isinstance(error, Crash):
            return  # a daemon that is dead tells nobody: the next one goes on with the task, or fails it
        self._end(task.ref, "cancelled" if isinstance(error, TaskCancelled) else "failure", error)

    def _end(self, ref: str, status: str, value: Any) -> None:
        for task in self.all:
            if task.ref == ref and task.status == "pending":
                task.status, task.value = status, value


class SimToolstack:
    """VMs and SRs of a simulated host, as the engine needs them."""

    def __init__(self, records: Records, srs: dict[str, FakeSR]) -> None:
        self.records = records
        self.srs = srs
        self.busy: dict[str, str] = {}

    def sr(self, ref: str) -> Any:
        self.records.get("SR", ref)
        if ref not in self.srs:
            raise SrNotAttached(ref)
        return self.srs[ref]

    def disks(self, vm: str) -> list[str]:
        vbds = [
            (int(self.records.get("VBD", r)["userdevice"]), r)
            for r in self.records.get("VM", vm)["VBDs"]
            if self.records.get("VBD", r)["type"] == "Disk"
        ]
        return [ref for _, ref in sorted(vbds)]

    def domain_of(self, vm: str) -> str:
        return str(self.records.get("VM", vm).get("_domain") or "")

    def set_domain(self, vm: str, domain: str) -> None:
        self.records.update("VM", vm, _domain=domain)

    def spec_of(self, vm: str, domain: str, attachments: Mapping[str, Attachment]) -> DomainSpec:
        disks = tuple(
            DomainDisk(self.records.get("VBD", vbd)["userdevice"], a.socket_path, a.export)
            for vbd, a in attachments.items()
        )
        return DomainSpec(domain, self.records.get("VM", vm)["uuid"], "sim", SIZE, 1, disks)

    def check_network(self, network: str) -> None:
        """These hosts have every network."""

    def begin_operation(self, vm: str, operation: str, task: str) -> None:
        if self.busy.get(vm, task) != task:
            raise OtherOperationInProgress("VM", vm, operation, self.busy[vm])
        self.busy[vm] = task

    async def hold(self, vm: str) -> None:
        """These hosts are in no pool."""

    def retake_operation(self, vm: str, operation: str, task: str) -> None:
        self.busy[vm] = task

    def end_operation(self, vm: str, task: str) -> None:
        if self.busy.get(vm) == task:
            del self.busy[vm]


class SimHost:
    """One host. Records, disks, domains and journals outlive its daemon; `crash` ends the daemon, without a word."""

    def __init__(
        self,
        name: str,
        clock: Any,
        luns: FakeLuns,
        options: Mapping[str, Any],
        driver: Callable[[FakeHypervisor], IDomainDriver] = FakeDomains,
        records: Records | None = None,
    ) -> None:
        """`records`: those of the pool whose member it is. `clock` is a Clock, or the reactor for a `driver` that needs
        one. `peers` and `uris_of`, of direct peers unless replaced, are how this host reaches others and is reached."""
        self.name = name
        self.clock = clock
        self.records = records or Records(shipped(), clock)
        if records is None:
            self.records._database = Unwritten()  # type: ignore[assignment]
        self.ref = self.records.create("host", name_label=name)
        self.hypervisor = FakeHypervisor(clock, name, write=self._write)
        self.journals = MemoryJournals()
        self.tasks = SimTasks()
        self.srs: dict[str, FakeSR] = {}
        self.luns = luns
        self.toolstack = SimToolstack(self.records, self.srs)
        self.peers: Callable[[list[str]], IPeer] = lambda uris: (_ for _ in ()).throw(AssertionError("no peer"))
        self.uris_of: Callable[[Capability], list[str]] = lambda capability: [f"direct:{capability.text}"]
        self.up = False
        self.free_memory = 1 << 40
        self.lost: list[str] = []
        """Writes of guests that were not on their disks when they went on here."""
        self._known: set[tuple[str, str]] = set()
        self._driver = driver
        self._options = options
        self._daemon = 0
        self.sr = self.new_sr()

    def new_sr(self) -> str:
        sr = FakeSR(self.clock, self.luns)
        started(sr.attach())
        ref = self.records.create("SR", uuid=sr.uuid, name_label=f"{self.name} sr")
        self.srs[ref] = sr
        return ref

    def see(self, sr: str, storage: FakeStorage) -> None:
        """This host sees another member's SR too."""
        self.srs[sr] = FakeSR(self.clock, self.luns, storage)
        started(self.srs[sr].attach())

    def start(self) -> None:
        """A daemon begins, and takes up what the one before has left."""
        self._daemon += 1
        self.domains = self._driver(self.hypervisor)
        started(self.domains.open())
        host = Host(
            ref=self.ref, config=Config(Path("/nowhere"), **self._options), clock=self.clock,
            records=self.records, toolstack=self.toolstack, domains=self.domains, tasks=self.tasks,
            journals=self.journals, peers=lambda uris: self.peers(uris),
            claims=Claims(lambda: self.free_memory, self.domains.untouched),
        )  # fmt: skip
        self.engine = Engine(host, lambda capability: self.uris_of(capability))
        daemon = self._daemon
        ready = started(self.engine.start(lambda ref, label: self._task(ref)))

        def listening(_: object) -> None:
            if daemon == self._daemon:
                self.up = True

        ready.addCallback(listening)

    def crash(self) -> None:
        """The daemon is gone in the middle of what it did: before any time passes, but after the code that is running
        now, which is to raise Crash."""
        self.up = False
        self._daemon += 1
        self.clock.callLater(0, self._die, self.engine, self.domains)

    def _die(self, engine: Engine, domains: Any) -> None:
        started(engine.stop()).addErrback(lambda _: None)
        started(domains.close())

    def _task(self, ref: str) -> SimTask:
        return next((task for task in self.tasks.all if task.ref == ref), None) or self.tasks.begin("", "")

    def _write(self, spec: DomainSpec, disk: DomainDisk, counter: int) -> None:
        sr = next((sr for sr in self.srs.values() if disk.socket_path.startswith(f"/fake/{sr.uuid}/")), None)
        if sr is None:
            raise OSError(5, "its SR is gone")
        attachment = Attachment(disk.socket_path, disk.export, SIZE)
        self._read_back(sr, attachment, spec.domain_id, counter)
        sr.guest_write(attachment, counter % SPAN * SECTOR, counter.to_bytes(SECTOR, "big"))

    def _read_back(self, sr: FakeSR, attachment: Attachment, domain: str, counter: int) -> None:
        """What the guest wrote before `counter`: the write before, and the first time here all that are still there."""
        known = (domain, attachment.export) in self._known
        for number in range(max(1, counter - 1 if known else counter - SPAN + 1), counter):
            if sr.guest_read(attachment, number % SPAN * SECTOR, SECTOR) != number.to_bytes(SECTOR, "big"):
                self.lost.append(f"{number} on disk {attachment.export}")
        self._known.add((domain, attachment.export))

    # -- VMs ----------------------------------------------------------------------------------

    def new_vm(self, disks: int = 2, running: bool = True, power_state: str = "") -> str:
        """A VM with disks in this host's SR; its ref. It runs unless told otherwise. A Suspended one has an image of
        `IMAGE`."""
        power_state = power_state or ("Running" if running else "Halted")
        running = power_state in ("Running", "Paused")
        vm = self.records.create(
            "VM", name_label="demo", memory_static_max=SIZE, VCPUs_max=1, is_a_template=False, power_state="Halted",
            is_control_domain=False,
        )  # fmt: skip
        sr = self.srs[self.sr]
        attachments: dict[str, Attachment] = {}
        for number in range(disks):
            uuid = str(uuid4())
            started(sr.vdi_create(uuid, SIZE))
            vdi = self.records.create("VDI", uuid=uuid, SR=self.sr, virtual_size=SIZE, type="user")
            vbd = self.records.create(
                "VBD", VM=vm, VDI=vdi, userdevice=str(number), type="Disk", mode="RW", currently_attached=running
            )
            if running:
                found: list[Attachment] = []
                started(sr.vdi_attach(uuid, Purpose.DOMAIN)).addCallback(found.append)
                started(sr.vdi_activate(uuid))
                attachments[vbd] = found[0]
        if running:
            domain = str(uuid4())
            started(self.domains.start(self.toolstack.spec_of(vm, domain, attachments)))
            self.records.update("VM", vm, power_state=power_state, _domain=domain, resident_on=self.ref)
        if power_state == "Paused":
            started(self.domains.pause(domain))
        if power_state == "Suspended":
            uuid = str(uuid4())
            started(sr.vdi_create(uuid, SIZE))
            sr.storage.disks[uuid][: len(IMAGE)] = IMAGE
            vdi = self.records.create("VDI", uuid=uuid, SR=self.sr, virtual_size=SIZE, type="suspend")
            self.records.update("VM", vm, power_state=power_state, suspend_VDI=vdi)
        return vm

    def running(self) -> list[str]:
        """The ids of domains whose processors run."""
        return [d for d, guest in self.hypervisor.guests.items() if guest.state is DomainState.RUNNING]

    @property
    def has_open_disks(self) -> bool:
        return any(sr.open_for_domains for sr in self.srs.values())

    def printed(self) -> list[int]:
        return [n for guest in self.hypervisor.guests.values() for n in guest.printed]

    def left_behind(self) -> list[str]:
        """What is here beside the host itself and its SRs."""
        left = [item for sr in self.srs.values() for item in sr.left_behind]
        left += [f"disk {vdi}" for sr in self.srs.values() for vdi in sr.storage.disks]
        left += [f"domain {domain}" for domain in self.hypervisor.guests]
        left += [f"{cls} {ref}" for cls in ("VM", "VDI", "VBD", "VIF") for ref in self.records.refs(cls)]
        return left


class TwoHosts:
    """A source, a destination, and the wire between them. `one_pool`: both have the same records, and the destination
    sees the source's SR if `shared`. The destination can be reached in so many `ways`, each a URI of its offers.
    `own_clocks`: each host has one of its own, which goes with that of the world unless it is among the `stopped`."""

    def __init__(
        self,
        clock: Clock,
        one_pool: bool = False,
        shared: bool = True,
        ways: int = 1,
        own_clocks: bool = False,
        **options: Any,
    ) -> None:
        self.clock = clock
        self.wire = Wire(clock)
        luns = FakeLuns()
        settings = {"times": TIMES, "insecure_storage": True, "test_options": True, **options}
        clocks = [Clock(), Clock()] if own_clocks else [clock, clock]
        self._clocks = [clock, *clocks] if own_clocks else [clock]
        self.stopped: list[Clock] = []
        self.source = SimHost("source", clocks[0], luns, settings)
        self.destination = SimHost(
            "destination", clocks[1], luns, settings, records=self.source.records if one_pool else None
        )
        if one_pool:
            self.source.records.shared = True
        if one_pool and shared:
            self.destination.see(self.source.sr, self.source.srs[self.source.sr].storage)
        self.luns = luns
        self.source.peers = self._peer
        self.destination.uris_of = lambda capability: [
            f"direct:{capability.text}" + (f"#{way}" if way else "") for way in range(ways)
        ]
        for host in (self.source, self.destination):
            host.start()
        self.most_running = 0
        self.open_twice = False
        """Both hosts have had a disk open for a domain at the same time: never, where there is one VM."""
        self.history: list[int] = []

    def _peer(self, uris: list[str]) -> IPeer:
        capability = uris[0].removeprefix("direct:").partition("#")[0]

        def offers() -> Any:
            return self.destination.engine if self.destination.up else None

        return DirectPeer(self.wire, offers, capability, "destination", len(uris))

    def receive(self, sr: str | None = None) -> list[str]:
        uris: list[list[str]] = []
        started(self.destination.engine.receive(sr or self.destination.sr, {})).addCallback(uris.append)
        return uris[0]

    def migrate(
        self, vm: str, uris: list[str] | None = None, vdi_to_sr: dict[str, str] | None = None, **options: str
    ) -> SimTask:
        """VM.migrate at the source, as a task."""
        task = self.source.tasks.begin("VM.migrate", "")
        uris = self.receive() if uris is None else uris
        work = started(self.source.engine.migrate(vm, uris, vdi_to_sr or {}, options, task))
        work.addCallbacks(
            lambda value: self.source.tasks.succeed(task, value),
            lambda failure: self.source.tasks.fail(task, failure.value),
        )
        return task

    def run(self, seconds: float, until: Callable[[], bool] = lambda: False, step: float = 0.005) -> bool:
        """Let time pass, watching how many domains run; whether `until` came true."""
        end = self.clock.seconds() + seconds
        while self.clock.seconds() < end:
            self.look()
            if until():
                return True
            for clock in self._clocks:
                if clock not in self.stopped:
                    clock.advance(step)
        self.look()
        return until()

    def look(self) -> None:
        now = len(self.source.running()) + len(self.destination.running())
        self.most_running = max(self.most_running, now)
        self.open_twice = self.open_twice or all(host.has_open_disks for host in (self.source, self.destination))
