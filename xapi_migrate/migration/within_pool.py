"""Sender and receiver are members of one pool, so they have the same records: how the receiver knows it, and how the VM
keeps its own record when it moves.

The incoming VM has a hidden record of its own until COMMIT, as everywhere. In step 5.2 the moved VM's record takes over
what belongs to it (domain, host, fresh VDIs), and the hidden one goes, in one commit of the database: clients see one
record throughout. Which of the two is there tells a sender what it may remove.
"""

from __future__ import annotations

import hashlib
import hmac
import re

from twisted.internet import task

from ..errors import ImportError_
from ..store.interfaces import NULL, IRecords
from ..uris.capability import PATTERN, digest
from .incoming import Incoming, Plan
from .outgoing import Outgoing

_CAPABILITY = re.compile(rf"({PATTERN})(?:#sha256=[0-9a-f]{{64}})?\Z", re.ASCII)
OFFER = "_offer"
"""Of the hidden record, and of the moved one after it: the digest of the capability by which the VM came."""


def proof(records: IRecords, uris: list[str], vm: str) -> str:
    """What a sender says of itself in the metadata: that it knows the pool's secret, this offer and this VM. "" where
    there is no pool."""
    offer = _digest(uris)
    return _proof(records.member_secret, offer, vm) if records.member_secret and offer else ""


def _digest(uris: list[str]) -> str:
    found = _CAPABILITY.search(uris[0]) if uris else None
    return digest(found[1]).hex() if found else ""


def _proof(secret: str, offer: str, vm: str) -> str:
    return hmac.new(secret.encode(), f"{offer} {vm}".encode(), hashlib.sha256).hexdigest()


async def recognise(migration: Incoming) -> bool:
    """Whether the metadata is that of another member, about a VM of this pool. ImportError_ if it is a member's and the
    VM is not to be had from it now."""
    vm, host = migration.vm, migration.host
    assert vm is not None
    secret = host.records.member_secret
    if not secret or not vm.member or not hmac.compare_digest(_proof(secret, migration.digest, vm.ref), vm.member):
        return False
    if not await host.records.refresh() or not host.records.has("VM", vm.ref):
        raise ImportError_(f"the pool's database does not show the VM {vm.uuid} here now")
    record = host.records.get("VM", vm.ref)
    if record["uuid"] != vm.uuid or record["resident_on"] == host.ref:
        raise ImportError_(f"the VM {vm.uuid} is on this host already")
    return True


def adopt(migration: Incoming, plan: Plan, hidden: str, power_state: str) -> None:
    """Step 5.2: the moved VM's record takes the hidden one's place. At once, so that the database has either."""
    records, toolstack, vm = migration.host.records, migration.host.toolstack, plan.final_ref
    here = power_state in ("Running", "Paused")
    vbds = {records.get("VBD", ref)["userdevice"]: ref for ref in records.get("VM", vm)["VBDs"]}
    for disk in plan.disks:
        if not disk.found:
            records.update("VDI", disk.vdi, _migration="")
        if not disk.vbd:
            records.update("VM", vm, suspend_VDI=disk.vdi)
            continue
        own = vbds.get(records.get("VBD", disk.vbd)["userdevice"])
        if own:
            records.update("VBD", own, VDI=disk.vdi, currently_attached=here)
        records.destroy("VBD", disk.vbd)
    vifs = {records.get("VIF", ref)["device"]: ref for ref in records.get("VM", vm)["VIFs"]}
    for ref in list(records.get("VM", hidden)["VIFs"]):
        told = records.get("VIF", ref)
        if told["device"] in vifs:
            records.update("VIF", vifs[told["device"]], network=told["network"])
        records.destroy("VIF", ref)
    toolstack.set_domain(vm, toolstack.domain_of(hidden))
    resident = migration.host.ref if here else NULL
    records.update("VM", vm, power_state=power_state, resident_on=resident, **{OFFER: migration.digest})
    records.destroy("VM", hidden)


def adopted(migration: Outgoing) -> bool:
    """Whether the moved VM's record is known here to be the receiver's."""
    records, offer = migration.host.records, _digest(migration.uris)
    known = bool(offer) and records.has("VM", migration.vm)
    return known and bool(records.get("VM", migration.vm).get(OFFER) == offer)


async def handed_over(migration: Outgoing) -> bool:
    """After COMMIT, on the sender: True, once the moved VM's record is the receiver's; False where the receiver is no
    member of this pool, and the record is the sender's to remove."""
    host, offer = migration.host, _digest(migration.uris)
    if not host.records.member_secret or not offer:
        return False
    told = False
    while True:
        # The hidden record was in the database before COMMIT: one of the two is seen here.
        if await host.records.refresh():
            if adopted(migration) or not host.records.has("VM", migration.vm):
                return True
            if not host.records.find("VM", **{OFFER: offer}):
                return False
        if not told:
            migration.story.note("waits until the VM's record is the receiver's")
            told = True
        await task.deferLater(host.clock, host.config.times.ask)


def forget_sources(migration: Outgoing) -> None:
    """The records of VDIs that were copied away: those that no VM names."""
    records = migration.host.records
    for disk in migration.disks:
        same = disk.status is not None and disk.status.same_disk
        if not same and records.has("VDI", disk.vdi) and not records.get("VDI", disk.vdi)["VBDs"]:
            records.destroy("VDI", disk.vdi)
