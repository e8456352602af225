"""One VM of the upstream's as its API tells it, with all that is needed to send it, and what speaks against that."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from ..errors import OperationNotAllowed, OtherOperationInProgress, SrNotAttached, VmBadPowerState
from ..refusals import OperationBlocked, VmHasNoSuspendVdi, VmIsSnapshot, VmIsTemplate
from ..store.interfaces import NULL
from ..uuids import UUID
from .client import UpstreamClient
from .images import image_form

MOST_DEVICES = 64
OURS = "xapi_migrate:"
"""What our reasons in blocked_operations begin with."""
PLUG = "xapi_migrate"
"""In the other_config of a VBD: by which lock it was made, see plugs.py."""
MARK = "xapi_migrate_arrival"
"""The key of other_config with the migration's id, of what is received; see arrival.py."""
_OPERATION = "migrate_send"
_NAMES_FILES = ("VM", "VDI")
"""Of objects of these classes the uuid is a name of files and folders here."""
Raw = dict[str, Any]


@attrs.frozen
class Seen:
    """Records by reference. `pbds`: for each SR that of the host. `image_form`: of a Suspended VM's image, which is one
    of `vdis`."""

    vm: str
    record: Raw
    vbds: Mapping[str, Raw]
    vdis: Mapping[str, Raw]
    srs: Mapping[str, Raw]
    pbds: Mapping[str, Raw]
    vifs: Mapping[str, Raw]
    networks: Mapping[str, Raw]
    image_form: str = ""


async def record_of(client: UpstreamClient, session: str, cls: str, ref: Any) -> Raw:
    """OperationNotAllowed for an answer that is no record."""
    record = await client.call(f"{cls}.get_record", session, ref)
    if not isinstance(record, dict) or not _is_named(cls, record.get("uuid")):
        raise OperationNotAllowed(f"The toolstack's record of the {cls} {ref!s:.60} cannot be used.")
    return record


def _is_named(cls: str, uuid: object) -> bool:
    return isinstance(uuid, str) and (cls not in _NAMES_FILES or bool(UUID.fullmatch(uuid)))


async def read_vm(client: UpstreamClient, session: str, vm: str) -> Seen:
    """RemoteError with the upstream's own words; the refusals of `check`."""
    record = await record_of(client, session, "VM", vm)
    check(vm, record)
    host = await client.call("session.get_this_host", session, session)
    vbds: dict[str, Raw] = {}
    vdis: dict[str, Raw] = {}
    for ref in _refs(record, "VBDs"):
        vbd = await record_of(client, session, "VBD", ref)
        if vbd.get("type") == "Disk" and not vbd.get("empty"):
            vbds[ref] = vbd
            vdis[vbd["VDI"]] = await read_disk(client, session, vbd["VDI"], ref)
    form = ""
    if record["power_state"] == "Suspended":
        image = record.get("suspend_VDI")
        if not isinstance(image, str) or image == NULL:
            raise VmHasNoSuspendVdi(vm)
        vdis[image] = await read_disk(client, session, image, "")
        form = await _image_form(client, session, vm, host)
    srs: dict[str, Raw] = {}
    pbds: dict[str, Raw] = {}
    for vdi in vdis.values():
        if vdi["SR"] not in srs:
            srs[vdi["SR"]] = await record_of(client, session, "SR", vdi["SR"])
            pbds[vdi["SR"]] = await _pbd_here(client, session, srs[vdi["SR"]], vdi["SR"], host)
    vifs = {ref: await record_of(client, session, "VIF", ref) for ref in _refs(record, "VIFs")}
    used = {vif["network"] for vif in vifs.values()}
    networks = {ref: await record_of(client, session, "network", ref) for ref in sorted(used)}
    return Seen(vm, record, vbds, vdis, srs, pbds, vifs, networks, form)


