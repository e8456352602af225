"""The VDI that holds a suspended VM's memory: where it is made, how it is seen as a file, how it goes."""

from __future__ import annotations

import attrs
from twisted.logger import Logger

from xapi_migrate.errors import HandleInvalid, SrNotAttached, VdiInUse
from xapi_migrate.refusals import VmNoSuspendSr
from xapi_migrate.sm.interfaces import IShowsImages
from xapi_migrate.store.records import Records
from xapi_migrate.toolstack.machines import Machines
from xapi_migrate.toolstack.storage import Storage


@attrs.frozen
class Plan:
    """`domain` the one that is suspended, or the new one; `vdi` and `sr` the image's, by their uuids; `paused`: the
    domain does not run when it is back."""

    task: str
    vm: str
    domain: str
    vdi: str
    sr: str
    paused: bool = False
    given_up: str = ""


class SuspendVDIs:
    """Of the VMs of one host."""

    log = Logger()

    def __init__(self, records: Records, storage: Storage, machines: Machines, host: str) -> None:
        self._records = records
        self._storage = storage
        self._machines = machines
        self._host = host

    def sr_for(self, vm: str) -> str:
        """Where the image goes: what is nearest to the VM wins, then the SR of its first disk. VmNoSuspendSr."""
        record = self._records.get("VM", vm)
        wanted = [record["suspend_SR"], self._records.get("host", self._host)["suspend_image_sr"]]
        wanted += [self._records.get("pool", pool)["suspend_image_SR"] for pool in self._records.refs("pool")]
        disks = [self._records.get("VBD", vbd)["VDI"] for vbd in self._machines.disks(vm)]
        wanted += [self._records.get("VDI", vdi)["SR"] for vdi in disks]
        for sr in wanted:
            if sr in self._records.refs("SR"):
                if not IShowsImages.providedBy(self._storage.sr(sr)):
                    continue  # its backend has a way of its own to its disks
                return str(sr)
        raise VmNoSuspendSr(vm)

    def shows(self, plan: Plan) -> IShowsImages:
        shows: IShowsImages = IShowsImages(self._storage.sr(plan.sr))
        return shows

    def sr(self, plan: Plan) -> str:
        return self._records.find("SR", uuid=plan.sr)[0]

    def ref(self, plan: Plan) -> str:
        """Its ref; "" if there is no record of it."""
        return next(iter(self._records.find("VDI", uuid=plan.vdi)), "")

    async def drop(self, plan: Plan) -> None:
        """Nothing is left of it, unless somebody has taken it for his own. Repeatable. SrNotAttached."""
        try:
            await self.shows(plan).view_close(plan.vdi)
            vdi = self.ref(plan)
            if vdi:
                await self._storage.destroy_vdi(vdi)
            else:
                await self._storage.sr(plan.sr).vdi_destroy(plan.vdi)
        except HandleInvalid:
            pass  # its SR was forgotten
        except VdiInUse as used:
            self.log.warn("The suspend image stays: {used}", used=used)

    async def close(self, plan: Plan) -> None:
        """Nobody reads it any more. Repeatable."""
        try:
            await self.shows(plan).view_close(plan.vdi)
        except (SrNotAttached, HandleInvalid):
            pass  # the daemon has closed what an earlier one had opened, and none of its own could have been
