"""Phase 2, preparation, on the receiver: steps 2.1 to 2.5."""

from __future__ import annotations

from uuid import uuid4

from ..errors import (
    ImportError_,
    IncompatibleHost,
    MigrateError,
    NotEnoughMemory,
    SrFull,
    SrNotAttached,
    TargetDied,
    VdiInUse,
    VdiNotInMap,
)
from ..refusals import OtherVersion
from ..sm.interfaces import ISR
from ..steps import Step
from ..store.interfaces import NULL
from . import metadata_import, within_pool
from .disk_users import other_owner, other_user, own_vms
from .giving_up import GIVEN_UP
from .incoming import Incoming, IncomingDisk, Plan
from .interfaces import PROTOCOL_VERSION, DiskOffer
from .journal import Mark

HIDDEN = "HideFromXenCenter"
LEAST_ROOM = 1 << 20
"""Free bytes of an SR below which it is looked at whether the copies still fit."""


async def prepare(migration: Incoming) -> None:
    """Step 2.1: every check before the first byte, then the plan into the journal, then the hidden VM and its VDIs."""
    assert migration.vm is not None
    migration.story.step(Step.PUT_METADATA, f"metadata of VM {migration.vm.uuid}, {migration.vm.power_state}")
    in_pool = await within_pool.recognise(migration)
    keeper = migration.host.keeper
    _check_not_coming(migration)
    if keeper is None:
        await _check_host(migration, in_pool)
    else:
        await keeper.look(migration)
    plan = _plan(migration, in_pool)
    _check_found(migration, plan)
    migration.plan = plan
    migration.claim()
    _check_memory(migration)
    await _check_space(migration)
    if keeper is not None:
        await keeper.make_disks(migration)
        migration.claim()  # by the uuids that they have now
    task = migration.task.ref if migration.task else ""
    await migration.journal.record(
        Mark.BEGUN, digest=migration.digest, task=task, plan=plan.to_json(), document=migration.document
    )
    _create_records(migration)
    if plan.in_pool or migration.host.records.member_secret:
        # An image whose VDI other members do not know yet would be taken for a new one by SR.scan.
        await migration.host.records.flush()
    for disk in plan.disks:
        if not disk.found:
            await migration.sr_of(disk).vdi_create(disk.vdi_uuid, disk.size)
    if keeper is not None:
        await keeper.rehearse(migration)
    # From here on a restarted daemon goes on, so it has to find all of this.
    await migration.host.records.flush()
    await migration.journal.record(Mark.PREPARED)


async def what_is_gone(migration: Incoming) -> str:
    """After a restart: why it cannot go on, "" if it can: it is in phase 2 or 3, and all that the sender has been given
    is there and alive."""
    journal, plan = migration.journal, migration.plan
    marks = {entry.mark for entry in journal.entries}
    if plan is None or Mark.PREPARED not in marks:
        return "it had not prepared all (phase 2)"
    if Mark.UNDONE in marks:
        return "it was giving up"
    if Mark.MEMORY in marks:
        return "the memory is sent once only (phase 4)"
    if plan.vm not in migration.host.records.refs("VM"):
        return "the VM's record is gone"
    try:
        await look_after(migration)
    except MigrateError as failure:
        return str(failure)
    return ""


async def look_after(migration: Incoming) -> None:
    """TargetDied if something that the sender copies into is gone, SrFull if there is no room for it any more."""
    plan = migration.plan
    assert plan is not None
    for disk in plan.disks:
        if _offered(migration, disk) and not await migration.sr_of(disk).vdi_is_served(disk.vdi_uuid, migration.id):
            raise TargetDied(plan.final_uuid, disk.vdi_uuid, migration.host.name)
    await _check_still_room(migration)


async def _check_still_room(migration: Incoming) -> None:
    """SrFull when an SR has filled up, by whatever, before all was copied: a copy only sees that a write has failed."""
    plan = migration.plan
    assert plan is not None
    for sr_ref in {disk.sr_ref for disk in plan.disks if not disk.found}:
        sr: ISR = migration.host.toolstack.sr(sr_ref)
        stat = await sr.stat()
        if stat.reserves or stat.free >= LEAST_ROOM:
            continue
        used = {info.uuid: info.used for info in await sr.scan()}
        ours = [disk for disk in plan.disks if disk.sr_ref == sr_ref and not disk.found]
        missing = sum(max(0, disk.size - used.get(disk.vdi_uuid, 0)) for disk in ours)
        if missing > stat.free:
            raise SrFull(sr.uuid, missing, stat.free)


def _offered(migration: Incoming, disk: IncomingDisk) -> bool:
    return any(e.mark is Mark.OFFERED and e.data["disk"] == disk.number for e in migration.journal.entries)


def _check_not_coming(migration: Incoming) -> None:
    vm, host = migration.vm, migration.host
    assert vm is not None
    for ref in host.records.refs("VM"):
        other = host.records.get("VM", ref)
        if other.get("_incoming_uuid") == vm.uuid and other.get("_receiver", host.ref) == host.ref:
            raise ImportError_(f"the VM {vm.uuid} is being received on this host already")


