"""The toolstack put together: storage, VMs, their calls, and what the migration engine needs of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from xapi_migrate.domains.interfaces import DomainSpec, IDomainDriver
from xapi_migrate.migration.claims import Claims
from xapi_migrate.migration.engine import Engine
from xapi_migrate.migration.host import Host
from xapi_migrate.migration.journal import FileJournals, IJournals
from xapi_migrate.refusals import HostOffline
from xapi_migrate.sm.discovery import Drivers
from xapi_migrate.sm.interfaces import ISR, Attachment
from xapi_migrate.sm.services import SMServices
from xapi_migrate.toolstack.allowed import AllowedOperations
from xapi_migrate.toolstack.bridges import Bridges
from xapi_migrate.toolstack.crashes import Crashes
from xapi_migrate.toolstack.device_calls import DeviceCalls
from xapi_migrate.toolstack.disk_waits import DiskWaits
from xapi_migrate.toolstack.hardware_fields import HardwareFields
from xapi_migrate.toolstack.host_calls import HostCalls
from xapi_migrate.toolstack.leftovers import Leftovers
from xapi_migrate.toolstack.machine_calls import MachineCalls
from xapi_migrate.toolstack.machines import Machines
from xapi_migrate.toolstack.messages import Messages
from xapi_migrate.toolstack.motion import StorageMotion
from xapi_migrate.toolstack.motion_calls import MotionCalls
from xapi_migrate.toolstack.networks import REFUSE, Networks
from xapi_migrate.toolstack.operations import Operations
from xapi_migrate.toolstack.placement import Placement
from xapi_migrate.toolstack.placement_calls import AskOffer, PlacementCalls
from xapi_migrate.toolstack.plugin_calls import Elsewhere, PluginCalls
from xapi_migrate.toolstack.running_records import RunningRecords
from xapi_migrate.toolstack.send_calls import Receiver, SendCalls
from xapi_migrate.toolstack.sender_checks import SenderChecks
from xapi_migrate.toolstack.storage import MakeSR, Storage
from xapi_migrate.toolstack.storage_calls import StorageCalls
from xapi_migrate.toolstack.suspending import Suspending
from xapi_migrate.toolstack.this_host import note_memory
from xapi_migrate.toolstack.unsettled import Unsettled
from xapi_migrate.xenapi.server import XenAPIServer


class Follower(Protocol):
    """Keeps some records true as others change."""

    def stop(self) -> None: ...


class Toolstack:
    """What `migration.host.Toolstack` asks for, by storage, machines and operations."""

    def __init__(
        self, storage: Storage, networks: Networks, machines: Machines, suspending: Suspending,
        operations: Operations, unsettled: Unsettled, disk_waits: DiskWaits, *followers: Follower,
    ) -> None:  # fmt: skip
        self.storage = storage
        self.networks = networks
        self.machines = machines
        self.suspending = suspending
        self.operations = operations
        self.disk_waits = disk_waits
        self.unsettled = unsettled
        self._followers = followers

    async def open(self) -> None:
        """After the domain driver and the SM services were opened, before the engine takes up its migrations."""
        await self.storage.open()
        await self.networks.open()
        await self.machines.open()
        await self.suspending.recover()

    async def close(self) -> None:
        """Let go; SRs stay attached, domains go on."""
        self.storage.stop()
        self.unsettled.stop()
        await self.machines.close()
        self.operations.stop()
        for follower in self._followers:
            follower.stop()

    def sr(self, ref: str) -> ISR:
        return self.storage.sr(ref)

    def disks(self, vm: str) -> list[str]:
        return self.machines.disks(vm)

    def domain_of(self, vm: str) -> str:
        return self.machines.domain_of(vm)

    def set_domain(self, vm: str, domain: str) -> None:
        self.machines.set_domain(vm, domain)

    def spec_of(self, vm: str, domain: str, attachments: Mapping[str, Attachment]) -> DomainSpec:
        return self.machines.spec_of(vm, domain, attachments)

    def check_network(self, network: str) -> None:
        self.networks.check(network)

    def begin_operation(self, vm: str, operation: str, task: str) -> None:
        self.operations.begin_operation(vm, operation, task)

    async def hold(self, vm: str) -> None:
        if not self.domain_of(vm):
            await self.machines.claim(vm)

    def retake_operation(self, vm: str, operation: str, task: str) -> None:
        self.operations.retake_operation(vm, operation, task)

    def end_operation(self, vm: str, task: str) -> None:
        self.machines.let_go(vm, task)
        self.operations.end_operation(vm, task)


def make_toolstack(
    server: XenAPIServer,
    drivers: Drivers,
    make_sr: MakeSR,
    domains: IDomainDriver,
    bridges: Bridges,
    host: str,
    state_dir: Path,
    clock: Any,
    claims: Claims,
    without_bridge: str = REFUSE,
) -> Toolstack:
    """`host` is this host's ref (prepare_host). Its calls are registered with the server."""
    records = server.records
    storage = Storage(records, drivers, make_sr, host, clock)
    operations = Operations(records)
    networks = Networks(records, bridges, without_bridge)
    machines = Machines(records, storage, domains, operations, networks, host, state_dir, claims)
    journals = FileJournals(state_dir / "suspends")
    messages = Messages(records, server.tasks)
    unsettled = Unsettled(records, operations, server.tasks, clock, messages.tell)
    storage.plugged = unsettled.wake
    suspending = Suspending(
        records, storage, machines, domains, operations, journals, host, server.tasks, unsettled
    )  # fmt: skip
    note_memory(records, host, domains.memory())
    running = RunningRecords(records, host, records.get("host", host)["address"], server.tasks.now)
    machines.crashed = Crashes(records, machines, messages, server.tasks, clock).happened
    disk_waits = DiskWaits(records, messages, clock, host)
    domains.watch_disks(disk_waits.of_domain)
    machines.waits = disk_waits.told
    server.dispatcher.register(
        messages,
        HostCalls(records, networks, server.tasks, lambda: domains.memory().free),
        StorageCalls(records, storage),
        MachineCalls(records, machines, suspending, operations, clock, host),
        DeviceCalls(records, operations),
    )
    server.dispatcher.check_fields(HardwareFields(records, operations).checks())
    allowed = AllowedOperations(records)
    return Toolstack(
        storage, networks, machines, suspending, operations, unsettled, disk_waits, running, allowed
    )  # fmt: skip


