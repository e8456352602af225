"""Phase 5, completion, on the receiver: what happens before COMMIT, step 5.2 after it, and the clean-up after ABORT."""

from __future__ import annotations

from twisted.internet import defer, task

from ..domains.interfaces import DomainState
from ..errors import DomainError, MigrateError, catalogue
from ..sm.interfaces import Purpose
from ..steps import Step
from ..together import started, together
from . import within_pool
from .disk_users import other_user, own_vms
from .giving_up import given_up
from .incoming import Incoming, IncomingDisk, Plan
from .phase2_receiving import HIDDEN
from .phase4_receiving import check_seen
from .undo import attempt

UNPAUSES = 5
DATABASE = 10.0
"""Seconds for which a guest may wait for the database: enough for some tries of a server that restarts."""
WAITING = (DomainState.PAUSED, DomainState.SUSPENDED, DomainState.INCOMING)


@catalogue
class DatabaseSilent(MigrateError):
    """The database of host {host} took nothing for {seconds} s: see to its disk, or to its server."""

    host: str
    seconds: str


async def activate(migration: Incoming) -> None:
    """The LUNs closed, then every VDI active: from here on only the receiver writes to them."""
    assert migration.plan is not None
    migration.story.note("`done` came")
    if not migration.plan.has_memory:
        await check_seen(migration)
    await together(_keep_records(migration), *(_activate(migration, disk) for disk in migration.plan.disks))
    await check_domain(migration)
    if migration.host.keeper is not None:
        await migration.host.keeper.take_over(migration)


async def _keep_records(migration: Incoming) -> None:
    """The hidden VM's records must be found again by whoever completes this after a crash. DatabaseSilent when the
    database takes too long: the guest stands still meanwhile, and nothing is decided yet."""
    host = migration.host
    try:
        await started(host.records.flush()).addTimeout(DATABASE, host.clock)
    except defer.TimeoutError:
        raise DatabaseSilent(host.name, f"{DATABASE:g}") from None


async def check_domain(migration: Incoming) -> None:
    """The last look before COMMIT: a domain that died after its memory came must not be committed to. DomainError."""
    plan, host = migration.plan, migration.host
    if plan is not None and plan.has_memory:
        state = await host.domains.state(plan.domain)
        if state is not DomainState.PAUSED:
            raise DomainError(plan.domain, host.name, "be taken over", f"it is {state.value}")


async def _activate(migration: Incoming, disk: IncomingDisk) -> None:
    sr = migration.sr_of(disk)
    await sr.vdi_close_url(disk.vdi_uuid, migration.id)
    migration.story.note(f"the LUN of disk {disk.number} is closed")
    if migration.plan is not None and migration.plan.has_memory:
        await sr.vdi_activate(disk.vdi_uuid, Purpose.DOMAIN)
        migration.story.note(f"disk {disk.number} is active")


async def complete(migration: Incoming) -> None:
    """Step 5.2, after COMMIT: only forward. The domain runs; the VM's power state is what the domain really is; the VM
    takes its final identity and shows itself. Repeatable, from any point."""
    plan, host = migration.plan, migration.host
    assert plan is not None
    if host.keeper is not None:
        await host.keeper.complete(migration)
        return
    vm = _hidden_ref(migration, plan)
    if not vm:
        migration.story.note(f"VM {plan.final_uuid} was completed before: it is its owner's since")
        return
    if plan.in_pool and given_up(host.records, plan.final_ref, plan.given_up):
        await _give_up(migration, plan)
        return
    power_state = plan.power_state
    if plan.has_memory:
        power_state = await _run(migration, plan, vm)
    migration.story.step(Step.POWER_STATE, f"VM {plan.final_uuid} is {power_state}")
    if plan.in_pool and host.records.has("VM", plan.final_ref):
        within_pool.adopt(migration, plan, vm, power_state)
        await host.records.flush()
        return
    final = plan.final_ref or vm
    if host.records.get("VM", vm)["uuid"] != plan.final_uuid:
        host.records.rekey("VM", vm, final, plan.final_uuid)
    other = {key: value for key, value in host.records.get("VM", final)["other_config"].items() if key != HIDDEN}
    host.records.update(
        "VM", final, other_config=other, power_state=power_state, current_operations={}, _incoming_uuid="",
        _migration="",
        resident_on=host.ref if power_state in ("Running", "Paused") else "OpaqueRef:NULL",
    )  # fmt: skip
    for disk in plan.disks:
        if disk.vbd:
            host.records.update("VBD", disk.vbd, currently_attached=power_state in ("Running", "Paused"))
        else:
            host.records.update("VM", final, suspend_VDI=disk.vdi)
        if not disk.found:
            host.records.update("VDI", disk.vdi, _migration="")
    await host.records.flush()


async def _give_up(migration: Incoming, plan: Plan) -> None:
    """Both hosts were down, and an administrator has given the VM up: it may run elsewhere. Its memory goes; fresh VDIs
    stay, as nobody's."""
    host, records = migration.host, migration.host.records
    migration.story.note(f"the VM {plan.final_uuid} was given up meanwhile, and may run elsewhere")
    await shut(migration)
    for disk in plan.disks:
        if not disk.found and records.has("VDI", disk.vdi):
            records.update("VDI", disk.vdi, _migration="")
    _forget_hidden(migration, plan)
    await host.records.flush()


