"""allowed_operations of everything but VMs and tasks: what a call would be let do now, kept true as records change.

An operation is listed exactly while the call that carries it out is not refused for the state that things are in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from xapi_migrate.errors import HandleInvalid
from xapi_migrate.store.interfaces import NULL, Change, Record
from xapi_migrate.store.records import Records

_OF_FEATURES = {"VDI_CREATE": "vdi_create", "VDI_DESTROY": "vdi_destroy", "VDI_RESIZE": "vdi_resize"}
_MATTERS = {
    "VM": ("power_state", "current_operations", "is_a_template"),
    "VBD": ("VM", "VDI", "currently_attached"),
    "PBD": ("SR", "currently_attached"),
}
_MOVING = ("Running", "Paused", "Suspended", "Halted")


class AllowedOperations:
    def __init__(self, records: Records) -> None:
        self._records = records
        self._seen: dict[str, tuple[object, ...]] = {}
        """What of each VM, VBD and PBD others depend on: most changes are of something else."""
        self._rules: dict[str, Callable[[str, Record], list[str]]] = {
            "host": self._of_host, "SR": self._of_sr, "VDI": self._of_vdi, "VBD": self._of_vbd, "VIF": self._of_vif,
        }  # fmt: skip
        for cls in self._rules:
            self._refresh(cls, records.refs(cls))
        self._end = records.subscribe(self._note)

    def stop(self) -> None:
        self._end()

    def _note(self, change: Change) -> None:
        record = change.record
        if change.foreign:
            return  # another member has kept it true
        if record is None:
            self._seen.pop(change.ref, None)
            return
        self._refresh(change.cls, [change.ref])
        fields = _MATTERS.get(change.cls)
        now = tuple(record[field] for field in fields) if fields else ()
        if now == self._seen.get(change.ref, ()):
            return
        self._seen[change.ref] = now
        if change.cls == "VM":
            self._refresh("VIF", record["VIFs"])
            self._refresh("VBD", record["VBDs"])
            vdis = [self._records.get("VBD", vbd)["VDI"] for vbd in self._there("VBD", record["VBDs"])]
            self._refresh("VDI", vdis)
            self._refresh("SR", [self._records.get("VDI", vdi)["SR"] for vdi in self._there("VDI", vdis)])
        elif change.cls == "VBD":
            self._refresh("VDI", [record["VDI"]])
            self._refresh("SR", [self._records.get("VDI", vdi)["SR"] for vdi in self._there("VDI", [record["VDI"]])])
        elif change.cls == "PBD":
            self._refresh("SR", [record["SR"]])
            for sr in self._there("SR", [record["SR"]]):
                self._refresh("VDI", self._records.get("SR", sr)["VDIs"])

    def _there(self, cls: str, refs: Iterable[str]) -> list[str]:
        """Those that have not been destroyed since."""
        found = []
        for ref in refs:
            try:
                self._records.get(cls, ref)
            except HandleInvalid:
                continue
            found.append(ref)
        return found

    def _refresh(self, cls: str, refs: Iterable[str]) -> None:
        rule = self._rules.get(cls)
        for ref in self._there(cls, refs) if rule else ():
            assert rule is not None
            record = self._records.get(cls, ref)
            now = rule(ref, record)
            if record["allowed_operations"] != now:
                self._records.update(cls, ref, allowed_operations=now)

    # -- the rules --------------------------------------------------------------------------------

    def _of_host(self, ref: str, record: Record) -> list[str]:
        return ["evacuate", "vm_migrate", "vm_start"] if record["enabled"] else ["enable", "evacuate", "vm_migrate"]

    def _of_sr(self, ref: str, record: Record) -> list[str]:
        if not self._records.find("PBD", SR=ref, currently_attached=True):
            return ["plug", "forget"]
        features: set[str] = set()
        for sm in self._records.find("SM", type=record["type"]):
            features |= set(self._records.get("SM", sm)["features"])
        allowed = ["scan", "update", *(operation for feature, operation in _OF_FEATURES.items() if feature in features)]
        if not any(self._in_use(vdi) for vdi in record["VDIs"]):
            allowed += ["unplug", "forget", "destroy"]
        return allowed

    def _of_vdi(self, ref: str, record: Record) -> list[str]:
        if not self._records.find("PBD", SR=record["SR"], currently_attached=True):
            return []
        if not self._in_use(ref):
            allowed = ["destroy"]
            if "vdi_resize" in self._records.get("SR", record["SR"])["allowed_operations"]:
                allowed.append("resize")
        else:
            allowed = []
        vms = [self._records.get("VBD", vbd)["VM"] for vbd in self._there("VBD", record["VBDs"])]
        return [*allowed, "mirror"] if vms and all(self._movable(vm) for vm in vms) else allowed

    def _of_vbd(self, ref: str, record: Record) -> list[str]:
        vm = self._free(record["VM"])
        if vm is None or vm["power_state"] != "Halted":
            return []
        if record["type"] == "CD":
            return ["attach", "insert" if record["empty"] else "eject"]
        return ["attach"]

    def _of_vif(self, ref: str, record: Record) -> list[str]:
        vm = self._free(record["VM"])
        return ["attach"] if vm is not None and vm["power_state"] == "Halted" else []

    # -- what they ask --------------------------------------------------------------------------

    def _free(self, vm: str) -> Record | None:
        """A VM that nothing is done with."""
        if vm == NULL or not self._there("VM", [vm]):
            return None
        record = self._records.get("VM", vm)
        return None if record["current_operations"] else record

    def _movable(self, vm: str) -> bool:
        record = self._free(vm)
        return record is not None and record["power_state"] in _MOVING and not record["is_a_template"]

    def _in_use(self, vdi: str) -> bool:
        """Attached, or a disk of a VM with which something is being done."""
        for vbd in self._there("VBD", self._records.get("VDI", vdi)["VBDs"] if self._there("VDI", [vdi]) else ()):
            record = self._records.get("VBD", vbd)
            if record["currently_attached"]:
                return True
            if record["VM"] != NULL and self._free(record["VM"]) is None:
                return True
        return False