async def _check_host(migration: Incoming, in_pool: bool) -> None:
    vm, host = migration.vm, migration.host
    assert vm is not None
    if not in_pool and host.records.find("VM", uuid=vm.uuid):
        raise ImportError_(f"a VM with the uuid {vm.uuid} is on this host already")
    for nic in vm.nics:
        host.toolstack.check_network(_network(migration, nic))
    if vm.protocol != PROTOCOL_VERSION:
        raise OtherVersion(host.name, vm.uuid)
    _check_addresses(migration)
    refusal = await host.domains.refuses(vm.machine, vm.cpu)
    if refusal:
        raise IncompatibleHost(vm.uuid, host.name, refusal)
    if vm.power_state == "Halted":
        return
    capabilities = host.domains.capabilities()
    if vm.stream != capabilities.stream:
        raise IncompatibleHost(
            vm.uuid,
            host.name,
            f"its memory stream is {vm.stream or 'of no known form'}, this host reads {capabilities.stream}",
        )


def _check_addresses(migration: Incoming) -> None:
    """Two interfaces of one MAC on one network cut each other off. A VM that is off has its address only on paper."""
    vm, records = migration.vm, migration.host.records
    assert vm is not None
    for nic in vm.nics:
        for vif in records.find("VIF", MAC=nic.mac, network=_network(migration, nic)):
            other = records.get("VM", records.get("VIF", vif)["VM"])
            here = other["power_state"] != "Halted" or other.get("_incoming_uuid")
            if here and other["uuid"] != vm.uuid and not other["is_a_template"]:
                raise ImportError_(
                    f"the MAC address {nic.mac} of its interface {nic.device} is that of VM {other['uuid']} "
                    f"({other['name_label']!r}) on the same network"
                )


def _check_memory(migration: Incoming) -> None:
    vm = migration.vm
    assert vm is not None
    free = migration.host.claims.memory(before=migration.id)
    if vm.power_state in ("Running", "Paused") and vm.memory > free:
        raise NotEnoughMemory(vm.memory, free)


def _plan(migration: Incoming, in_pool: bool) -> Plan:
    vm, records = migration.vm, migration.host.records
    assert vm is not None
    disks: list[IncomingDisk] = []
    for number, disk in enumerate(vm.disks):
        sr_ref, found = _destination(migration, disk, in_pool)
        migration.host.toolstack.sr(sr_ref)  # SrNotAttached, HandleInvalid
        disks.append(
            IncomingDisk(
                number=number,
                vbd=_new_ref() if disk.userdevice else "",
                vdi=records.by_uuid("VDI", disk.vdi_uuid) if found else _new_ref(),
                vdi_uuid=disk.vdi_uuid if found else str(uuid4()),
                sr_ref=sr_ref,
                sr_uuid=records.get("SR", sr_ref)["uuid"],
                size=disk.virtual_size,
                found=found,
            )
        )
    taken = vm.ref in records.refs("VM") if vm.ref else True
    return Plan(
        vm=_new_ref(),
        vm_uuid=str(uuid4()),
        domain=str(uuid4()),
        final_ref="" if taken and not in_pool else vm.ref,
        final_uuid=vm.uuid,
        name=vm.fields["name_label"],
        power_state=vm.power_state,
        leave_paused=vm.power_state == "Paused" or (vm.leave_paused and migration.host.config.test_options),
        disks=disks,
        in_pool=in_pool,
        given_up=records.get("VM", vm.ref).get(GIVEN_UP, "") if in_pool else "",
    )


def _check_found(migration: Incoming, plan: Plan) -> None:
    """VdiInUse when a disk that was found is another VM's: the uuids that a sender names prove nothing, and must not
    give him a disk of this host's VMs. A pool's members may have it in other VMs too, which are off meanwhile."""
    records, host = migration.host.records, migration.host
    for disk in plan.disks:
        if not disk.found:
            continue
        if plan.in_pool:
            other = other_user(records, host.ref, disk.vdi, own_vms(plan))
        else:
            other = other_owner(records, disk.vdi, own_vms(plan))
        if other:
            raise VdiInUse(disk.vdi, f"on host {host.name} it is a disk of {other}")


def _destination(migration: Incoming, disk: metadata_import.IncomingDisk, in_pool: bool) -> tuple[str, bool]:
    """An explicit map wins, then the same disk, then the offer's SR, then, for a suspend image, where this host has
    those. The SR's ref, and whether the VDI is there already. In a pool a VDI may have its record here, and its SR be
    seen by other members only."""
    records = migration.host.records
    if disk.maps_to:
        return disk.maps_to, False
    for vdi in records.find("VDI", uuid=disk.vdi_uuid):
        sr = records.get("VDI", vdi)["SR"]
        if records.get("SR", sr)["uuid"] == disk.sr_uuid and not (in_pool and _unseen(migration, sr)):
            return sr, True
    if migration.sr != NULL:
        return migration.sr, False
    if not disk.userdevice:
        host = records.get("host", migration.host.ref)
        pools = [records.get("pool", pool) for pool in records.refs("pool")]
        wanted = [host["suspend_image_sr"], *(pool["suspend_image_SR"] for pool in pools)]
        for sr in [*wanted, *(pool["default_SR"] for pool in pools)]:
            if sr in records.refs("SR"):
                return sr, False
    raise VdiNotInMap(disk.vdi_uuid)


