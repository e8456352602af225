"""The upstream as the keeper of what is received beside it (migration/keeping.py): each step by the upstream's own
calls, with the session of who called VM.receive."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any, TypeVar

from ..errors import ImportError_, IncompatibleHost, OperationNotAllowed, RemoteError
from ..migration.incoming import Incoming
from ..migration.interfaces import PROTOCOL_VERSION
from ..migration.metadata_import import IncomingVM
from ..refusals import OtherVersion
from ..steps import Step
from ..store.interfaces import IRecords
from .arrival import ARRIVED, GIVEN_UP, IMPORTING, Arrival, Arrivals
from .client import UpstreamClient
from .images import can_resume, image_form
from .metadata import archive_of, begin_import, import_metadata
from .reading import MARK, record_of, sr_here
from .refusals import SessionOver, UpstreamRefuses, UpstreamSilent
from .shadow import Shadows

CREATE_SECONDS = 300.0
"""How long a VDI.create may take: some storage writes zeroes."""
T = TypeVar("T")


class UpstreamKeeper:
    """Arrivals are to be loaded before the engine takes up what an earlier daemon left."""

    def __init__(
        self, client: UpstreamClient, arrivals: Arrivals, shadows: Shadows, records: IRecords, clock: Any
    ) -> None:
        self._client = client
        self._arrivals = arrivals
        self._shadows = shadows
        self._records = records
        self._clock = clock

    async def look(self, migration: Incoming) -> None:
        vm, session = migration.vm, migration.session
        assert vm is not None
        if vm.power_state == "Suspended":
            await self._look_at_image(migration, vm)
        elif vm.power_state != "Halted":
            raise OperationNotAllowed(
                f"The VM {vm.uuid} is {vm.power_state}. The host {migration.host.name} stands beside a toolstack that "
                "has domains of its own, so it receives VMs only while they have none: shut it down before."
            )
        if vm.protocol != PROTOCOL_VERSION:
            raise OtherVersion(migration.host.name, vm.uuid)
        await self._arrivals.settle_all(session)
        if await self._is_there(session, vm.uuid):
            raise ImportError_(f"a VM with the uuid {vm.uuid} is at the toolstack of this host already")
        for sr in {disk.maps_to for disk in vm.disks if disk.maps_to}:
            await self._shadows.attach(sr, *await _heard("SR.get_record", sr_here(self._client, session, sr)))
        networks = await self._call("network.get_all_records", session)
        self._shadows.networks(networks)
        migration.networks = list(networks)

    async def _look_at_image(self, migration: Incoming, vm: IncomingVM) -> None:
        host = await self._call("session.get_this_host", migration.session, migration.session)
        mine = image_form(await self._call("host.get_software_version", migration.session, host))
        if not can_resume(mine, vm.stream):
            raise IncompatibleHost(
                vm.uuid, migration.host.name,
                f"its suspend image is of the form {vm.stream or 'of no name'}, the toolstack of this host resumes "
                f"{mine or 'none'}",
            )  # fmt: skip

    async def _is_there(self, session: str, uuid: str) -> bool:
        try:
            await self._call("VM.get_by_uuid", session, uuid)
        except UpstreamRefuses as refusal:
            if refusal.failure()[0] == "UUID_INVALID":
                return False
            raise
        return True

    async def make_disks(self, migration: Incoming) -> None:
        vm, plan = migration.vm, migration.plan
        assert vm is not None and plan is not None
        fresh = [(disk, told) for disk, told in zip(plan.disks, vm.disks, strict=True) if not disk.found]
        arrival = Arrival(
            migration.id, plan.final_uuid, migration.session, sorted({disk.sr_ref for disk, _ in fresh}),
            dict(vm.fields["blocked_operations"]),
        )  # fmt: skip
        await self._arrivals.save(arrival)
        for disk, told in fresh:
            fields: dict[str, Any] = {
                "SR": disk.sr_ref, "virtual_size": str(disk.size), "type": "user" if disk.vbd else "suspend",
                "name_label": told.name_label, "name_description": told.name_description, "sharable": False,
                "read_only": False, "other_config": {**told.other_config, MARK: migration.id},
                "xenstore_data": {}, "sm_config": {}, "tags": [],
            }  # fmt: skip
            disk.vdi = str(await self._call("VDI.create", arrival.session, fields, seconds=CREATE_SECONDS))
            made = await _heard("VDI.get_record", record_of(self._client, arrival.session, "VDI", disk.vdi))
            disk.vdi_uuid = made["uuid"]
            migration.story.note(f"VDI {disk.vdi_uuid} for disk {disk.number} was made by the toolstack")

    async def rehearse(self, migration: Incoming) -> None:
        arrival = self._arrivals.known[migration.id]
        arrival.rehearsal = await self._begin(arrival)
        await self._arrivals.save(arrival)
        await self._import(migration, arrival, arrival.rehearsal, dry_run=True)

    async def take_over(self, migration: Incoming) -> None:
        arrival = self._arrivals.known[migration.id]
        if await self._is_there(arrival.session, arrival.uuid):
            # an import would take its place
            raise ImportError_(f"a VM with the uuid {arrival.uuid} has come to the toolstack of this host meanwhile")
        arrival.task = await self._begin(arrival)
        arrival.state, arrival.begun = IMPORTING, self._clock.seconds()
        await self._arrivals.save(arrival)
        try:
            await self._import(migration, arrival, arrival.task)
        except UpstreamSilent as why:
            if why.nothing_done:
                arrival.task = ""  # nobody has to wait for it
            raise
        await _heard("VM.set_blocked_operations", self._arrivals.lock(arrival))
        await self._check_disks(migration, arrival)
        migration.story.note(f"VM {arrival.uuid} is at the toolstack, locked")

    async def _check_disks(self, migration: Incoming, arrival: Arrival) -> None:
        """Until now nothing kept others from its VDIs. ImportError_, UpstreamRefuses: one is gone, or another's too."""
        assert migration.plan is not None
        for disk in migration.plan.disks:
            vbds = [] if disk.found else await self._call("VDI.get_VBDs", arrival.session, disk.vdi)
            vms = [await self._call("VBD.get_VM", arrival.session, vbd) for vbd in vbds]
            if not disk.found and vms != ([arrival.vm] if disk.vbd else []):
                raise ImportError_(f"at the toolstack its VDI {disk.vdi_uuid} is not its own, or not its own alone")

    async def complete(self, migration: Incoming) -> None:
        plan, arrival = migration.plan, self._arrivals.known.get(migration.id)
        assert plan is not None
        if arrival is not None and arrival.state != ARRIVED:
            arrival.state = ARRIVED
            await self._arrivals.save(arrival)
        migration.story.step(Step.POWER_STATE, f"VM {plan.final_uuid} is {plan.power_state}")
        self._shadows.drop(plan.vm, [disk.vdi for disk in plan.disks if not disk.found])
        await self._records.flush()
        if arrival is not None:
            plan.final_ref = arrival.vm
            if not await self._arrivals.settle(arrival):
                migration.story.note(f"VM {plan.final_uuid} stays locked until the toolstack can be told")

    async def undo(self, migration: Incoming) -> None:
        arrival = self._arrivals.known.get(migration.id)
        if arrival is None:
            return
        arrival.state = GIVEN_UP
        await self._arrivals.save(arrival)
        if not await self._arrivals.settle(arrival):
            migration.story.note("what was made at the toolstack is removed as soon as that can be done")

    async def _begin(self, arrival: Arrival) -> str:
        begun = begin_import(self._client, arrival.session, f"import of VM {arrival.uuid}")
        return await _heard("task.create", begun)

    async def _import(self, migration: Incoming, arrival: Arrival, task: str, dry_run: bool = False) -> None:
        assert migration.plan is not None
        archive = archive_of(self._records, migration.plan, arrival)
        work = import_metadata(self._client, self._clock, arrival.session, task, archive, dry_run)
        await _heard("the import of its metadata", work)

    async def _call(self, method: str, session: str, *params: Any, **options: Any) -> Any:
        return await _heard(method, self._client.call(method, session, *params, **options))


async def _heard(what: str, work: Awaitable[T]) -> T:
    """The upstream's refusal in words that the sender may hear: never the session. SessionOver, UpstreamRefuses."""
    try:
        return await work
    except RemoteError as refusal:
        words = refusal.failure()
        if words[0] == "SESSION_INVALID":
            raise SessionOver from None
        raise UpstreamRefuses(what, words, ": ".join(words)) from None
