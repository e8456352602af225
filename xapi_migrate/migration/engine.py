"""All migrations of one host: VM.receive and VM.migrate, their offers, and what an earlier daemon left."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from uuid import uuid4

import attrs
from twisted.internet import defer
from twisted.logger import Logger
from zope.interface import implementer

from ..domains.interfaces import GONE, DomainState
from ..errors import (
    MigrateError,
    OperationNotAllowed,
    UriInvalid,
    VdiInUse,
    VdiNotInMap,
    VmBadPowerState,
)
from ..moment import Moment
from ..refusals import MigrationNotBegun, VmHasNoSuspendVdi
from ..steps import Step
from ..store.interfaces import NULL, Record
from ..together import started
from ..uris.capability import Capability
from ..uris.capability import digest as capability_digest
from . import telling, within_pool
from .disk_users import other_user
from .giving_up import GIVEN_UP
from .host import Host, TaskHandle
from .incoming import Incoming
from .interfaces import IOffers, IReceiving, Outcome
from .journal import JournalFailed, Mark
from .outgoing import OPTIONS, Outgoing, begun_entry, checked_options, outgoing_disks
from .phase2_preparation import document_of
from .queue import Queue
from .receiving import Receiving
from .recovery import Recovery
from .sending import Sending
from .waiting import tell_place, wait_alone, wait_for_turn

log = Logger()
MOST_URIS = 16
MOVABLE = ("Halted", "Suspended", "Running", "Paused")


@attrs.frozen
class Claims:
    """Ids of migrations, refs of VMs, ids of domains, uuids of VDIs, refs of copies."""

    migrations: set[str]
    vms: set[str]
    domains: set[str]
    vdis: set[str]
    copies: set[str]


@implementer(IOffers)
class Engine:
    """`uris_of` makes an offer's URI list for a capability."""

    def __init__(self, host: Host, uris_of: Callable[[Capability], list[str]]) -> None:
        self._host = host
        self._uris_of = uris_of
        self._incoming: dict[str, Receiving] = {}
        self._outgoing: dict[str, Sending] = {}
        self._waiting: set[Moment[None]] = set()
        self._stopped = False
        self._sends = Queue(host.config.sends_at_once)
        self._receives = Queue(host.config.receives_at_once)
        self._later: set[defer.Deferred[None]] = set()
        host.later = self._let_go_on
        self._recovery = Recovery(host, self._sends, self._expect, self._follow)
        host.domains.watch(self._domain_changed)

    # -- the client's calls -------------------------------------------------------------------

    async def receive(self, sr: str, options: dict[str, str], user: str = "", session: str = "") -> list[str]:
        """VM.receive (1.2): the URI list of a new offer. `sr` is where disks go that VM.migrate's map does not
        name; NULL: every disk must be named. `session`: with which the host's keeper is asked. HandleInvalid,
        SrNotAttached."""
        options = checked_options(options, OPTIONS - {"copy"}, self._host.config.test_options)
        if sr != NULL:
            self._host.toolstack.sr(sr)
        capability = Capability.new()
        migration = str(uuid4())
        story = self._host.story("receiver", migration)
        story.step(Step.VM_RECEIVE, f"offer to {user or 'a client'}")
        incoming = Incoming(
            id=migration,
            host=self._host,
            story=story,
            journal=self._host.journals.begin("receiver", migration),
            sr=sr,
            digest=capability.digest.hex(),
            options=options,
            session=session,
        )
        self._expect(incoming).offer()
        return self._uris_of(capability)

    async def migrate(
        self,
        vm: str,
        uris: list[str],
        vdi_to_sr: dict[str, str],
        options: dict[str, str],
        task: TaskHandle,
        vif_to_network: dict[str, str] | None = None,
        operation: str = "migrate_send",
        begins: Callable[[], Awaitable[None]] | None = None,
    ) -> str:
        """VM.migrate (1.4): the VM's ref when it is at the receiver. Every check that needs nobody else comes first;
        then it waits its turn. `begins` is called when that has come, before anything is written down: a daemon that is
        killed earlier leaves nothing of it.
        A VIF that `vif_to_network` does not name goes to the receiver's network of the same name."""
        host = self._host
        self._check(vm)
        options = checked_options(options, OPTIONS, host.config.test_options)
        copying = options.get("copy") == "true"
        if copying:
            self._check_copy(vm, vdi_to_sr)
        if not uris:
            raise UriInvalid("an empty list", "VM.receive on the receiving host gives the URIs")
        if len(uris) > MOST_URIS:
            raise UriInvalid(f"a list of {len(uris)}", f"at most {MOST_URIS} are tried")
        peer = host.peers(uris)
        migration = str(uuid4())
        story = host.story("sender", migration)
        host.toolstack.begin_operation(vm, operation, task.ref)
        turn = self._sends.join(lambda behind: tell_place(task, "to be sent", behind))
        try:
            await host.toolstack.hold(vm)
            await self._wait(partial(wait_for_turn, host, turn, task, peer, story))
            record = self._check(vm)  # it may have shut down meanwhile
            if copying:
                self._check_copy(vm, vdi_to_sr)
            disks = outgoing_disks(host, vm)
            for disk in disks:
                if other := other_user(host.records, host.ref, disk.vdi, (vm,)):
                    raise VdiInUse(disk.vdi, f"it is a disk of {other} too, which uses it now")
            copy_ref = f"OpaqueRef:{uuid4()}" if copying else ""
            stays = copying or options.get("keep_source") == "true"
            member = "" if stays else within_pool.proof(host.records, uris, vm)
            outgoing = Outgoing(
                id=migration,
                host=host,
                task=task,
                story=story,
                journal=host.journals.begin("sender", migration),
                peer=peer,
                uris=uris,
                vm=vm,
                vm_uuid=record["uuid"],
                vm_name=record["name_label"],
                power_state=record["power_state"],
                domain=host.toolstack.domain_of(vm),
                disks=disks,
                document=document_of(host, vm, disks, vdi_to_sr, vif_to_network or {}, options, copy_ref, member),
                options=options,
                turn=turn,
                copy_ref=copy_ref,
                given_up=record.get(GIVEN_UP, ""),
            )
            story.step(Step.VM_MIGRATE, f"VM {record['uuid']} {record['name_label']!r}")
            if begins is not None:
                await begins()
            try:
                await outgoing.journal.record(Mark.BEGUN, **begun_entry(outgoing))
            except JournalFailed as why:
                raise telling.failure(outgoing, str(why), why) from None
        except BaseException:
            host.toolstack.end_operation(vm, task.ref)
            peer.close()
            turn.end()
            raise
        sending = self._follow(outgoing)
        sending.begin()
        return await sending.ended.wait()

    def _check(self, vm: str) -> Record:
        """The record of a VM that can be sent. OperationNotAllowed, VmBadPowerState, VmHasNoSuspendVdi."""
        record = self._host.records.get("VM", vm)
        if record["is_a_template"] or record["is_control_domain"]:
            raise OperationNotAllowed(f"The VM {vm} is a template or a control domain, which cannot be migrated.")
        if record["power_state"] not in MOVABLE:
            raise VmBadPowerState(vm, ", ".join(MOVABLE).lower(), record["power_state"].lower())
        if record["power_state"] == "Suspended" and record["suspend_VDI"] == NULL:
            raise VmHasNoSuspendVdi(vm)
        return record

    @asynccontextmanager
    async def turn_within(self, task: TaskHandle) -> AsyncIterator[None]:
        """For disks that move within this host, which is as much work for it as if they left: they wait their turn with
        the VMs that are sent, and have it inside. TaskCancelled, MigrationNotBegun."""
        turn = self._sends.join(lambda behind: tell_place(task, "to be moved", behind))
        try:
            await self._wait(partial(wait_alone, turn, task))
            yield
        finally:
            turn.end()

    async def _wait(self, waiting: Callable[[Moment[None]], Awaitable[None]]) -> None:
        """`waiting` is told when the daemon ends."""
        if self._stopped:
            raise MigrationNotBegun
        over: Moment[None] = Moment()
        self._waiting.add(over)
        try:
            await waiting(over)
        finally:
            self._waiting.discard(over)

    def _check_copy(self, vm: str, vdi_to_sr: dict[str, str]) -> None:
        """A disk that no map names may be found at the receiver, and then two VMs would have it."""
        records = self._host.records
        if (state := records.get("VM", vm)["power_state"]) != "Halted":
            raise VmBadPowerState(vm, "halted", state.lower())
        for vbd in self._host.toolstack.disks(vm):
            if (vdi := records.get("VBD", vbd)["VDI"]) not in vdi_to_sr:
                raise VdiNotInMap(vdi)

    # -- the administrator's --------------------------------------------------------------------

    async def settle(self, vm: str, outcome: Outcome) -> None:
        """`force-settle`: the sender of the VM with this uuid, which is in doubt, takes `outcome` for what the receiver
        has decided. COMMITTED: the domain goes, the VM stays here, Halted, with its disks. ABORTED: it runs on here.
        Fires when that is done. OperationNotAllowed."""
        for sending in self._outgoing.values():
            if sending.migration.vm_uuid == vm:
                ended = sending.ended.wait()
                sending.settle(outcome)
                await ended.addErrback(lambda failure: failure.trap(MigrateError) and None)
                return
        raise OperationNotAllowed(f"No migration of a VM {vm} is under way on this host.")

    def ending(self, vm: str, task: str) -> defer.Deferred[str] | None:
        """The end of the migration of this VM that an earlier daemon began with this task, as `migrate` has it: its
        ref, or why it stays. None if no journal tells of it."""
        ended = self._recovery.ended.get((vm, task))
        return ended.wait() if ended is not None else None

    def in_doubt(self) -> list[str]:
        """The uuids of the VMs whose sender waits for the receiver's word."""
        return [sending.migration.vm_uuid for sending in self._outgoing.values() if sending.in_doubt]

    def claims(self) -> Claims:
        """What the migrations under way need, so that nobody takes it for left behind."""
        plans = [incoming.migration.plan for incoming in self._incoming.values() if incoming.migration.plan]
        sendings = [sending.migration for sending in self._outgoing.values()]
        return Claims(
            migrations={incoming.migration.id for incoming in self._incoming.values()} | {one.id for one in sendings},
            vms={plan.vm for plan in plans} | {plan.final_ref for plan in plans} | {one.vm for one in sendings},
            domains={plan.domain for plan in plans} | {one.domain for one in sendings},
            vdis={disk.vdi_uuid for plan in plans for disk in plan.disks}
            | {disk.vdi_uuid for one in sendings for disk in one.disks},
            copies={disk.copy for one in sendings for disk in one.disks},
        )

    def receives(self, migration: str) -> bool:
        """Whether this incoming migration is under way, or not yet acknowledged."""
        return any(incoming.migration.id == migration for incoming in self._incoming.values())

    # -- IOffers ------------------------------------------------------------------------------

    def find(self, capability: str) -> IReceiving | None:
        # Looked up by its digest: how long that takes says nothing about the capability.
        return self._incoming.get(capability_digest(capability).hex())

    # -- life of the daemon -------------------------------------------------------------------

    async def start(self, task_of: Callable[[str, str], TaskHandle]) -> None:
        """Take up what an earlier daemon left, before this one listens: every receiver without a decision has aborted
        when this fires. `task_of(ref, label)` gives the task that the client watches, or a new one."""
        await self._recovery.take_up_all(task_of)

    async def stop(self) -> None:
        """Let go of everything, undo nothing. What waits its turn ends, for it could not be found again."""
        self._stopped = True
        for over in list(self._waiting):
            over.fail(MigrationNotBegun())
        for sending in list(self._outgoing.values()):
            sending.let_go()
        for receiving in list(self._incoming.values()):
            receiving.let_go()
        for work in list(self._later):
            work.cancel()

    def _expect(self, incoming: Incoming) -> Receiving:
        receiving = self._incoming[incoming.digest] = Receiving(incoming, self._receives, self._forget_incoming)
        return receiving

    def _follow(self, outgoing: Outgoing) -> Sending:
        sending = self._outgoing[outgoing.id] = Sending(outgoing)
        sending.ended.wait().addBoth(lambda _: self._outgoing.pop(outgoing.id, None) and None)
        return sending

    def _forget_incoming(self, receiving: Receiving) -> None:
        self._incoming.pop(receiving.migration.digest, None)
        self._let_go_on(receiving.migration.journal.remove())

    def _let_go_on(self, work: Awaitable[None]) -> None:
        running = started(work)
        self._later.add(running)

        def ended(result: object) -> None:
            self._later.discard(running)

        running.addErrback(lambda failure: failure.trap(defer.CancelledError) and None)
        running.addErrback(lambda failure: log.failure("after a migration", failure))
        running.addBoth(ended)

    def _domain_changed(self, domain: str, state: DomainState) -> None:
        """A domain that ends by itself while it is being sent ends its migration."""
        if state in GONE:
            # Later, because it may be told from within the very work that is to be stopped.
            self._host.clock.callLater(0, self._domain_ended, domain, state)

    def _domain_ended(self, domain: str, state: DomainState) -> None:
        for sending in list(self._outgoing.values()):
            if sending.migration.domain == domain:
                sending.domain_ended(telling.ended(self._host, domain, state, "be sent"))
        for receiving in list(self._incoming.values()):
            plan = receiving.migration.plan
            if plan is not None and plan.domain == domain:
                receiving.domain_ended(telling.ended(self._host, domain, state, "be received"))
