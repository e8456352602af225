"""VM.migrate of the upstream's VMs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Protocol

from twisted.internet import defer
from twisted.logger import Logger

from ..errors import IncompatibleHost, OperationNotAllowed, OtherOperationInProgress, VmBadPowerState
from ..migration.interfaces import Outcome
from ..migration.outgoing import is_on
from ..refusals import MigrationNotBegun
from ..together import started
from ..toolstack.destination import Destination, read_destination
from ..toolstack.leftovers import Leftover
from ..xenapi.calls import CallContext
from ..xenapi.tasks import Task
from .client import UpstreamClient
from .images import can_resume
from .lease import HELD, KEPT, MOVED, MOVING, Lease, Leases
from .reading import Seen, check, read_disk, read_vm, record_of
from .settling import Settling
from .shadow import Shadows

_TOLD = {
    HELD: ("it stays, and the toolstack could not be told yet", "it is unlocked at the toolstack"),
    MOVED: ("it has moved, and the toolstack could not be told yet",
            "the toolstack destroys it, with the disks of which the receiver has copies"),
    KEPT: ("it was said that it has moved, and the toolstack could not be told yet",
           "it stays at the toolstack with its disks, locked for all but VM.destroy"),
}  # fmt: skip
"""Of a lock in each state, why it is left and what removing it does."""


class SendingEngine(Protocol):
    """What is needed of the engine."""

    def migrate(
        self, vm: str, uris: list[str], vdi_to_sr: dict[str, str], options: dict[str, str], task: Task,
        vif_to_network: dict[str, str] | None = None, *, begins: Callable[[], Awaitable[None]],
    ) -> Awaitable[str]:  # fmt: skip
        """The VM's ref when it is at the receiver; any failure but CancelledError: it stays where it was. `begins` is
        called when its turn has come: before, nothing is left of it by a daemon that is killed."""

    def ending(self, vm: str, task: str) -> defer.Deferred[str] | None:
        """The end of the migration of this VM that an earlier daemon began with this task, as `migrate` has it; None if
        nothing tells of it."""


class UpstreamMoves:
    """Sends Halted and Suspended VMs, by the upstream's calls and with the session of who called. `begin` after the
    engine has taken up what an earlier daemon left."""

    log = Logger()

    def __init__(
        self, client: UpstreamClient, leases: Leases, shadows: Shadows, engine: SendingEngine, clock: Any
    ) -> None:
        self._client = client
        self._leases = leases
        self._shadows = shadows
        self._engine = engine
        self._under_way: set[defer.Deferred[None]] = set()
        self._settling = Settling(leases.settle_all, clock, "VMs of the toolstack stay locked for now")
        self._stopping = False

    async def begin(self) -> None:
        """Go on with what an earlier daemon was doing. A VM of which it cannot be known where it is stays locked."""
        await self._leases.load()
        for lease in list(self._leases.known.values()):
            if lease.state != MOVING:
                self._shadows.drop(lease.vm, lease.vdis)
                continue
            ending = self._engine.ending(lease.vm, lease.task)
            if ending is None:
                self.log.error(
                    "It is not known whether VM {vm} of the toolstack has moved: it stays locked. See "
                    "`xapi-migrate force-settle`",
                    vm=lease.name,
                )  # fmt: skip
                continue
            self._leases.active.add(lease.id)
            work = started(self._follow(lease, ending))
            self._under_way.add(work)
            work.addErrback(lambda failure: failure.trap(defer.CancelledError) and None)
            work.addErrback(lambda failure: self.log.failure("after a migration", failure))
            work.addBoth(lambda _, work=work: self._under_way.discard(work))  # type: ignore[call-overload]
        self._settling.start()

    def stop(self) -> None:
        """Let go; the next daemon goes on."""
        self._stopping = True
        self._settling.stop()
        for work in list(self._under_way):
            work.cancel()

    # -- calls -----------------------------------------------------------------------------------

    async def VM_migrate(
        self, call: CallContext, vm: str, uris: list[str], vdi_sr_map: dict[str, str], options: dict[str, str]
    ) -> str:
        return await self._send(call, vm, uris, vdi_sr_map, options, {})

    async def VM_assert_can_migrate(
        self, call: CallContext, vm: str, dest: dict[str, str], live: bool, vdi_map: dict[str, str],
        vif_map: dict[str, str], options: dict[str, str], vgpu_map: dict[str, str],
    ) -> None:  # fmt: skip
        """To a host that made an offer of ours; every other destination is the upstream's business."""
        there = read_destination(dest)
        _refuse_images(await read_vm(self._client, call.session, vm), there)
        _refuse_copies(vm, options)

    async def VM_migrate_send(
        self, call: CallContext, vm: str, dest: dict[str, str], live: bool, vdi_map: dict[str, str],
        vif_map: dict[str, str], options: dict[str, str], vgpu_map: dict[str, str], vdi_format_map: dict[str, str],
    ) -> str:  # fmt: skip
        """The same. Options that are not known are without effect, as clients expect: each sends some of its own."""
        there = read_destination(dest)
        _refuse_copies(vm, options)
        return await self._send(call, vm, list(there.uris), vdi_map, {}, vif_map, there)

    async def _send(
        self, call: CallContext, vm: str, uris: list[str], vdi_map: dict[str, str], options: dict[str, str],
        vif_map: dict[str, str], there: Destination | None = None,
    ) -> str:  # fmt: skip
        await self._leases.settle_all(call.session)
        for lease in self._leases.known.values():
            if lease.vm == vm:
                raise OtherOperationInProgress("VM", vm, "migrate_send", lease.id)
        seen = await read_vm(self._client, call.session, vm)
        _refuse_copies(vm, options)
        if there is not None:
            _refuse_images(seen, there)
        name = str(seen.record.get("name_label") or seen.record["uuid"])
        call.task.set_other("XenCenterMeddlingActionTitle", f"Migrating {name}")
        call.task.set_other("applies_to", vm)
        lease = await self._leases.take(vm, str(seen.record["uuid"]), call.session, list(seen.vdis))
        try:
            # it may have been started between the look and the lock, or another VM may have got a disk
            now = await record_of(self._client, call.session, "VM", vm)
            check(vm, now)
            if now["power_state"] != seen.record["power_state"]:
                raise VmBadPowerState(vm, seen.record["power_state"].lower(), now["power_state"].lower())
            of = {vbd["VDI"]: ref for ref, vbd in seen.vbds.items()}
            for vdi in seen.vdis:
                await read_disk(self._client, call.session, vdi, of.get(vdi, ""))
            await self._shadows.cast(seen)
        except BaseException:
            lease.state = HELD
            await self._over(lease)
            raise

        async def begins() -> None:
            lease.state, lease.task = MOVING, call.task.ref
            await self._leases.save(lease)

        sending = self._engine.migrate(vm, uris, vdi_map, options, call.task, vif_map, begins=begins)
        return await self._follow_to_end(lease, started(sending))

    # -- the end of a migration ------------------------------------------------------------------

    async def _follow_to_end(self, lease: Lease, ending: defer.Deferred[str]) -> str:
        try:
            ref = await ending
        except Exception as why:
            begun = not isinstance(why, MigrationNotBegun)
            if self._stopping and begun:
                raise  # this daemon ends: the next one will know how it went
            lease.state = HELD
            await self._leases.save(lease)
            if not self._stopping:
                await self._over(lease)
            raise
        if lease.forced:
            lease.state = KEPT
        else:
            lease.forget = self._shadows.left(lease.vdis)
            lease.destroy = [vdi for vdi in lease.vdis if vdi not in lease.forget]
            lease.state = MOVED
        await self._leases.save(lease)
        await self._over(lease)
        return ref

    async def _follow(self, lease: Lease, ending: defer.Deferred[str]) -> None:
        try:
            await self._follow_to_end(lease, ending)
        except defer.CancelledError:
            raise
        except Exception as failed:
            self.log.info("VM {vm} stays: {why}", vm=lease.vm, why=str(failed))

    async def _over(self, lease: Lease) -> None:
        """The engine is done with it."""
        self._shadows.drop(lease.vm, lease.vdis)
        await self._leases.settle(lease)
        self._leases.active.discard(lease.id)

    # -- what an administrator may ask and say -----------------------------------------------------

    receiving = False

    async def left(self, session: str) -> list[Leftover]:
        """VMs that stay locked because the toolstack could not be told how it ended; `session` removes."""
        return self._leases.unreadable() + [
            Leftover("lock", lease.name, *_TOLD[lease.state], partial(self._leases.undo, lease, session))
            for lease in self._leases.known.values() if lease.state != MOVING and lease.id not in self._leases.active
        ]  # fmt: skip

    def in_doubt(self) -> list[str]:
        """The VMs of which nothing says whether they have moved."""
        return [lease.name for lease in self._lost()]

    async def settle(self, vm: str, outcome: Outcome, session: str) -> bool:
        """Somebody says of a VM by its uuid whether it has moved. True: it is done; False: it is for the engine to do,
        which knows of it. If it cannot be told the toolstack, the VM stays locked until it can. OSError."""
        moved = outcome is Outcome.COMMITTED
        for lease in self._lost():
            if lease.name == vm:
                lease.state = KEPT if moved else HELD
                await self._leases.save(lease)
                self._shadows.drop(lease.vm, lease.vdis)
                await self._leases.settle(lease, session)
                return True
        for lease in self._leases.known.values():
            if lease.name == vm and moved and lease.state == MOVING:
                lease.forced = True
                await self._leases.save(lease)
        return False

    def _lost(self) -> list[Lease]:
        known = self._leases.known.values()
        return [lease for lease in known if lease.state == MOVING and lease.id not in self._leases.active]


def _refuse_images(seen: Seen, there: Destination) -> None:
    """The receiver refuses them too: this is to say it sooner."""
    about = there.about
    if seen.image_form and about is not None and not can_resume(about.stream, seen.image_form):
        reason = f"its suspend image is of the form {seen.image_form}, this host resumes {about.stream}"
        raise IncompatibleHost(str(seen.record["uuid"]), there.host, reason)


def _refuse_copies(vm: str, options: dict[str, str]) -> None:
    if is_on(options, "copy"):
        raise OperationNotAllowed(f"The VM {vm} belongs to the toolstack, which copies its VMs itself (VM.copy).")
