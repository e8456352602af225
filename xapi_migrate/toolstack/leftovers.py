"""What nobody needs any more: found by asking who would need it, and removed only when that is asked for.

Nothing here ends by itself: what a migration, a motion or a VM claims is theirs, and an image that has no record is not
touched, for it may be somebody's only copy.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import attrs
from twisted.internet import threads

from xapi_migrate.domains.interfaces import IDomainDriver
from xapi_migrate.migration.engine import Claims
from xapi_migrate.processes import remains
from xapi_migrate.processes.child import ProcessName
from xapi_migrate.sm.datapath import Datapath
from xapi_migrate.sm.datapath_state import COPY, DOMAIN, MOVE, TARGET
from xapi_migrate.sm.iscsi_target import ISCSIService, migration_id
from xapi_migrate.sm.nbd_target import NBDService
from xapi_migrate.sm.services import SMServices
from xapi_migrate.store.interfaces import NULL
from xapi_migrate.store.records import Records
from xapi_migrate.toolstack.storage import Storage

_OWN_FOLDERS = ("domains", "datapaths", "copiers", "nbd", "tgt")


@attrs.frozen
class Leftover:
    """`kind` and `name` say what it is, `why` that nobody needs it, `remedy` what `remove` does."""

    kind: str
    name: str
    why: str
    remedy: str
    remove: Callable[[], Awaitable[object]] = attrs.field(repr=False, eq=False)


class Leftovers:
    """Of one host, `host` its ref; `claims` tells what migrations need at this moment. `lent`: images are another
    toolstack's, and only records of them are here."""

    def __init__(
        self,
        records: Records,
        storage: Storage,
        domains: IDomainDriver,
        services: SMServices,
        claims: Callable[[], Claims],
        host: str,
        lent: bool = False,
    ) -> None:
        self._records = records
        self._storage = storage
        self._domains = domains
        self._services = services
        self._claims = claims
        self._host = host
        self._lent = lent

    async def find(self) -> list[Leftover]:
        """Everything that is left behind now, in the order in which it can be removed."""
        claims = self._with_busy_vms(self._claims())
        found = await self._domains_left(claims)
        found += self._copiers(claims) + self._targets(claims) + self._datapaths(claims)
        found += await self._processes() + self._records_left(claims)
        return found

    async def remove(
        self, names: list[str], more: Callable[[], Awaitable[list[Leftover]]]
    ) -> tuple[list[str], list[str]]:
        """Remove those of them, and of what `more` finds, that are still left behind: what was removed, and a sentence
        for each that could not be. `names` are KIND:NAME."""
        removed: list[str] = []
        failed: list[str] = []
        for name in names:
            # Looked for anew each time: to remove one thing may free another, or somebody may want it by now.
            for leftover in await self.find() + await more():
                if f"{leftover.kind}:{leftover.name}" == name:
                    try:
                        await leftover.remove()
                        removed.append(name)
                    except Exception as failure:
                        failed.append(f"{leftover.kind} {leftover.name} could not be removed: {failure}")
                    break
        return removed, failed

    def _with_busy_vms(self, claims: Claims) -> Claims:
        """What belongs to a VM with which something is being done is that operation's."""
        vms, vdis, domains = set(claims.vms), set(claims.vdis), set(claims.domains)
        for ref in self._records.refs("VM"):
            record = self._records.get("VM", ref)
            if record["current_operations"] and not self._abandoned(ref, claims):
                vms.add(ref)
                domains.add(str(record.get("_domain") or ""))
                vdis |= {self._uuid_of(vbd) for vbd in record["VBDs"]}
        return attrs.evolve(claims, vms=vms, vdis=vdis, domains=domains)

    def _abandoned(self, vm: str, claims: Claims) -> bool:
        """A VM that was being received here by a migration of which nothing is known."""
        record = self._records.get("VM", vm)
        migration = record.get("_migration")
        return bool(migration) and record.get("_receiver") == self._host and migration not in claims.migrations

    def _uuid_of(self, vbd: str) -> str:
        vdi = self._records.get("VBD", vbd)["VDI"]
        return str(self._records.get("VDI", vdi)["uuid"]) if vdi != NULL else ""

    # -- processes

    async def _domains_left(self, claims: Claims) -> list[Leftover]:
        owned = {str(self._records.get("VM", vm).get("_domain") or "") for vm in self._records.refs("VM")}
        return [
            Leftover("domain", domain, "it belongs to no VM and no migration", "it is ended at once",
                     partial(self._domains.destroy, domain))
            for domain in await self._domains.domains() if domain not in owned | claims.domains
        ]  # fmt: skip

    def _copiers(self, claims: Claims) -> list[Leftover]:
        return [
            Leftover("copier", copy.of.ref, f"no migration waits for this copy of VDI {copy.of.vdi}",
                     "the copy is cancelled; the VDI stays", partial(self._services.copies.forget, copy.of.ref))
            for copy in self._services.copies.all() if copy.of.ref not in claims.copies
        ]  # fmt: skip

    def _targets(self, claims: Claims) -> list[Leftover]:
        known = {migration_id(migration) for migration in claims.migrations}
        served = [(service, name) for service in (self._services.iscsi, self._services.nbd)
                  for name, vdis in service.by_migration().items() if vdis and name not in known]  # fmt: skip
        return [
            Leftover("target", name, "it is served for a migration that is not known here",
                     "it is served no more; the VDIs stay", partial(self._serve_no_more, service, name))
            for service, name in served
        ]  # fmt: skip

    async def _serve_no_more(self, service: ISCSIService | NBDService, name: str) -> None:
        vdis = service.by_migration()[name]
        await service.drop(name)
        for vdi in vdis:
            await self._services.datapaths.detach(vdi, TARGET)

    def _datapaths(self, claims: Claims) -> list[Leftover]:
        found = []
        served = self._services.iscsi.served() | self._services.nbd.served()
        for vdi in self._services.datapaths.alive():
            datapath = self._services.datapaths.get(vdi)
            if datapath is not None and vdi not in claims.vdis and not self._needed(datapath, served):
                found.append(
                    Leftover("datapath", vdi, "no running VM, copy or target uses it", "it is ended; the VDI stays",
                             partial(self._detach, datapath))
                )  # fmt: skip
        return found

    def _needed(self, datapath: Datapath, served: set[str]) -> bool:
        vdi = datapath.of.vdi
        users = datapath.users
        return (
            (DOMAIN in users and self._in_use(vdi))
            or (TARGET in users and vdi in served)
            or (COPY in users and self._services.copies.of_vdi(vdi) is not None)
            or (MOVE in users and self._somebody_is_busy())
        )

    def _somebody_is_busy(self) -> bool:
        """A VM whose disk is moving is; for a moment that disk's datapath is a VDI's that no VM names. One that was
        given up (unsettled.py) is not."""
        return any(self._records.get("VM", vm)["current_operations"] for vm in self._records.refs("VM"))

    def _in_use(self, uuid: str) -> bool:
        return any(
            self._records.get("VBD", vbd)["currently_attached"]
            for vdi in self._records.find("VDI", uuid=uuid)
            for vbd in self._records.get("VDI", vdi)["VBDs"]
        )

    async def _detach(self, datapath: Datapath) -> None:
        for user in list(datapath.users):
            await self._services.datapaths.detach(datapath.of.vdi, user)

    async def _processes(self) -> list[Leftover]:
        """Processes and mounts below the state folder of which no part of this daemon knows."""
        root = self._services.state_dir
        known = {root / "domains" / domain for domain in await self._domains.domains()}
        known |= {root / "nbd" / f"{name}-{vdi}" for name, vdis in self._services.nbd.by_migration().items()
                  for vdi in vdis}  # fmt: skip
        known |= {root / "tgt"} if self._services.iscsi.alive else set()
        for vdi in self._services.datapaths.alive():
            datapath = self._services.datapaths.get(vdi)
            known |= {datapath.daemon.folder} if datapath is not None else set()
        for copy in self._services.copies.all():
            known |= {copy.folder, copy.folder / "refuser"}
        running, points = await threads.deferToThread(_below, root)
        found = [
            Leftover("process", str(name.pid), f"{folder} is known to no part of the daemon", "it is killed",
                     partial(threads.deferToThread, remains.end, [name]))
            for name, folder in running.items() if folder not in known
        ]  # fmt: skip
        found += [
            Leftover("mount", point, "no datapath shows this view", "it is unmounted",
                     partial(threads.deferToThread, remains.unmount, Path(point)))
            for point in points if Path(point).parent not in known
        ]  # fmt: skip
        return found

    # -- records

    def _records_left(self, claims: Claims) -> list[Leftover]:
        found = []
        for vm in self._records.refs("VM"):
            if vm not in claims.vms and self._abandoned(vm, claims):
                name = self._records.get("VM", vm)["name_label"]
                why = f"it was to become {name!r}, by a migration that is not known here"
                found.append(Leftover("VM", vm, why, "its record and its VBDs and VIFs go", partial(self._forget, vm)))
        for vdi in self._records.refs("VDI"):
            record = self._records.get("VDI", vdi)
            ours = record.get("_migration") and record.get("_receiver") == self._host
            if ours and record["_migration"] not in claims.migrations:
                why = "it was made for a migration that is not known here"
                found.append(
                    Leftover("VDI", record["uuid"], why,
                             "its record here goes; the image is the toolstack's" if self._lent
                             else "the VDI and what is in it go",
                             partial(self._storage.destroy_vdi, vdi))
                )  # fmt: skip
            elif record["missing"] and not record["VBDs"]:
                why = "its SR has no such image, and no VM names it"
                found.append(
                    Leftover("record", record["uuid"], why, "the record goes",
                             partial(self._drop, "VDI", vdi))
                )  # fmt: skip
        for cls in ("VBD", "VIF"):
            found += [
                Leftover("record", ref, f"this {cls} is of no VM", "the record goes", partial(self._drop, cls, ref))
                for ref in self._records.refs(cls)
                if self._records.get(cls, ref)["VM"] not in self._records.refs("VM")
            ]
        return found

    async def _forget(self, vm: str) -> None:
        for cls, refs in (("VBD", "VBDs"), ("VIF", "VIFs")):
            for ref in list(self._records.get("VM", vm)[refs]):
                self._records.destroy(cls, ref)
        self._records.destroy("VM", vm)
        await self._records.flush()

    async def _drop(self, cls: str, ref: str) -> None:
        self._records.destroy(cls, ref)
        await self._records.flush()


def _below(root: Path) -> tuple[dict[ProcessName, Path], list[str]]:
    running: dict[ProcessName, Path] = {}
    for name in _OWN_FOLDERS:
        running.update(remains.children(root / name))
    return running, remains.mounts(root)
