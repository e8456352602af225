"""Records, sessions, roles, tasks and events of the stand-in."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from typing import Any

from .machines import Machines
from .records import MODEL, NULL, Failure, converted, now
from .spelling import Count

READ_ONLY = "read-only"
VM_POWER_ADMIN = (
    "vm.start", "vm.destroy", "vm.migrate_send", "vm.assert_can_migrate", "vm.add_to_blocked_operations",
    "vm.remove_from_blocked_operations", "vm.set_blocked_operations", "vm.set_is_a_template",
    "vm.remove_from_other_config", "vdi.create", "vdi.destroy", "vdi.forget", "vdi.remove_from_other_config",
    "vm.hard_shutdown", "vm.resume", "vbd.create", "vbd.destroy", "vbd.plug", "vbd.unplug", "host.migrate_receive",
    "http/put_import_metadata",
)  # fmt: skip
"""Some of what this role may."""


class Database(Machines):
    """`users`: name -> (password, role)."""

    def __init__(self, users: dict[str, tuple[str, str]]) -> None:
        super().__init__()
        self.users = users
        self.calls: list[str] = []
        self.registered: dict[str, tuple[set[str], int]] = {}
        self.stopping = False
        self.waiting = 0
        self.gate = threading.Event()
        """VM.clean_shutdown waits for it."""

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
            "get_all_records_where": lambda wanted: self._where(cls, wanted),
            "get_record": lambda ref: dict(self.find(cls, ref)),
            "get_by_uuid": lambda wanted: self._by_uuid(cls, wanted),
            "get_by_name_label": lambda wanted: [r for r, one in table.items() if one["name_label"] == wanted],
            "create": lambda fields: self.create(cls, **converted(cls, fields)),
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

    def _where(self, cls: str, wanted: str) -> dict[str, dict[str, Any]]:
        """Of the language of such expressions, one comparison."""
        matched = re.fullmatch(r'\s*field\s*"(\w+)"\s*=\s*"([^"]*)"\s*', wanted)
        if matched is None:
            raise Failure("INVALID_VALUE", wanted, "it cannot be read")
        return {ref: dict(one) for ref, one in self.records[cls].items() if one[matched[1]] == matched[2]}

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
            this_host=self.host, last_active=now(),
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
                self.update("task", task, status="success", progress=1.0, finished=now(), result=shown)
            except Failure as failure:
                self.update("task", task, status="failure", finished=now(), error_info=failure.description)

        threading.Thread(target=work, daemon=True).start()
        return task

    def task_create(self, label: str, description: str) -> str:
        return self.create(
            "task", name_label=label, name_description=description, status="pending", created=now(), type="<none/>",
            resident_on=self.host, backtrace="()",
        )  # fmt: skip

    def run_import(self, archive: bytes, session: str, task: str, restore: bool, dry_run: bool) -> None:
        """What becomes of it, the task says."""
        try:
            self._permit(self.session(session), "http/put_import_metadata")
            vms = self.import_metadata(archive, task, restore, dry_run)
            shown = "".join(f"<value>{vm}</value>" for vm in vms)
            result = f"<value><array><data>{shown}</data></array></value>"
            self.update("task", task, status="success", progress=1.0, finished=now(), result=result)
        except Exception as wrong:
            words = wrong.description if isinstance(wrong, Failure) else ["INTERNAL_ERROR", repr(wrong)]
            self.update("task", task, status="failure", finished=now(), error_info=words)

    def task_cancel(self, ref: str) -> None:
        self.find("task", ref)
        raise Failure("OPERATION_NOT_ALLOWED", "it cannot be cancelled")

    # -- VMs -------------------------------------------------------------------------------------

    def VM_clean_shutdown(self, vm: str) -> None:
        self.find("VM", vm)
        self.gate.wait(60)
        self.update("VM", vm, power_state="Halted", resident_on=NULL)

    def VM_assert_can_migrate(self, vm: str, dest: dict[str, str], *more: Any) -> None:
        self.find("VM", vm)

    def VM_migrate_send(self, vm: str, dest: dict[str, str], *more: Any) -> str:
        self.find("VM", vm)
        raise Failure("VM_MIGRATE_CONTACT_REMOTE_SERVICE_FAILED")

    # -- VDIs ------------------------------------------------------------------------------------

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
                self.changed.notify_all()
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
                self.changed.notify_all()
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
