"""Whose a VDI is besides the moving VM's. A host has one datapath per VDI, with one place for a domain: who took a VDI
that another VM uses would share that VM's disk, and tear it off when he lets go."""

from __future__ import annotations

from collections.abc import Collection

from ..store.interfaces import NULL, IRecords, Record
from .incoming import Plan


def other_user(records: IRecords, host: str, vdi: str, own: Collection[str], busy: bool = False) -> str:
    """A VM, none of `own` (refs), that has this VDI attached or is being received with it, as a phrase; "" if there is
    none. Of a sharable VDI only one on this `host` counts. `busy`: one that something is being done with counts too,
    for its disks are not attached all the time then."""
    record = records.get("VDI", vdi)
    itself = [records.get("VM", ref)["uuid"] for ref in own if records.has("VM", ref)]
    for ref in record["VBDs"]:
        vbd = records.get("VBD", ref)
        if vbd["VM"] in own or vbd["VM"] == NULL:
            continue
        vm = records.get("VM", vbd["VM"])
        if vm.get("_incoming_uuid") in itself:
            continue
        if not (vbd["currently_attached"] or vm.get("_incoming_uuid") or (busy and vm["current_operations"])):
            continue
        if not record["sharable"] or host in (vm["resident_on"], vm.get("_domain_host"), vm.get("_receiver")):
            return _phrase(vm)
    return ""


def other_owner(records: IRecords, vdi: str, own: Collection[str]) -> str:
    """A VM, none of `own`, to which this VDI belongs, whatever that VM does, as a phrase; "" if there is none."""
    record = records.get("VDI", vdi)
    names = [records.get("VBD", ref)["VM"] for ref in record["VBDs"]] + records.find("VM", suspend_VDI=vdi)
    for vm in names:
        if vm not in own and vm != NULL:
            return _phrase(records.get("VM", vm))
    return "a VM that is being received" if record.get("_migration") else ""


def own_vms(plan: Plan) -> tuple[str, ...]:
    """The refs under which the VM that is received has records here."""
    return (plan.vm, plan.final_ref) if plan.in_pool else (plan.vm,)


def _phrase(vm: Record) -> str:
    return f"VM {vm.get('_incoming_uuid') or vm['uuid']} ({vm['name_label']!r})"
