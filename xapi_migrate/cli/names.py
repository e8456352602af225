"""From what a person types (a name or a uuid) to a reference, and back."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import Any

import XenAPI

from ..uuids import UUID
from .failures import Refused

NULL = "OpaqueRef:NULL"

_CLASSES = ("VM", "VDI", "SR", "host", "network")


def vm_by_name(session: Any, name: str) -> str:
    """The one VM with this uuid or name. Refused if there is none, or several."""
    return _one(session, "VM", name, "vm-list")


def sr_by_name(session: Any, name: str) -> str:
    """The one SR with this uuid or name."""
    return _one(session, "SR", name, "sr-list")


def vdi_by_name(session: Any, vm: str, name: str) -> str:
    """The VM's VDI with this uuid or name."""
    found, others = [], []
    for vbd in session.xenapi.VM.get_VBDs(vm):
        record = session.xenapi.VBD.get_record(vbd)
        if record["type"] == "Disk" and record["VDI"] != NULL:
            vdi = session.xenapi.VDI.get_record(record["VDI"])
            if name in (vdi["uuid"], vdi["name_label"]):
                found.append(record["VDI"])
            others.append(f"{vdi['name_label']} ({vdi['uuid']})")
    if len(found) != 1:
        how_many = "no VDI" if not found else "more than one VDI"
        raise Refused(f"The VM has {how_many} named {name!r}; it has {', '.join(others) or 'none at all'}.")
    ref: str = found[0]
    return ref


def readable(sessions: Iterable[Any], ref: str) -> str:
    """The name and uuid of what a reference stands for; anything else stays as it is."""
    if not ref.startswith("OpaqueRef:") or ref == NULL:
        return ref
    for session in sessions:
        for cls in _CLASSES:
            with contextlib.suppress(XenAPI.Failure):
                record = getattr(session.xenapi, cls).get_record(ref)
                return f"{record['name_label']} ({record['uuid']})"
    return ref


def _one(session: Any, cls: str, name: str, command: str) -> str:
    api = getattr(session.xenapi, cls)
    if UUID.fullmatch(name):
        with contextlib.suppress(XenAPI.Failure):
            ref: str = api.get_by_uuid(name)
            return ref
    found: list[str] = api.get_by_name_label(name)
    if not found:
        raise Refused(f"There is no {cls} named {name!r} there (xapi-migrate {command} shows which there are).")
    if len(found) > 1:
        uuids = ", ".join(api.get_uuid(ref) for ref in found)
        raise Refused(f"More than one {cls} is named {name!r}; name it by its uuid: {uuids}.")
    return found[0]
