"""A stand-in for a XenAPI server: a few records, the generic calls on them, a scripted migration task, and a list of
the calls in the order in which they came, shared by all servers of one test."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from xmlrpc.server import SimpleXMLRPCRequestHandler, SimpleXMLRPCServer

NULL = "OpaqueRef:NULL"
PASSWORD = "s3cret"


class ApiError(Exception):
    """Answered as Status Failure."""


def vm(name: str, uuid: str, **fields: Any) -> dict[str, Any]:
    return {
        "uuid": uuid, "name_label": name, "power_state": "Running", "resident_on": "OpaqueRef:host",
        "other_config": {}, "is_a_template": False, "is_control_domain": False, "is_a_snapshot": False,
        "memory_static_max": str(64 << 20), "current_operations": {}, "VBDs": [], **fields,
    }  # fmt: skip


def sr(name: str, uuid: str, **fields: Any) -> dict[str, Any]:
    return {
        "uuid": uuid, "name_label": name, "type": "file", "content_type": "user", "shared": False, "PBDs": [],
        "physical_size": str(10 << 30), "physical_utilisation": str(2 << 30), **fields,
    }  # fmt: skip


def task(**fields: Any) -> dict[str, Any]:
    return {
        "uuid": "7a5c0000-0000-4000-8000-000000000001", "name_label": "VM.migrate_send", "status": "pending",
        "progress": 0.0, "other_config": {}, "allowed_operations": ["cancel"], "error_info": [],
        "created": "20260101T00:00:00Z", **fields,
    }  # fmt: skip


class StandIn:
    """`states` are the task's fields at each look at it, one after the other; the last one stays. `errors` are
    ErrorDescriptions by method."""

    def __init__(self, name: str, calls: list[str]) -> None:
        self.name = name
        self.calls = calls
        self.records: dict[str, dict[str, dict[str, Any]]] = {
            "VM": {}, "SR": {}, "VBD": {}, "VDI": {}, "PBD": {}, "task": {}, "network": {},
            "host": {"OpaqueRef:host": {"uuid": "b0000000-0000-4000-8000-000000000001", "name_label": name}},
            "pool": {"OpaqueRef:pool": {"uuid": "b0000000-0000-4000-8000-000000000002", "name_label": "",
                                        "default_SR": NULL}},
        }  # fmt: skip
        self.states: list[dict[str, Any]] = []
        self.errors: dict[str, list[str]] = {}
        self.received: list[Any] = []
        self.url = ""
        self.this_host = f"OpaqueRef:host-{name}"

    def answer(self, method: str, parameters: tuple[Any, ...]) -> dict[str, Any]:
        try:
            return {"Status": "Success", "Value": self._value(method, parameters)}
        except ApiError as error:
            return {"Status": "Failure", "ErrorDescription": list(error.args)}

    def _value(self, method: str, parameters: tuple[Any, ...]) -> Any:
        if ".get_" not in method:
            self.calls.append(f"{self.name} {method}")
        if method in self.errors:
            raise ApiError(*self.errors[method])
        if method == "session.login_with_password":
            if parameters[1] != PASSWORD:
                raise ApiError("SESSION_AUTHENTICATION_FAILED", parameters[0], "Authentication failure")
            return f"OpaqueRef:session-{self.name}"
        if parameters[0] != f"OpaqueRef:session-{self.name}":
            raise ApiError("SESSION_INVALID", str(parameters[0]))
        if method == "session.get_this_host":
            return self.this_host
        if method == "session.logout":
            return ""
        if method == "VM.receive":
            self.received = list(parameters[1:])
            return [f"{self.url}/migrate/capability"]
        if method == "Async.VM.migrate":
            self.received = list(parameters[1:])
            self.records["task"]["OpaqueRef:task"] = task()
            return "OpaqueRef:task"
        if method == "task.cancel":
            self.states = [{"status": "cancelled", "progress": 1.0}]
            return ""
        if method == "task.destroy":
            del self.records["task"][parameters[1]]
            return ""
        return self._generic(*method.split("."), *parameters[1:])

    def _generic(self, cls: str, message: str, *parameters: Any) -> Any:
        table = self.records[cls]
        if cls == "task" and message == "get_record" and self.states:
            table[parameters[0]].update(self.states[0])
            self.states = self.states[1:] or self.states
        if message == "get_all":
            return list(table)
        if message == "get_all_records":
            return table
        if message == "get_by_uuid":
            for ref, record in table.items():
                if record["uuid"] == parameters[0]:
                    return ref
            raise ApiError("UUID_INVALID", cls, parameters[0])
        if message == "get_by_name_label":
            return [ref for ref, record in table.items() if record["name_label"] == parameters[0]]
        if parameters[0] not in table:
            raise ApiError("HANDLE_INVALID", cls, parameters[0])
        record = table[parameters[0]]
        return record if message == "get_record" else record[message.removeprefix("get_")]


class _RequestHandler(SimpleXMLRPCRequestHandler):
    rpc_paths = ("/", "/RPC2")


class _Server(SimpleXMLRPCServer):
    daemon_threads = True

    def __init__(self, standin: StandIn) -> None:
        super().__init__(("127.0.0.1", 0), _RequestHandler, logRequests=False, allow_none=True)
        self._standin = standin

    def _dispatch(self, method: str, params: Any) -> Any:
        return self._standin.answer(method, tuple(params))


@contextmanager
def serving(standin: StandIn) -> Iterator[StandIn]:
    """Serve it on a loopback port; `url` says where."""
    # one thread for each connection would be needed for two clients at once; the command has one
    with _Server(standin) as server:
        standin.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield standin
        finally:
            server.shutdown()
            thread.join()