def _unseen(migration: Incoming, sr: str) -> bool:
    try:
        migration.host.toolstack.sr(sr)
    except SrNotAttached:
        return True
    return False


async def _check_space(migration: Incoming) -> None:
    assert migration.plan is not None
    wanted: dict[str, int] = {}
    for disk in migration.plan.disks:
        if not disk.found:
            wanted[disk.sr_ref] = wanted.get(disk.sr_ref, 0) + disk.size
    for sr_ref, size in wanted.items():
        sr: ISR = migration.host.toolstack.sr(sr_ref)
        free = await migration.host.claims.space(sr_ref, sr, before=migration.id)
        if size > free:
            raise SrFull(sr.uuid, size, free)


def _create_records(migration: Incoming) -> None:
    vm, plan, host = migration.vm, migration.plan, migration.host
    assert vm is not None and plan is not None
    _check_found(migration, plan)  # again, as time has passed; from here on no VM is started with these disks
    records = host.records
    fields = dict(vm.fields)
    other = {**fields.pop("other_config"), HIDDEN: "true"}
    platform = {**fields.pop("platform"), **({"machine": vm.machine} if vm.machine else {})}
    if vm.cpu:
        platform["cpu"] = vm.cpu
    task = migration.task
    records.create(
        "VM",
        ref=plan.vm,
        uuid=plan.vm_uuid,
        other_config=other,
        platform=platform,
        power_state="Halted",
        is_a_template=False,
        current_operations={task.ref: "import"} if task else {},
        _incoming_uuid=vm.uuid,
        **{within_pool.OFFER: migration.digest},
        _migration=migration.id,
        _receiver=host.ref,
        **fields,
    )
    taken = {told.userdevice for told in vm.disks}
    for device in [] if plan.in_pool else vm.drives:  # within a pool the VM keeps its record, and the drives in it
        if device not in taken:
            records.create("VBD", VM=plan.vm, userdevice=device, type="CD", mode="RO", empty=True)
    for disk, told in zip(plan.disks, vm.disks, strict=True):
        if not disk.found:
            records.create(
                "VDI",
                ref=disk.vdi,
                uuid=disk.vdi_uuid,
                SR=disk.sr_ref,
                virtual_size=disk.size,
                name_label=told.name_label,
                name_description=told.name_description,
                other_config=told.other_config,
                type="user" if disk.vbd else "suspend",
                read_only=False,
                sharable=False,
                managed=True,
                location=disk.vdi_uuid,
                _migration=migration.id,
                _receiver=host.ref,
            )
        if disk.vbd:
            records.create(
                "VBD",
                ref=disk.vbd,
                VM=plan.vm,
                VDI=disk.vdi,
                userdevice=told.userdevice,
                bootable=told.bootable,
                mode="RO" if told.read_only else "RW",
                type="Disk",
                empty=False,
            )
    for nic in vm.nics:
        records.create("VIF", VM=plan.vm, device=nic.device, MAC=nic.mac, MTU=nic.mtu, network=_network(migration, nic))


def _network(migration: Incoming, nic: metadata_import.IncomingNic) -> str:
    """The mapped network, else one of the same name, else the first of this host."""
    records = migration.host.records
    known = records.refs("network") if migration.networks is None else migration.networks
    if nic.maps_to and nic.maps_to in known:
        return nic.maps_to
    named = [ref for ref in records.find("network", name_label=nic.network_label) if ref in known]
    return next(iter([*named, *known]), NULL)


async def offer_disk(migration: Incoming, disk: IncomingDisk, address: str) -> DiskOffer:
    """Steps 2.2 to 2.5: VDI.get_url at the local `address` on which the sender came."""
    sr = migration.sr_of(disk)
    first = disk.number == 0
    migration.story.step(Step.GET_DISK if first else Step.GET_DISK_NEXT, f"GET disk/{disk.number}")
    proof = None
    config = migration.host.config
    secure = "https" in config.schemes and not config.insecure_storage
    if disk.found:
        url = await sr.vdi_dummy_url(disk.vdi_uuid, disk.size, migration.id, address, secure)
        proof = await migration.proof_in(disk.sr_ref)
    else:
        url = await sr.vdi_get_url(disk.vdi_uuid, migration.id, address, secure)
    if not _offered(migration, disk):
        await migration.journal.record(Mark.OFFERED, disk=disk.number)
    migration.story.step(Step.GET_URL if first else Step.GET_URL_NEXT, f"disk {disk.number} is at {url.url}")
    disk.offer = DiskOffer(disk.number, disk.vdi_uuid, disk.sr_uuid, disk.size, url, disk.found, proof)
    return disk.offer


def _new_ref() -> str:
    return f"OpaqueRef:{uuid4()}"
