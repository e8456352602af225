"""Phase 4, memory transfer, on the sender: steps 4.1, 4.3 to 4.5. (The receiver's half is phase4_receiving.)"""

from __future__ import annotations

from zope.interface import implementer

from ..domains.interfaces import ISuspension
from ..errors import CopyFailed
from ..moment import Moment
from ..sm.interfaces import CopyState
from ..steps import Step
from ..together import started, together, unless
from .interfaces import IOutgoingMemory
from .outgoing import Outgoing, OutgoingDisk


@implementer(IOutgoingMemory)
class MemoryOfDomain:
    """The live suspend stream of a domain."""

    def __init__(self, migration: Outgoing) -> None:
        capabilities = migration.host.domains.capabilities()
        self.takes_socket = capabilities.takes_socket
        self.stream = capabilities.stream
        self._migration = migration
        self.begun: Moment[ISuspension] = Moment()

    async def begin(self, fd: int) -> None:
        migration = self._migration
        live = migration.options.get("live", "true") != "false"
        migration.suspension = await migration.host.domains.suspend(migration.domain, fd, live)
        self.begun.happen(migration.suspension)

    async def finished(self) -> None:
        suspension = await self.begun.wait()
        await suspension.finished()


async def send_memory(migration: Outgoing) -> None:
    """Steps 4.1 to 4.3: fires when the domain has finally suspended; the stream goes on."""
    memory = MemoryOfDomain(migration)
    migration.story.step(Step.PUT_MEMORY, f"live suspend stream of domain {migration.domain}")
    migration.memory_put = put = started(migration.peer.put_memory(memory))
    suspension = await unless(memory.begun.wait(), put)
    await unless(suspension.suspended(), put)
    migration.suspended_at = migration.host.clock.seconds()
    migration.story.step(Step.SUSPENDED, "the domain has finally suspended")


async def release(migration: Outgoing) -> None:
    """Steps 4.4 and 4.5, and the receiver's answer to 4.1. The rest of the stream goes out meanwhile: the domain's
    processors are stopped and its I/O is complete, so neither waits for the other."""
    migration.story.step(Step.DEACTIVATE, f"VDI.deactivate of {len(migration.disks)} disks")
    await together(_end_stream(migration), *(_deactivate(migration, disk) for disk in migration.disks))
    migration.story.step(Step.ALL_FINISHED, "all copies are finished, the receiver has the memory")


async def _end_stream(migration: Outgoing) -> None:
    suspension, put = migration.suspension, migration.memory_put
    if suspension is None or put is None:
        return
    # The hypervisor's own reason says more than the receiver's, who only sees the stream break off.
    finished = started(suspension.finished())
    try:
        await suspension.proceed()
        await unless(put, finished)
        migration.story.note("the receiver has the memory")
    finally:
        finished.addErrback(lambda _: None)


async def _deactivate(migration: Outgoing, disk: OutgoingDisk) -> None:
    if migration.domain:
        await disk.sr.vdi_deactivate(disk.vdi_uuid)
    else:
        await disk.sr.copy_finish(disk.copy)
    disk.status = await disk.sr.copy_state(disk.copy)
    if disk.status.state is not CopyState.FINISHED:
        raise CopyFailed(
            disk.vdi_uuid, disk.status.error or f"its datapath went while it was {disk.status.state.value}"
        )
    migration.story.note(f"disk {disk.number} is deactivated, its copy finished")
