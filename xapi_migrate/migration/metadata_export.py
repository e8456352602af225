"""Step 2.1, the sender's half: a VM's records as one document.

The form is XenAPI's VM export (`ova.xml`): objects with ids "Ref:n" and full record snapshots, references
rewritten to those ids. Where things go is said in `maps_to` of a VDI's and a VIF's other_config. A member
`migration` beside `objects` holds what only this protocol needs.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from .. import __version__
from ..mac import new_mac
from ..store.interfaces import NULL, IRecords, Record
from .interfaces import PROTOCOL_VERSION
from .metadata_xml import write_value

VERSION = {"product_version": __version__, "product_brand": "xapi_migrate", "build_number": "0"}
# The lowest version that importers know: they refuse documents newer than themselves.
EXPORT_FORM = {"xapi_major": 1, "xapi_minor": 3, "export_vsn": 2, "hostname": "localhost"}
LEFT_OUT = {"VM": ("current_operations", "allowed_operations", "consoles", "blobs", "snapshots", "children", "parent")}


def export_vm(
    records: IRecords,
    vm: str,
    disks: list[str],
    vdi_to_sr: dict[str, str],
    vif_to_network: dict[str, str],
    migration: dict[str, Any],
    copy_ref: str = "",
) -> bytes:
    """The document for `vm` and its `disks` (VBD refs in the order that GET disk/N uses; a Suspended VM's image comes
    after them). Its CD drives go empty. The maps hold only what was mapped explicitly. With `copy_ref` it is that of
    another VM which is like this one: its ref is that, its uuid and its MAC addresses are new."""
    record = records.get("VM", vm)
    if copy_ref:
        record = _another(record)
    objects, ids = export_objects(records, vm, record, disks, vdi_to_sr, vif_to_network, fresh_macs=bool(copy_ref))
    about = {
        **migration,
        "protocol": PROTOCOL_VERSION,
        "vm_ref": copy_ref or vm,
        "disks": [ids[vbd] for vbd in disks],
    }
    return write_value({"version": version(), "objects": objects, "migration": about})


def version() -> dict[str, Any]:
    """The member `version` of a document."""
    return {**VERSION, **EXPORT_FORM, "date": datetime.now(UTC).strftime("%Y-%m-%d")}


def export_objects(
    records: IRecords,
    vm: str,
    record: Record,
    disks: list[str],
    vdi_to: dict[str, str],
    vif_to: dict[str, str],
    fresh_macs: bool = False,
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """The member `objects`, and the id of each ref in it. `record` stands for the VM's own; `vdi_to` and `vif_to` are
    what disks and VIFs are mapped to."""
    objects: list[tuple[str, str, Record]] = [("VM", vm, record)]
    srs: list[str] = []
    networks: list[str] = []
    objects += [("VBD", vbd, records.get("VBD", vbd)) for vbd in disks]
    for ref in records.get("VM", vm)["VBDs"]:
        drive = records.get("VBD", ref)
        if drive["type"] == "CD":
            objects.append(("VBD", ref, {**drive, "VDI": NULL, "empty": True}))
    for vif in records.get("VM", vm)["VIFs"]:
        nic = _with_map(records.get("VIF", vif), vif_to.get(vif))
        if fresh_macs:
            nic = {**nic, "MAC": new_mac()}
        objects.append(("VIF", vif, nic))
        if nic["network"] not in [NULL, *networks]:
            networks.append(nic["network"])
    objects += [("network", ref, records.get("network", ref)) for ref in networks]
    images = [records.get("VBD", vbd)["VDI"] for vbd in disks]
    if record["power_state"] == "Suspended":
        images.append(record["suspend_VDI"])
    for vdi in images:
        image = records.get("VDI", vdi)
        objects.append(("VDI", vdi, _with_map(image, vdi_to.get(vdi))))
        if image["SR"] not in srs:
            srs.append(image["SR"])
    objects += [("SR", ref, records.get("SR", ref)) for ref in srs]
    ids = {ref: f"Ref:{number}" for number, (_, ref, _) in enumerate(objects)}
    exported = [
        {
            "class": cls,
            "id": ids[ref],
            "snapshot": {
                name: _portable(value, ids)
                for name, value in record.items()
                if not name.startswith("_") and name not in LEFT_OUT.get(cls, ())
            },
        }
        for cls, ref, record in objects
    ]
    return exported, ids


def _another(vm: Record) -> Record:
    other = {key: value for key, value in vm["other_config"].items() if key != "mac_seed"}
    return {**vm, "uuid": str(uuid4()), "other_config": other}


def _with_map(record: Record, maps_to: str | None) -> Record:
    other = {key: value for key, value in record["other_config"].items() if key != "maps_to"}
    if maps_to:
        other["maps_to"] = maps_to
    return {**record, "other_config": other}


def _portable(value: Any, ids: dict[str, str]) -> Any:
    """References to what is exported by its id, to anything else as NULL, or left out of a set."""
    if isinstance(value, str) and value.startswith("OpaqueRef:"):
        return ids.get(value, NULL)
    if isinstance(value, list | tuple | set | frozenset):
        return [_portable(item, ids) for item in value if not _unknown(item, ids)]
    if isinstance(value, dict):
        return {k: (v if k == "maps_to" else _portable(v, ids)) for k, v in value.items() if not _unknown(k, ids)}
    return value


def _unknown(value: Any, ids: dict[str, str]) -> bool:
    return isinstance(value, str) and value.startswith("OpaqueRef:") and value not in ids
