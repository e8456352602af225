"""The tables of the stand-in."""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .spelling import Moment

MODEL = json.loads((Path(__file__).parents[3] / "xapi_migrate/xenapi/datamodel.json").read_text())["classes"]
NULL = "OpaqueRef:NULL"
EPOCH = Moment("19700101T00:00:00Z")


RELATIONS = {
    ("VBD", "VM"): ("VM", "VBDs"), ("VBD", "VDI"): ("VDI", "VBDs"), ("VIF", "VM"): ("VM", "VIFs"),
    ("VIF", "network"): ("network", "VIFs"), ("VDI", "SR"): ("SR", "VDIs"), ("PBD", "SR"): ("SR", "PBDs"),
    ("PBD", "host"): ("host", "PBDs"),
}  # fmt: skip
"""A reference, and the set at what it leads to."""


class Failure(Exception):
    def __init__(self, *description: str) -> None:
        super().__init__(*description)
        self.description = list(description)


def _default(type_: str, given: Any) -> Any:
    if type_ == "datetime":
        return Moment(given or EPOCH)
    if type_ == "int":
        return int(given or 0)
    if type_ == "float":
        return float(given or 0)
    if type_ == "bool":
        return bool(given)
    if type_.endswith(" set"):
        return list(given or [])
    if type_.endswith(" map"):
        return dict(given or {})
    return given or (NULL if type_.endswith(" ref") else "")


def now() -> Moment:
    return Moment(time.strftime("%Y%m%dT%H:%M:%SZ", time.gmtime()))


class Tables:
    """All records by class and ref; `log` tells of each change, `starts` of each VM that was started, by its uuid."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.generation = 100
        self.records: dict[str, dict[str, dict[str, Any]]] = {cls: {} for cls in MODEL}
        self.log: list[tuple[int, str, str, str]] = []
        self.starts: list[str] = []
        self.host = self.create("host", name_label="simulated", address="127.0.0.1", enabled=True)
        self.pool = self.create("pool", master=self.host)
        self.network = self.create("network", name_label="Pool-wide network", bridge="xenbr0")

    def add_control_domain(self) -> None:
        """As every xapi has one; most tests do without."""
        domain = self.create(
            "VM", name_label="Control domain on host: simulated", is_control_domain=True, is_a_template=False,
            power_state="Running", domid=0, resident_on=self.host,
        )  # fmt: skip
        self.update("host", self.host, control_domain=domain)

    # -- records ---------------------------------------------------------------------------------

    def create(self, cls: str, **fields: Any) -> str:
        with self.changed:
            ref = f"OpaqueRef:{uuid.uuid4()}"
            record = {name: _default(type_, given) for name, type_, _, given in MODEL[cls]["fields"]}
            self.records[cls][ref] = {**record, "uuid": str(uuid.uuid4()), **fields}
            self._note(cls, ref, "add")
            for other, field, known in self._related(cls, ref):
                known.append(ref)
                self._note(other, field, "mod")
            return ref

    def _related(self, cls: str, ref: str) -> list[tuple[str, str, list[str]]]:
        """Class and reference of what has this one in a set, and the set."""
        found = []
        for (of, name), (other, many) in RELATIONS.items():
            target = self.records[cls][ref].get(name)
            if of == cls and target in self.records[other]:
                found.append((other, target, self.records[other][target][many]))
        return found

    def update(self, cls: str, ref: str, **fields: Any) -> None:
        with self.changed:
            self.find(cls, ref).update(fields)
            self._note(cls, ref, "mod")

    def destroy(self, cls: str, ref: str) -> None:
        with self.changed:
            self.find(cls, ref)
            for other, target, known in self._related(cls, ref):
                if ref in known:
                    known.remove(ref)
                    self._note(other, target, "mod")
            del self.records[cls][ref]
            self._note(cls, ref, "del")

    def find(self, cls: str, ref: str) -> dict[str, Any]:
        if ref not in self.records[cls]:
            raise Failure("HANDLE_INVALID", cls, ref)
        return self.records[cls][ref]

    def _note(self, cls: str, ref: str, operation: str) -> None:
        self.generation += 1
        self.log.append((self.generation, cls, ref, operation))
        self.changed.notify_all()


def converted(cls: str, fields: dict[str, Any]) -> dict[str, Any]:
    """What a client gives, as it is kept."""
    types = {name: type_ for name, type_, _, _ in MODEL[cls]["fields"]}
    known = {name: one for name, one in fields.items() if name in types and name != "uuid"}
    kinds: dict[str, Callable[[Any], Any]] = {"int": int, "datetime": lambda one: Moment(str(one))}
    return {name: kinds.get(types[name], lambda one: one)(one) for name, one in known.items()}