async def _image_form(client: UpstreamClient, session: str, vm: str, host: Any) -> str:
    form = image_form((await record_of(client, session, "host", host)).get("software_version"))
    if not form:
        raise OperationNotAllowed(
            f"The VM {vm} is Suspended, and its toolstack does not say which software wrote the image: nobody could "
            "know whether the receiving host resumes it. Resume it and shut it down before."
        )
    return form


async def sr_here(client: UpstreamClient, session: str, sr: str) -> tuple[Raw, Raw]:
    """The records of an SR and of the PBD by which this host has it. RemoteError, SrNotAttached,
    OperationNotAllowed."""
    record = await record_of(client, session, "SR", sr)
    host = await client.call("session.get_this_host", session, session)
    return record, await _pbd_here(client, session, record, sr, host)


def check(vm: str, record: Raw) -> None:
    """VmIsTemplate, VmIsSnapshot, OperationNotAllowed, OtherOperationInProgress, OperationBlocked, VmBadPowerState."""
    if record.get("is_a_snapshot"):
        raise VmIsSnapshot(vm, _OPERATION)
    if record.get("is_a_template"):
        raise VmIsTemplate(vm, _OPERATION)
    if record.get("is_control_domain"):
        raise OperationNotAllowed(f"The VM {vm} is a control domain, which stays where it is.")
    for task, operation in (record.get("current_operations") or {}).items():
        raise OtherOperationInProgress("VM", vm, str(operation), str(task))
    blocked = record.get("blocked_operations") or {}
    if _OPERATION in blocked and not str(blocked[_OPERATION]).startswith(OURS):
        raise OperationBlocked(vm, str(blocked[_OPERATION])[:200])
    state = str(record.get("power_state"))
    if state == "Running":
        raise OperationNotAllowed(
            f"The VM {vm} runs in a domain of the toolstack's. This server moves its VMs only while they are off: "
            "shut it down, or move it by the toolstack's own VM.migrate_send."
        )
    if state not in ("Halted", "Suspended"):
        raise VmBadPowerState(vm, "halted, suspended", state.lower())


async def control_domain(client: UpstreamClient, session: str) -> str:
    """Of the session's host; "" if the upstream has none. RemoteError, UpstreamSilent."""
    host = await client.call("session.get_this_host", session, session)
    domain = (await record_of(client, session, "host", host)).get("control_domain")
    return domain if isinstance(domain, str) and domain != NULL else ""


async def read_disk(client: UpstreamClient, session: str, ref: str, vbd: str) -> Raw:
    """The record of a VDI that only this VBD has, but for plugs of ours. OperationNotAllowed."""
    vdi = await record_of(client, session, "VDI", ref)
    others = [one for one in _refs(vdi, "VBDs") if one != vbd]
    records = [await record_of(client, session, "VBD", one) for one in others]
    _check_disk(ref, vdi, any(PLUG not in (one.get("other_config") or {}) for one in records))
    return vdi


def _check_disk(ref: str, vdi: Raw, others: bool) -> None:
    if others or vdi.get("sharable"):
        raise OperationNotAllowed(f"The VDI {ref} belongs to other VMs too, which could write to it meanwhile.")
    if MARK in (vdi.get("other_config") or {}):
        raise OperationNotAllowed(f"The VDI {ref} is being received from another host.")
    if "vhd-parent" in (vdi.get("sm_config") or {}) or vdi.get("snapshots"):
        raise OperationNotAllowed(f"The image of the VDI {ref} builds on another: it was cloned, or has snapshots.")


async def _pbd_here(client: UpstreamClient, session: str, sr: Raw, ref: str, host: Any) -> Raw:
    for one in _refs(sr, "PBDs"):
        pbd = await record_of(client, session, "PBD", one)
        if pbd.get("host") == host and pbd.get("currently_attached") is True:
            return pbd
    raise SrNotAttached(ref)


def _refs(record: Raw, field: str) -> list[str]:
    refs = record.get(field)
    if not isinstance(refs, list) or len(refs) > MOST_DEVICES or not all(isinstance(one, str) for one in refs):
        raise OperationNotAllowed(f"The toolstack's record has {field} that cannot be used.")
    return refs
