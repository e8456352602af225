"""Records, sessions, roles, tasks and events of the stand-in."""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .spelling import Count, Moment

MODEL = json.loads((Path(__file__).parents[3] / "xapi_migrate/xenapi/datamodel.json").read_text())["classes"]
NULL = "OpaqueRef:NULL"
EPOCH = Moment("19700101T00:00:00Z")
READ_ONLY = "read-only"
SR_MOUNT = Path("/run/sr-mount")
"""Below it xapi mounts SRs of images."""
RELATIONS = {
    ("VBD", "VM"): ("VM", "VBDs"), ("VBD", "VDI"): ("VDI", "VBDs"), ("VIF", "VM"): ("VM", "VIFs"),
    ("VIF", "network"): ("network", "VIFs"), ("VDI", "SR"): ("SR", "VDIs"), ("PBD", "SR"): ("SR", "PBDs"),
    ("PBD", "host"): ("host", "PBDs"),
}  # fmt: skip
"""A reference, and the set at what it leads to."""
VM_POWER_ADMIN = (
    "vm.start", "vm.destroy", "vm.migrate_send", "vm.assert_can_migrate", "vm.add_to_blocked_operations",
    "vm.remove_from_blocked_operations", "vdi.destroy", "vdi.forget", "host.migrate_receive",
)  # fmt: skip
"""Some of what this role may."""


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


def _now() -> Moment:
    return Moment(time.strftime("%Y%m%dT%H:%M:%SZ", time.gmtime()))


