"""Phase 2, preparation, on the sender: steps 2.1 to 2.5. (The receiver's half is phase2_receiving.)"""

from __future__ import annotations

from functools import partial

from twisted.internet import task

from ..errors import CopyFailed
from ..steps import Step
from .host import Host
from .metadata_export import export_vm
from .outgoing import Outgoing, OutgoingDisk
from .patience import patiently
from .waiting import tell_place


def document_of(
    host: Host,
    vm: str,
    disks: list[OutgoingDisk],
    vdi_to_sr: dict[str, str],
    vif_to_network: dict[str, str],
    options: dict[str, str],
    copy_ref: str,
    member: str,
) -> bytes:
    """The VM's metadata with the maps of VM.migrate. `member`: what shows that this host is of the receiver's pool."""
    capabilities = host.domains.capabilities()
    record = host.records.get("VM", vm)
    platform = record["platform"]
    form = record.get("_image_form") or capabilities.stream  # of a suspend image that another toolstack wrote
    about = {
        "stream": form if record["power_state"] != "Halted" else "",
        "machine": platform.get("machine") or capabilities.machine,
        "cpu": platform.get("cpu") or capabilities.cpu,
        "leave_paused": options.get("leave_paused") == "true",
        **({"member": member} if member else {}),
    }
    return export_vm(
        host.records, vm, [disk.vbd for disk in disks if disk.vbd], vdi_to_sr, vif_to_network, about, copy_ref
    )


async def _put_metadata(migration: Outgoing) -> None:
    """Again and again while other migrations come before this one at the receiver."""
    put = partial(migration.peer.put_metadata, migration.document)
    try:
        while behind := await patiently(migration, put):
            tell_place(migration.task, f"to be received by {migration.peer.destination}", behind)
            migration.story.note(f"waits behind {behind} other migrations to the receiver")
            await task.deferLater(migration.host.clock, migration.host.config.times.poll)
    finally:
        tell_place(migration.task, "", 0)


async def prepare(migration: Outgoing) -> None:
    """Put the metadata, get every disk's URL. Both may be repeated, so a receiver that is silent is asked again: its
    daemon may be starting."""
    migration.story.step(Step.PUT_METADATA, f"{len(migration.document)} bytes of metadata")
    await migration.host.records.flush()  # a receiver of this pool looks for the VM in the database
    await _put_metadata(migration)
    for disk in migration.disks:
        first = disk.number == 0
        migration.story.step(Step.GET_DISK if first else Step.GET_DISK_NEXT, f"GET disk/{disk.number}")
        offer = disk.offer = await patiently(migration, partial(migration.peer.get_disk, disk.number))
        url = offer.url.url
        migration.story.step(Step.GET_URL if first else Step.GET_URL_NEXT, f"disk {disk.number} goes to {url}")
        if offer.virtual_size != disk.size:
            raise CopyFailed(
                disk.vdi_uuid,
                f"it has {disk.size} bytes and the receiver's VDI has {offer.virtual_size}",
            )
    migration.task.set_progress(0.05)
