"""What PUT /import_metadata does when its body is in: one VM, whose disks are VDIs that are here already.

The document is read as a migration's is (migration/metadata_import.py): nothing of it is trusted, only known fields and
keys are taken, no path and no device setting. Keys that say where a VM stands in a migration are taken too, because a
daemon beside this one marks its VMs by them (upstream/arrival.py).
"""

from __future__ import annotations

import re
from typing import Any
from uuid import uuid4

from xapi_migrate.errors import HandleInvalid, ImportError_, OperationNotAllowed
from xapi_migrate.mac import new_mac, of_one_interface
from xapi_migrate.migration.metadata_import import IncomingDisk, IncomingNic, IncomingVM, import_vm
from xapi_migrate.refusals import DuplicateMacSeed, DuplicateVM, VdiLocationMissing
from xapi_migrate.store.interfaces import NULL
from xapi_migrate.store.records import Records
from xapi_migrate.xenapi.import_stream import Wish

MARKS = re.compile(r"HideFromXenCenter|xapi_migrate_arrival")
_SEED = "mac_seed"


class MetadataImporting:
    def __init__(self, records: Records) -> None:
        self._records = records

    async def run(self, document: bytes, wish: Wish) -> list[str]:
        """The VM's ref, Halted, in the database; nothing for a `dry_run`, which is refused what the import would be.
        ImportError_, DuplicateVM, DuplicateMacSeed, VdiLocationMissing, OperationNotAllowed: nothing was made."""
        if wish.other:
            raise OperationNotAllowed(f"An import of metadata with the option {wish.other} is not done here.")
        vm = import_vm(document, MARKS)
        if vm.power_state != "Halted":
            raise ImportError_(f"its VM is {vm.power_state}, and only Halted ones are imported here")
        await self._records.refresh()  # what other members of a pool have made
        vdis = [self._vdi(disk) for disk in vm.disks]
        networks = [self._network(nic) for nic in vm.nics]
        if wish.restore:
            self._check_twins(vm)
        if wish.dry_run:
            return []
        made: list[tuple[str, str]] = []
        try:
            ref = self._create(made, vm, vdis, networks, wish.restore)
            await self._records.flush()
        except BaseException:
            for cls, one in reversed(made):
                self._records.destroy(cls, one)
            raise
        return [ref]

    def _vdi(self, disk: IncomingDisk) -> str:
        """That to which it is mapped, else the same one."""
        known = self._records.refs("VDI")
        if disk.maps_to:
            if disk.maps_to not in known:
                raise HandleInvalid("VDI", disk.maps_to)
            return disk.maps_to
        for ref in self._records.find("VDI", uuid=disk.vdi_uuid):
            if self._records.get("SR", self._records.get("VDI", ref)["SR"])["uuid"] == disk.sr_uuid:
                return ref
        srs = self._records.find("SR", uuid=disk.sr_uuid) if disk.sr_uuid else []
        raise VdiLocationMissing(srs[0] if srs else NULL, disk.vdi_uuid)

    def _network(self, nic: IncomingNic) -> str:
        """The mapped one, else one of the same name, else the first."""
        if not of_one_interface(nic.mac):
            raise ImportError_(f"the MAC address {nic.mac} is not that of one interface")
        known = self._records.refs("network")
        if nic.maps_to:
            if nic.maps_to not in known:
                raise HandleInvalid("network", nic.maps_to)
            return nic.maps_to
        return next(iter([*self._records.find("network", name_label=nic.network_label), *known]), NULL)

    def _check_twins(self, vm: IncomingVM) -> None:
        for other in self._records.find("VM", uuid=vm.uuid):
            raise DuplicateVM(other)
        seed = vm.fields["other_config"].get(_SEED)
        if seed and any(
            self._records.get("VM", other)["other_config"].get(_SEED) == seed for other in self._records.refs("VM")
        ):
            raise DuplicateMacSeed(seed)

    def _create(
        self, made: list[tuple[str, str]], vm: IncomingVM, vdis: list[str], networks: list[str], restore: bool
    ) -> str:
        def create(cls: str, **fields: Any) -> str:
            ref = self._records.create(cls, **fields)
            made.append((cls, ref))
            return ref

        fields = dict(vm.fields)
        other = {key: value for key, value in fields.pop("other_config").items() if restore or key != _SEED}
        platform = {"cores-per-socket": "1", **fields.pop("platform")}
        ref = create(
            "VM", uuid=vm.uuid if restore else str(uuid4()), domid=-1, power_state="Halted",
            is_a_template=vm.is_a_template, other_config=other, platform=platform, **fields,
        )  # fmt: skip
        for disk, vdi in zip(vm.disks, vdis, strict=True):
            create(
                "VBD", VM=ref, VDI=vdi, userdevice=disk.userdevice, bootable=disk.bootable,
                mode="RO" if disk.read_only else "RW", type="Disk", empty=False,
            )  # fmt: skip
        taken = {disk.userdevice for disk in vm.disks}
        for device in vm.drives:
            if device not in taken:
                create("VBD", VM=ref, userdevice=device, type="CD", mode="RO", empty=True)
        for nic, network in zip(vm.nics, networks, strict=True):
            mac = nic.mac if restore else new_mac()
            create("VIF", VM=ref, device=nic.device, MAC=mac, MTU=nic.mtu, network=network)
        return ref