class Database:
    """`users`: name -> (password, role)."""

    def __init__(self, users: dict[str, tuple[str, str]]) -> None:
        self.users = users
        self.changed = threading.Condition()
        self.generation = 100
        self.records: dict[str, dict[str, dict[str, Any]]] = {cls: {} for cls in MODEL}
        self.log: list[tuple[int, str, str, str]] = []
        self.calls: list[str] = []
        self.registered: dict[str, tuple[set[str], int]] = {}
        self.stopping = False
        self.waiting = 0
        self.gate = threading.Event()
        """VM.clean_shutdown waits for it."""
        self.host = self.create("host", name_label="simulated", address="127.0.0.1", enabled=True)
        self.pool = self.create("pool", master=self.host)
        self.network = self.create("network", name_label="Pool-wide network", bridge="xenbr0")

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

    # -- calls -----------------------------------------------------------------------------------

    def call(self, method: str, params: list[Any], local: bool) -> Any:
        self.calls.append(method)
        if method == "session.login_with_password":
            return self.login(*params[:2], local=local)
        if method == "system.listMethods":
            return [f"{cls}.{name}" for cls, spec in MODEL.items() for name in spec["messages"]]
        if not params:
            raise Failure("MESSAGE_METHOD_UNKNOWN", method)
        session = self.session(params[0])
        background = method.startswith("Async.")
        cls, _, name = method.removeprefix("Async.").partition(".")
        if name not in MODEL.get(cls, {"messages": ()})["messages"]:
            raise Failure("MESSAGE_METHOD_UNKNOWN", method)
        if not name.startswith("get_") and cls not in ("event", "session", "task"):
            self._permit(session, f"{cls}.{name}".lower())
        if cls == "VM" and len(params) > 1:
            self._not_blocked(params[1], name)
        run = getattr(self, f"{cls}_{name}", None) or self._generic(cls, name)
        if background:
            return self._begin(f"Async.{cls}.{name}", run, params[1:])
        if cls in ("event", "session"):
            return run(params[0], *params[1:])
        return run(*params[1:])

    def _not_blocked(self, vm: Any, operation: str) -> None:
        known = self.records["VM"].get(vm, {}) if isinstance(vm, str) else {}
        blocked = known.get("blocked_operations", {})
        if operation in blocked:
            raise Failure("OPERATION_BLOCKED", vm, blocked[operation])

    def _permit(self, session: dict[str, Any], permission: str) -> None:
        if not session["is_local_superuser"] and permission not in session["rbac_permissions"]:
            raise Failure(
                "RBAC_PERMISSION_DENIED", permission, "No permission in user session. (Roles with this: many)"
            )

    def _generic(self, cls: str, name: str) -> Callable[..., Any]:
        table = self.records[cls]
        found: dict[str, Callable[..., Any]] = {
            "get_all": lambda: list(table),
            "get_all_records": lambda: {ref: dict(record) for ref, record in table.items()},
            "get_record": lambda ref: dict(self.find(cls, ref)),
            "get_by_uuid": lambda wanted: self._by_uuid(cls, wanted),
            "get_by_name_label": lambda wanted: [r for r, one in table.items() if one["name_label"] == wanted],
            "create": lambda fields: self.create(cls, **_converted(cls, fields)),
            "destroy": lambda ref: self.destroy(cls, ref),
        }
        if name in found:
            return found[name]
        for prefix in ("get_", "set_", "add_to_", "remove_from_"):
            field = name.removeprefix(prefix)
            if name.startswith(prefix) and field in {one[0] for one in MODEL[cls]["fields"]}:
                return lambda ref, *values: self._field(prefix, cls, ref, field, *values)
        raise Failure("NOT_IMPLEMENTED", f"{cls}.{name}")

    def _by_uuid(self, cls: str, wanted: str) -> str:
        for ref, record in self.records[cls].items():
            if record["uuid"] == wanted:
                return ref
        raise Failure("UUID_INVALID", cls, wanted)

    def _field(self, prefix: str, cls: str, ref: str, field: str, *values: Any) -> Any:
        known = self.find(cls, ref)[field]
        if prefix == "get_":
            return known
        if prefix == "set_":
            known = values[0]
        elif prefix == "add_to_":
            if values[0] in known:
                raise Failure("MAP_DUPLICATE_KEY", cls, field, self.find(cls, ref)["uuid"], values[0])
            known = {**known, values[0]: values[1]}
        else:
            known = {key: one for key, one in known.items() if key != values[0]}
        return self.update(cls, ref, **{field: known})

    # -- sessions --------------------------------------------------------------------------------

    def login(self, name: str, password: str, local: bool) -> str:
        known = self.users.get(name)
        if not local and (known is None or known[0] != password):
            raise Failure("SESSION_AUTHENTICATION_FAILED", name, "Authentication failure")
        role = "root" if local or known is None else known[1]
        permissions = [] if role == READ_ONLY else list(VM_POWER_ADMIN)
        return self.create(
            "session", auth_user_name=name, is_local_superuser=role == "root", rbac_permissions=permissions,
            this_host=self.host, last_active=_now(),
        )  # fmt: skip

    def session_get_this_host(self, session: str, ref: str) -> str:
        return str(self.session(ref)["this_host"])

    def session(self, ref: Any) -> dict[str, Any]:
        if ref not in self.records["session"]:
            raise Failure("SESSION_INVALID", str(ref))
        return self.records["session"][ref]

    def session_logout(self, session: str) -> None:
        self.destroy("session", session)

    def session_get_record(self, session: str, ref: str) -> dict[str, Any]:
        return dict(self.session(ref))

    def session_get_uuid(self, session: str, ref: str) -> str:
        return str(self.session(ref)["uuid"])

    # -- tasks -----------------------------------------------------------------------------------

    def _begin(self, label: str, run: Callable[..., Any], params: list[Any]) -> str:
        task = self.task_create(label, "")

        def work() -> None:
            try:
                result = run(*params)
                shown = "<value></value>" if result is None else f"<value>{result}</value>"
                self.update("task", task, status="success", progress=1.0, finished=_now(), result=shown)
            except Failure as failure:
                self.update("task", task, status="failure", finished=_now(), error_info=failure.description)

        threading.Thread(target=work, daemon=True).start()
        return task

    def task_create(self, label: str, description: str) -> str:
        return self.create(
            "task", name_label=label, name_description=description, status="pending", created=_now(), type="<none/>",
            resident_on=self.host, backtrace="()",
        )  # fmt: skip

    def task_cancel(self, ref: str) -> None:
        self.find("task", ref)
        raise Failure("OPERATION_NOT_ALLOWED", "it cannot be cancelled")

    # -- VMs -------------------------------------------------------------------------------------

    def VM_start(self, vm: str, paused: bool, force: bool) -> None:
        self.update("VM", vm, power_state="Running", resident_on=self.host)

    def VM_clean_shutdown(self, vm: str) -> None:
        self.find("VM", vm)
        self.gate.wait(60)
        self.update("VM", vm, power_state="Halted", resident_on=NULL)

    def VM_destroy(self, vm: str) -> None:
        with self.changed:
            for cls, field in (("VBD", "VBDs"), ("VIF", "VIFs")):
                for ref in list(self.find("VM", vm)[field]):
                    self.destroy(cls, ref)
            self.destroy("VM", vm)

    def VM_assert_can_migrate(self, vm: str, dest: dict[str, str], *more: Any) -> None:
        self.find("VM", vm)

    def VM_migrate_send(self, vm: str, dest: dict[str, str], *more: Any) -> str:
        self.find("VM", vm)
        raise Failure("VM_MIGRATE_CONTACT_REMOTE_SERVICE_FAILED")

    # -- VDIs ------------------------------------------------------------------------------------

    def VDI_destroy(self, vdi: str) -> None:
        with self.changed:
            record = self.find("VDI", vdi)
            if any(self.find("VBD", vbd)["currently_attached"] for vbd in record["VBDs"]):
                raise Failure("VDI_IN_USE", vdi, "destroy")
            sr = self.find("SR", record["SR"])
            (SR_MOUNT / sr["uuid"] / f"{record['uuid']}.vhd").unlink(missing_ok=True)
            self.destroy("VDI", vdi)

    def VDI_forget(self, vdi: str) -> None:
        self.destroy("VDI", vdi)

    # -- plug-ins --------------------------------------------------------------------------------

    def host_call_plugin(self, host: str, plugin: str, fn: str, args: dict[str, str]) -> str:
        self.find("host", host)
        if plugin != "echo":
            raise Failure("XENAPI_MISSING_PLUGIN", plugin)
        return f"{fn} {sorted(args)}"

    # -- events ----------------------------------------------------------------------------------

    def token(self) -> str:
        return f"{self.generation:020d},{0:020d}"

    def event_inject(self, session: str, cls: str, ref: str) -> str:
        self.update(cls, ref)
        return self.token()

    def event_from(self, session: str, classes: list[str], token: str, timeout: float) -> dict[str, Any]:
        if token and (len(token) != 41 or not token.replace(",", "").isdecimal()):
            raise Failure("EVENT_FROM_TOKEN_PARSE_FAILURE", token)
        after = int(token[:20]) if token else 0
        until = time.monotonic() + timeout
        with self.changed:
            self.waiting += 1
            self.changed.notify_all()
            try:
                while True:
                    self.session(session)
                    events = self._events(classes, after)
                    left = until - time.monotonic()
                    if events or left <= 0 or self.stopping:
                        break
                    self.changed.wait(left)
            finally:
                self.waiting -= 1
            counts = {cls.lower(): Count(len(table)) for cls, table in self.records.items() if cls != "session"}
            return {"events": events, "valid_ref_counts": counts, "token": self.token()}

    def event_register(self, session: str, classes: list[str]) -> None:
        names, seen = self.registered.get(session, (set(), self.generation))
        self.registered[session] = (names | {one.lower() for one in classes}, seen)

    def event_unregister(self, session: str, classes: list[str]) -> None:
        names, seen = self.registered.get(session, (set(), 0))
        self.registered[session] = (names - {one.lower() for one in classes}, seen)

    def event_next(self, session: str) -> list[dict[str, Any]]:
        """What it has answered it tells no more."""
        with self.changed:
            if not self.registered.get(session, ((), 0))[0]:
                raise Failure("SESSION_NOT_REGISTERED", session)
            self.waiting += 1
            self.changed.notify_all()
            try:
                while True:
                    self.session(session)
                    names, seen = self.registered[session]
                    events = self._events(sorted(names), seen)
                    if events or self.stopping:
                        break
                    self.changed.wait(60)
            finally:
                self.waiting -= 1
            self.registered[session] = (names, self.generation)
            return [{**one, "obj_uuid": one.get("snapshot", {}).get("uuid", "")} for one in events]

    def _events(self, classes: list[str], after: int) -> list[dict[str, Any]]:
        wanted = {one.lower() for one in classes}
        latest: dict[tuple[str, str], tuple[int, str]] = {}
        born: dict[tuple[str, str], int] = {}
        for number, cls, ref, operation in self.log:
            latest[cls, ref] = (number, operation)
            born.setdefault((cls, ref), number)
        events = []
        for (cls, ref), (number, operation) in sorted(latest.items(), key=lambda item: item[1][0]):
            shown = wanted & {"*", cls.lower(), f"{cls}/{ref}".lower()}
            if number <= after or cls == "session" or not shown or (operation == "del" and born[cls, ref] > after):
                continue
            event: dict[str, Any] = {"id": str(number), "timestamp": "0.0", "class": cls.lower(), "ref": ref}
            if operation == "del":
                event["operation"] = "del"
            else:
                event["operation"] = "add" if born[cls, ref] > after else "mod"
                event["snapshot"] = dict(self.records[cls][ref])
            events.append(event)
        return events


def _converted(cls: str, fields: dict[str, Any]) -> dict[str, Any]:
    types = {name: type_ for name, type_, _, _ in MODEL[cls]["fields"]}
    known = {name: one for name, one in fields.items() if name in types and name != "uuid"}
    return {name: int(one) if types[name] == "int" else one for name, one in known.items()}
