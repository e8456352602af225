"""Phase 4, memory transfer, on the receiver: steps 4.1 and 4.2."""

from __future__ import annotations

from ..sm.interfaces import Attachment, Purpose
from ..steps import Step
from .incoming import Incoming


async def receive_memory(migration: Incoming) -> None:
    """Attach the VDIs with their gates shut, build the domain, let it read the stream; it ends paused. DomainError."""
    plan, host = migration.plan, migration.host
    assert plan is not None and migration.memory is not None
    migration.story.step(Step.PUT_MEMORY, f"memory of domain {plan.domain}")
    attachments = await attach_disks(migration)
    spec = host.toolstack.spec_of(plan.vm, plan.domain, attachments)
    migration.restoration = await host.domains.restore(spec, migration.memory.fileno())
    host.claims.has_domain(migration.id)
    await migration.restoration.accepting()
    migration.memory.taken()
    await migration.restoration.finished()
    migration.story.note(f"domain {plan.domain} is complete and paused")


async def attach_disks(migration: Incoming) -> dict[str, Attachment]:
    """Step 4.2: VDI.attach for the domain; by VBD ref."""
    assert migration.plan is not None
    attachments: dict[str, Attachment] = {}
    for disk in migration.plan.disks:
        migration.story.step(Step.VDI_ATTACH, f"VDI.attach of disk {disk.number}, its gate shut")
        attachments[disk.vbd] = await migration.sr_of(disk).vdi_attach(disk.vdi_uuid, Purpose.DOMAIN)
    return attachments
