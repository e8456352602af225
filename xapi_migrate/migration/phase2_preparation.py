"""Phase 2, preparation, on the sender: steps 2.1 to 2.5. (The receiver's half is phase2_receiving.)"""

from __future__ import annotations

from twisted.internet import task

from ..errors import CopyFailed
from ..steps import Step
from .metadata_export import export_vm
from .outgoing import Outgoing
from .waiting import tell_place


async def _put_metadata(migration: Outgoing, document: bytes) -> None:
    """Again and again while other migrations come before this one at the receiver."""
    try:
        while behind := await migration.peer.put_metadata(document):
            tell_place(migration.task, f"to be received by {migration.peer.destination}", behind)
            migration.story.note(f"waits behind {behind} other migrations to the receiver")
            await task.deferLater(migration.host.clock, migration.host.config.times.poll)
    finally:
        tell_place(migration.task, "", 0)


async def prepare(migration: Outgoing) -> None:
    """Put the metadata, get every disk's URL."""
    capabilities = migration.host.domains.capabilities()
    about = {"stream": capabilities.stream if migration.power_state != "Halted" else ""}
    platform = migration.host.records.get("VM", migration.vm)["platform"]
    about["machine"] = platform.get("machine") or capabilities.machine
    about["cpu"] = platform.get("cpu") or capabilities.cpu
    document = export_vm(
        migration.host.records,
        migration.vm,
        [disk.vbd for disk in migration.disks if disk.vbd],
        migration.vdi_to_sr,
        migration.vif_to_network,
        {**about, "leave_paused": migration.options.get("leave_paused") == "true"},
        migration.copy_ref,
    )
    migration.story.step(Step.PUT_METADATA, f"{len(document)} bytes of metadata")
    await _put_metadata(migration, document)
    for disk in migration.disks:
        first = disk.number == 0
        migration.story.step(Step.GET_DISK if first else Step.GET_DISK_NEXT, f"GET disk/{disk.number}")
        disk.offer = await migration.peer.get_disk(disk.number)
        url = disk.offer.url.url
        migration.story.step(Step.GET_URL if first else Step.GET_URL_NEXT, f"disk {disk.number} goes to {url}")
        if disk.offer.virtual_size != disk.size:
            raise CopyFailed(
                disk.vdi_uuid,
                f"it has {disk.size} bytes and the receiver's VDI has {disk.offer.virtual_size}",
            )
    migration.task.set_progress(0.05)
