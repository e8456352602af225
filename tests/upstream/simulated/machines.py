"""VMs, their disks and what imports them, as the stand-in has them."""

from __future__ import annotations

import io
import tarfile
import xmlrpc.client
from typing import Any

from .records import NULL, Failure, Tables, converted
from .storage import SR_MOUNT, Images, Storage

BEFORE_EXPORT = (2, 23)
"""The version of the stand-in's API: it imports nothing newer."""


class Machines(Tables):
    """`storages`: by SR."""

    def __init__(self) -> None:
        super().__init__()
        self.storages: dict[str, Storage] = {}

    def storage(self, sr: str) -> Storage:
        """Of an SR that has none of its own: below where xapi mounts it."""
        return self.storages.get(sr) or Images(SR_MOUNT / self.find("SR", sr)["uuid"], "vhd")

    # -- VDIs ------------------------------------------------------------------------------------

    def VDI_create(self, fields: dict[str, Any]) -> str:
        self.find("SR", fields["SR"])
        vdi = self.create("VDI", **converted("VDI", fields))
        record = self.find("VDI", vdi)
        try:
            size = self.storage(record["SR"]).create(record["uuid"], record["virtual_size"])
        except Failure:
            self.destroy("VDI", vdi)
            raise
        self.update("VDI", vdi, virtual_size=size, location=record["uuid"], managed=True)
        return vdi

    def VDI_destroy(self, vdi: str) -> None:
        with self.changed:
            record = self.find("VDI", vdi)
            if any(self.find("VBD", vbd)["currently_attached"] for vbd in record["VBDs"]):
                raise Failure("VDI_IN_USE", vdi, "destroy")
            self.storage(record["SR"]).destroy(record["uuid"])
            self.destroy("VDI", vdi)

    # -- VBDs ------------------------------------------------------------------------------------

    def VBD_plug(self, vbd: str) -> None:
        """Between attachments of one VDI the storage layer judges: by the key of a host in its sm_config."""
        record = self.find("VBD", vbd)
        if self.find("VM", record["VM"])["power_state"] != "Running":
            raise Failure("VM_BAD_POWER_STATE", record["VM"], "running", "halted")
        if record["currently_attached"]:
            raise Failure("DEVICE_ALREADY_ATTACHED", vbd)
        self._attach(vbd)

    def _attach(self, vbd: str) -> None:
        with self.changed:
            record = self.find("VBD", vbd)
            config = self.find("VDI", record["VDI"])["sm_config"]
            modes = [mode for key, mode in config.items() if key.startswith("host_")]
            if "RW" in modes or (modes and record["mode"] == "RW"):
                raise Failure("SR_BACKEND_FAILURE_46", "", "The VDI is not available", "it is attached")
            self.update("VDI", record["VDI"], sm_config={**config, f"host_{self.host}": record["mode"]})
            self.update("VBD", vbd, currently_attached=True)

    def VBD_unplug(self, vbd: str) -> None:
        with self.changed:
            record = self.find("VBD", vbd)
            if not record["currently_attached"]:
                raise Failure("DEVICE_ALREADY_DETACHED", vbd)
            self.update("VBD", vbd, currently_attached=False)
            vdi = self.find("VDI", record["VDI"])
            if not any(self.find("VBD", one)["currently_attached"] for one in vdi["VBDs"]):
                config = {key: one for key, one in vdi["sm_config"].items() if not key.startswith("host_")}
                self.update("VDI", record["VDI"], sm_config=config)

    def VBD_destroy(self, vbd: str) -> None:
        if self.find("VBD", vbd)["currently_attached"]:
            raise Failure("OPERATION_NOT_ALLOWED", f"VBD '{vbd}' still attached")
        self.destroy("VBD", vbd)

    # -- VMs -------------------------------------------------------------------------------------

    def VM_start(self, vm: str, paused: bool, force: bool) -> None:
        record = self.find("VM", vm)
        for busy in record["current_operations"].values():
            raise Failure("OTHER_OPERATION_IN_PROGRESS", "VM", vm, busy)
        if record["is_a_template"]:
            raise Failure("VM_IS_TEMPLATE", vm)
        if record["power_state"] != "Halted":
            raise Failure("VM_BAD_POWER_STATE", vm, "halted", record["power_state"].lower())
        for vbd in record["VBDs"]:
            if not self.find("VBD", vbd)["empty"]:
                self._attach(vbd)
        self.update("VM", vm, power_state="Running", resident_on=self.host)
        self.starts.append(record["uuid"])

    def VM_resume(self, vm: str, paused: bool, force: bool) -> None:
        """Its image goes."""
        record = self.find("VM", vm)
        if record["power_state"] != "Suspended" or record["is_a_template"]:
            raise Failure("VM_BAD_POWER_STATE", vm, "suspended", record["power_state"].lower())
        self.VM_hard_shutdown(vm)
        self.VM_start(vm, paused, force)

    def VM_hard_shutdown(self, vm: str) -> None:
        record = self.find("VM", vm)
        if record["power_state"] == "Halted":
            raise Failure("VM_BAD_POWER_STATE", vm, "running, suspended", "halted")
        if record["power_state"] == "Suspended":
            self.VDI_destroy(record["suspend_VDI"])
        self.update("VM", vm, power_state="Halted", suspend_VDI=NULL, resident_on=NULL)

    def VM_destroy(self, vm: str) -> None:
        state = self.find("VM", vm)["power_state"]
        if state != "Halted":
            raise Failure("VM_BAD_POWER_STATE", vm, "halted", state.lower())
        with self.changed:
            for cls, field in (("VBD", "VBDs"), ("VIF", "VIFs")):
                for ref in list(self.find("VM", vm)[field]):
                    self.destroy(cls, ref)
            self.destroy("VM", vm)

    # -- import ----------------------------------------------------------------------------------

    def import_metadata(self, archive: bytes, task: str, restore: bool, dry_run: bool) -> list[str]:
        """The VMs. Objects in this order: SR, VDI, VM, network, VBD, VIF; Failure, and nothing of it is left."""
        exported = _objects(archive)
        table: dict[str, str] = {}
        made: list[tuple[str, str]] = []
        try:
            for cls in ("SR", "VDI", "VM", "network", "VBD", "VIF"):
                for ref, one in ((ref, one) for kind, ref, one in exported if kind == cls):
                    handler = getattr(self, f"_import_{cls}")
                    handler(ref, one, table, made, task, restore, dry_run)
        except Failure:
            for cls, ref in reversed(made):
                if cls == "VM":
                    self.update("VM", ref, current_operations={})
                    self.VM_destroy(ref)
            raise
        vms = [ref for cls, ref in made if cls == "VM"]
        for vm in vms:
            self.update("VM", vm, current_operations={})
        return vms

    def _import_SR(self, ref: str, one: Any, table: Any, *_: Any) -> None:
        for sr, record in self.records["SR"].items():
            if record["uuid"] == one["uuid"]:
                table[ref] = sr

    def _import_VDI(self, ref: str, one: Any, table: Any, *_: Any) -> None:
        for vdi, record in self.records["VDI"].items():
            if record["location"] == one["location"] and record["SR"] == table.get(one["SR"]):
                table[ref] = vdi
                return
        if "maps_to" not in one["other_config"]:
            raise Failure("VDI_LOCATION_MISSING", table.get(one["SR"], NULL), one["location"])
        self.find("VDI", one["other_config"]["maps_to"])
        table[ref] = one["other_config"]["maps_to"]

    def _import_VM(self, ref: str, one: Any, table: Any, made: Any, task: str, restore: bool, dry_run: bool) -> None:
        for other, record in list(self.records["VM"].items()):
            if restore and record["uuid"] == one["uuid"]:
                if record["power_state"] != "Halted":
                    raise Failure("VM_BAD_POWER_STATE", other, "halted", record["power_state"].lower())
                if record["version"] >= int(one["version"]):
                    raise Failure(
                        "VM_TO_IMPORT_IS_NOT_NEWER_VERSION", other, str(record["version"]), str(one["version"])
                    )
                if not dry_run:
                    self.VM_destroy(other)
        seed = one["other_config"].get("mac_seed")
        if seed and restore and seed in [record["other_config"].get("mac_seed") for record in self._vms()]:
            raise Failure("DUPLICATE_MAC_SEED", seed)
        if dry_run:
            table[ref] = "dummy"
            return
        # VM.create takes no blocked_operations over, and makes every VM Halted
        fields = {**converted("VM", one), "blocked_operations": {}, "power_state": "Halted"}
        for field in ("VBDs", "VIFs", "suspend_VDI", "resident_on", "affinity", "metrics", "guest_metrics"):
            fields.pop(field, None)
        vm = table[ref] = self.create("VM", **fields)
        made.append(("VM", vm))
        suspended = one["power_state"] == "Suspended"
        self.update(
            "VM", vm, current_operations={task: "import"}, version=fields["version"] + restore,
            other_config={**fields["other_config"], "import_task": task},
            power_state="Suspended" if suspended else "Halted",
            suspend_VDI=table[one["suspend_VDI"]] if suspended else NULL,
            **({"uuid": one["uuid"]} if restore else {}),
        )  # fmt: skip

    def _vms(self) -> list[dict[str, Any]]:
        return list(self.records["VM"].values())

    def _import_network(self, ref: str, one: Any, table: Any, *_: Any) -> None:
        for network, record in self.records["network"].items():
            if record["name_label"] == one["name_label"] or record["bridge"] == one["bridge"]:
                table[ref] = network
                return
        raise AssertionError(f"the network {one['name_label']} would be made")

    def _import_VBD(self, ref: str, one: Any, table: Any, made: Any, task: str, restore: bool, dry_run: bool) -> None:
        if one["type"] == "Disk" and one["VDI"] not in table:
            return
        if not dry_run:
            fields = {**one, "VM": table[one["VM"]], "VDI": table.get(one["VDI"], NULL), "currently_attached": False}
            table[ref] = self.create("VBD", **{**converted("VBD", fields), "empty": fields["VDI"] == NULL})

    def _import_VIF(self, ref: str, one: Any, table: Any, made: Any, task: str, restore: bool, dry_run: bool) -> None:
        other = dict(one["other_config"])
        network = other.pop("maps_to", None) or table[one["network"]]
        self.find("network", network)
        if not dry_run:
            mac = one["MAC"] if restore else ""
            fields = {**one, "VM": table[one["VM"]], "network": network, "other_config": other, "MAC": mac}
            table[ref] = self.create("VIF", **{**converted("VIF", fields), "currently_attached": False})


def _objects(archive: bytes) -> list[tuple[str, str, dict[str, Any]]]:
    with tarfile.open(fileobj=io.BytesIO(archive), mode="r:") as tar:
        member = tar.next()
        if member is None or member.name != "ova.xml":
            raise Failure("IMPORT_ERROR_UNEXPECTED_FILE", "ova.xml", member.name if member else "")
        file = tar.extractfile(member)
        assert file is not None
        document = file.read().decode()
    call = f"<methodResponse><params><param>{document}</param></params></methodResponse>"
    value: Any = xmlrpc.client.loads(call)[0][0]
    newest = int(value["version"]["xapi_major"]), int(value["version"]["xapi_minor"])
    if newest > BEFORE_EXPORT:
        raise Failure("IMPORT_INCOMPATIBLE_VERSION")
    return [(one["class"], one["id"], one["snapshot"]) for one in value["objects"]]
