"""A VM's metadata, imported at the upstream: PUT /import_metadata.

The upstream answers 200 before it has read the body. What becomes of it, its task says, which is made before.
"""

from __future__ import annotations

import tarfile
from contextlib import suppress
from typing import Any

from twisted.internet import task as tasks

from ..errors import MigrateError, OperationNotAllowed, RemoteError
from ..migration.incoming import Plan
from ..migration.metadata_export import export_objects, version
from ..migration.metadata_xml import write_value
from ..store.interfaces import IRecords
from .arrival import Arrival
from .client import UpstreamClient
from .reading import MARK
from .refusals import UpstreamSilent

SECONDS = 300.0
"""How long an import may take."""
BETWEEN = 0.5
"""Seconds between questions how it goes."""
_PINNED = ("machine", "cpu")
"""Keys of platform that are only understood here."""


def archive_of(records: IRecords, plan: Plan, arrival: Arrival) -> bytes:
    """The hidden VM as it is to be at the upstream: under its own uuid, in its power state, and a template until
    COMMIT. Its disks are mapped to VDIs of the upstream's, its VIFs to networks."""
    hidden = records.get("VM", plan.vm)
    image = next((disk.vdi for disk in plan.disks if not disk.vbd), "OpaqueRef:NULL")
    record = {
        **hidden, "uuid": plan.final_uuid, "power_state": plan.power_state, "is_a_template": True, "suspend_VDI": image,
        "other_config": {**hidden["other_config"], MARK: arrival.id},
        "platform": {key: value for key, value in hidden["platform"].items() if key not in _PINNED},
    }  # fmt: skip
    networks = {vif: records.get("VIF", vif)["network"] for vif in hidden["VIFs"]}
    vbds = [disk.vbd for disk in plan.disks if disk.vbd]
    vdis = {disk.vdi: disk.vdi for disk in plan.disks}
    objects, _ = export_objects(records, plan.vm, record, vbds, vdis, networks)
    return _in_tar(write_value({"version": version(), "objects": objects}))


def _in_tar(document: bytes) -> bytes:
    """Not padded to a whole record of tape: what the upstream leaves unread could cost its answer."""
    about = tarfile.TarInfo("ova.xml")
    about.size = len(document)
    block = tarfile.BLOCKSIZE
    return about.tobuf(tarfile.USTAR_FORMAT) + document + bytes(-len(document) % block) + bytes(2 * block)


async def begin_import(client: UpstreamClient, session: str, label: str) -> str:
    """The task of an import that is to come. RemoteError, UpstreamSilent."""
    return str(await client.call("task.create", session, label, "xapi_migrate receives it from another host"))


async def import_metadata(
    client: UpstreamClient, clock: Any, session: str, task: str, archive: bytes, dry_run: bool = False
) -> None:
    """It has succeeded when this fires; the task is gone. RemoteError with the upstream's words if it refused;
    UpstreamSilent: it is not known, and the task may still be under way."""
    query = b"?restore=true" + b"&dry_run=true" * dry_run
    try:
        await client.put(b"/import_metadata" + query, archive, f"session_id={session}; task_id={task}", SECONDS)
    except (OperationNotAllowed, RemoteError):
        with suppress(MigrateError):
            await client.call("task.destroy", session, task)  # nobody will end it
        raise
    until = clock.seconds() + SECONDS
    while (status := await client.call("task.get_status", session, task)) == "pending":
        if clock.seconds() > until:
            raise UpstreamSilent.after("the receiving host", "the import does not end", True)
        await tasks.deferLater(clock, BETWEEN)
    said = await client.call("task.get_error_info", session, task)
    await client.call("task.destroy", session, task)
    if status != "success":
        words = [str(word)[:1000] for word in said[:20]] if isinstance(said, list) else []
        words = words or ["IMPORT_ERROR", f"its task is {status!s:.20}"]
        raise RemoteError(words, ": ".join(words))
