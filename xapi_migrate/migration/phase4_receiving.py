"""Phase 4, memory transfer, on the receiver: steps 4.1 and 4.2."""

from __future__ import annotations

from ..errors import ImportError_
from ..sm.interfaces import Attachment, Purpose
from ..steps import Step
from .incoming import Incoming


async def check_seen(migration: Incoming) -> None:
    """Before a disk that was found is taken: its sender has shown that he sees the SR (3.3). Whoever knows its uuid
    could name it else, while a third host's VM uses it. Members of a pool know each other. ImportError_."""
    plan = migration.plan
    assert plan is not None
    for disk in plan.disks:
        if disk.found and not plan.in_pool and not await migration.sr_of(disk).proof_is_seen(migration.id):
            raise ImportError_(
                f"VDI {disk.vdi_uuid} of the VM {plan.final_uuid} was found on host {migration.host.name}, and its "
                f"sender has not shown that it sees the SR {disk.sr_uuid}"
            )


async def receive_memory(migration: Incoming) -> None:
    """Attach the VDIs with their gates shut, build the domain, let it read the stream; it ends paused. DomainError."""
    plan, host = migration.plan, migration.host
    assert plan is not None and migration.memory is not None
    migration.story.step(Step.PUT_MEMORY, f"memory of domain {plan.domain}")
    await check_seen(migration)
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
