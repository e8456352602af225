"""The servers that bench.api measures, a process each: ours with N VMs, and Twisted's own XML-RPC server that answers
with the same record. Prints one line of JSON: the port, a session, a VM's reference."""

from __future__ import annotations

import json
import sys
from typing import Any

from twisted.internet import defer, reactor
from twisted.web import server as web
from twisted.web import xmlrpc

from xapi_migrate.store.records import Records
from xapi_migrate.xenapi.own_calls import data_model
from xapi_migrate.xenapi.server import XenAPIServer, make_server

GIB = 1 << 30


def populate(records: Records, count: int) -> list[str]:
    """VMs with a disk and an interface each, as a host has them."""
    sr = records.create("SR", name_label="local", type="file")
    network = records.create("network", name_label="lan")
    vms = []
    for number in range(count):
        vm = records.create(
            "VM", name_label=f"vm {number}", name_description="One of many", memory_static_max=GIB, VCPUs_max=2,
            power_state="Halted", platform={"cores-per-socket": "1", "machine": "pc-i440fx-7.2", "cpu": "qemu64"},
            other_config={"folder": "/", "auto_poweron": "true"},
            allowed_operations=["start", "migrate_send", "destroy"],
        )  # fmt: skip
        vdi = records.create("VDI", name_label=f"disk of vm {number}", SR=sr, virtual_size=GIB)
        records.create("VBD", VM=vm, VDI=vdi, userdevice="0", type="Disk")
        mac = f"02:00:00:00:{number >> 8:02x}:{number & 255:02x}"
        records.create("VIF", VM=vm, network=network, device="0", MAC=mac)
        vms.append(vm)
    return vms


async def api(count: int) -> tuple[XenAPIServer, str, str]:
    """A server with so many VMs, a session and the first VM."""
    records = Records(data_model(), reactor)
    await records.open()
    vms = populate(records, count)
    made = make_server(records, [], reactor)
    made.start()
    return made, made.sessions.open("root", "here"), vms[0]


class Stock(xmlrpc.XMLRPC):
    """Twisted's own: the same record to whoever asks."""

    def __init__(self, record: dict[str, Any]) -> None:
        super().__init__(allowNone=True, useDateTime=True)  # type: ignore[no-untyped-call]
        self._answer = {"Status": "Success", "Value": record}

    def lookupProcedure(self, procedurePath: str) -> Any:
        if procedurePath == "VM.get_uuid":
            return lambda session, ref: {"Status": "Success", "Value": self._answer["Value"]["uuid"]}
        return lambda session, ref: self._answer


def _plain(value: Any) -> Any:
    """What xmlrpc.client can write: integers as the text that XenAPI sends."""
    if isinstance(value, bool) or not isinstance(value, int | dict | list):
        return value
    if isinstance(value, int):
        return str(value)
    return {str(k): _plain(v) for k, v in value.items()} if isinstance(value, dict) else [_plain(v) for v in value]


async def _serve(kind: str, count: int) -> None:
    made, session, vm = await api(count)
    site: Any = made.site()
    if kind == "stock":
        record = {name: value for name, value in made.records.get("VM", vm).items() if name[0] != "_"}
        site = web.Site(Stock(_plain(record)))
    port = reactor.listenTCP(0, site, interface="127.0.0.1")  # type: ignore[attr-defined]
    print(json.dumps({"port": port.getHost().port, "session": session, "vm": vm}), flush=True)


def main() -> None:
    kind, count = sys.argv[1], int(sys.argv[2])
    reactor.callWhenRunning(lambda: defer.Deferred.fromCoroutine(_serve(kind, count)))  # type: ignore[attr-defined]
    reactor.run()  # type: ignore[attr-defined]


if __name__ == "__main__":
    main()