async def _run(migration: Incoming, plan: Plan, vm: str) -> str:
    host = migration.host
    host.toolstack.set_domain(vm, plan.domain)
    state = await host.domains.state(plan.domain)
    if plan.leave_paused and state in WAITING:
        return "Paused"
    if state is DomainState.RUNNING:  # let run before a crash: maybe nobody on its networks has been told
        await attempt(migration.story, "announce the domain", host.domains.unpause(plan.domain))
    for _ in range(UNPAUSES):
        if state not in WAITING:
            break
        try:
            await host.domains.unpause(plan.domain)
            migration.story.note(f"domain {plan.domain} runs")
        except MigrateError as failure:
            migration.story.note(f"domain {plan.domain} does not run yet: {failure}")
            await task.deferLater(host.clock, host.config.times.ask)
        state = await host.domains.state(plan.domain)
    if state in WAITING:
        return "Paused"  # its memory is the only one there is: its owner decides
    if state is DomainState.RUNNING:
        return "Running"
    # The domain died after the decision: the VM is here, Halted, and never back at the sender.
    await attempt(migration.story, "destroy the domain", host.domains.destroy(plan.domain))
    await together(*(attempt(migration.story, "detach", _detach(migration, disk)) for disk in plan.disks))
    host.toolstack.set_domain(vm, "")
    return "Halted"


def _hidden_ref(migration: Incoming, plan: Plan) -> str:
    """The record of the VM that is still to be completed; "" if it has been: it shows itself, or is gone again. (It was
    in the database before COMMIT, so it cannot be missing for want of time.)"""
    records = migration.host.records
    for ref in (plan.vm, plan.final_ref):
        if ref and ref in records.refs("VM") and records.get("VM", ref).get("_incoming_uuid"):
            return ref
    return ""


async def close_proofs(migration: Incoming) -> None:
    """Remove the nonces that same-disk tests left in the SRs."""
    if migration.plan is not None:
        for disk in migration.plan.disks:
            if disk.found:
                await attempt(migration.story, "remove the nonce", _forget_proof(migration, disk))


async def _forget_proof(migration: Incoming, disk: IncomingDisk) -> None:
    await migration.sr_of(disk).forget_proof(migration.id)


async def shut(migration: Incoming) -> bool:
    """Before ABORT is written: no domain, no open disk, so that the sender may have both. False, to be tried again, as
    long as the domain is there or a disk that the sender has too may be open."""
    plan, story = migration.plan, migration.story
    if migration.restoration is not None:
        await attempt(story, "end the restore", migration.restoration.cancel())
    if plan is None:
        return True
    gone = await attempt(story, "destroy the domain", migration.host.domains.destroy(plan.domain))
    shut = await together(*(_shut_disk(migration, disk) for disk in plan.disks))
    return gone and all(done or not disk.found for done, disk in zip(shut, plan.disks, strict=True))


async def _shut_disk(migration: Incoming, disk: IncomingDisk) -> bool:
    plan, records = migration.plan, migration.host.records
    assert plan is not None
    known = disk.found and records.has("VDI", disk.vdi)
    if known and other_user(records, migration.host.ref, disk.vdi, own_vms(plan)):
        return True  # it was refused for that, and never attached for this VM

    async def deactivate() -> None:
        await migration.sr_of(disk).vdi_deactivate(disk.vdi_uuid, Purpose.DOMAIN)

    async def close() -> None:
        await migration.sr_of(disk).vdi_close_url(disk.vdi_uuid, migration.id)

    done = await attempt(migration.story, "deactivate", deactivate())
    await attempt(migration.story, "close the LUN of", close())
    await attempt(migration.story, "detach", _detach(migration, disk))
    return done


async def _detach(migration: Incoming, disk: IncomingDisk) -> None:
    await migration.sr_of(disk).vdi_detach(disk.vdi_uuid, Purpose.DOMAIN)


async def _destroy(migration: Incoming, disk: IncomingDisk) -> None:
    await migration.sr_of(disk).vdi_destroy(disk.vdi_uuid)


async def clean_up(migration: Incoming) -> None:
    """After ABORT: VDIs and records that were made for this migration. Repeatable."""
    plan, records = migration.plan, migration.host.records
    if plan is None:
        return
    await close_proofs(migration)
    for disk in plan.disks:
        if not disk.found:
            await attempt(migration.story, "destroy", _destroy(migration, disk))
    for disk in plan.disks:
        if not disk.found:
            records.destroy("VDI", disk.vdi)
    _forget_hidden(migration, plan)
    await records.flush()
    if migration.host.keeper is not None:
        await attempt(migration.story, "undo what the toolstack has made", migration.host.keeper.undo(migration))


def _forget_hidden(migration: Incoming, plan: Plan) -> None:
    records = migration.host.records
    if records.has("VM", plan.vm):
        for cls, field in (("VIF", "VIFs"), ("VBD", "VBDs")):
            for ref in list(records.get("VM", plan.vm)[field]):
                records.destroy(cls, ref)
    for disk in plan.disks:
        records.destroy("VBD", disk.vbd)
    records.destroy("VM", plan.vm)