async def _no_member(host: str, user: str) -> list[str]:
    raise HostOffline(host)


def register_migration_calls(
    server: XenAPIServer, engine: Engine, host: Host, toolstack: Toolstack, motions: IJournals, services: SMServices,
    offer: AskOffer = _no_member,
) -> StorageMotion:  # fmt: skip
    """The calls of today's clients that migrate, for the same `engine` and `host` as VM.receive and VM.migrate. The
    storage motion that they use, whose journals are `motions`. `offer` asks another member of the pool for one."""

    def stream() -> str:
        return host.domains.capabilities().stream

    checks = SenderChecks(server.records, host.ref, stream)
    receiver = Receiver(
        server.records, host.ref, host.toolstack.sr, toolstack.networks, stream, host.claims, host.clock
    )
    motion = StorageMotion(
        server.records, toolstack.storage, toolstack.operations, toolstack.machines, host.domains, checks, motions,
        host.claims, host.clock, engine.turn_within, server.tasks, toolstack.unsettled, host.ref,
    )  # fmt: skip
    placement = Placement(server.records, host.ref, toolstack.networks, host.claims.memory)
    server.dispatcher.register(
        MotionCalls(server.records, motion),
        SendCalls(server.records, engine, receiver, checks, host.peers, motion),
        PlacementCalls(server.records, host.ref, checks, placement, engine, server.tasks, offer),
    )
    return motion


def register_plugin_calls(
    server: XenAPIServer, engine: Engine, host: Host, toolstack: Toolstack, services: SMServices,
    *elsewhere: Elsewhere, lent: bool = False,
) -> None:  # fmt: skip
    """host.call_plugin. `lent`: images are another toolstack's."""
    leftovers = Leftovers(server.records, toolstack.storage, host.domains, services, engine.claims, host.ref, lent)
    server.dispatcher.register(PluginCalls(engine, leftovers, toolstack.unsettled, *elsewhere))
