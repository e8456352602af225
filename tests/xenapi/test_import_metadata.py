"""PUT /import_metadata: a VM's metadata from a client, as it goes over the wire and what becomes of it."""

from __future__ import annotations

import io
import socket
import tarfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
import pytest_twisted
from twisted.internet import threads

from tests.xenapi.two_servers import USER, Server, one_server, until
from xapi_migrate.migration.metadata_export import export_objects, version
from xapi_migrate.migration.metadata_xml import write_value
from xapi_migrate.testing.fake_sm import FakeLuns

SEED = "8f1d3b1c-0000-4000-8000-000000000002"
LIMIT = 4 << 20
Objects = list[dict[str, Any]]


@attrs.define
class World:
    """`vm` is what is exported: Halted, with a disk and a VIF; then it goes, and its disk stays."""

    server: Server
    session: str
    objects: Objects
    vm: dict[str, Any]
    vdi: str
    mac: str

    def of(self, cls: str) -> dict[str, Any]:
        found: dict[str, Any] = next(one for one in self.objects if one["class"] == cls)["snapshot"]
        return found

    def document(self) -> bytes:
        return write_value({"version": version(), "objects": self.objects})

    def archive(self, name: str = "ova.xml", document: bytes | None = None) -> bytes:
        document = self.document() if document is None else document
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            about = tarfile.TarInfo(name)
            about.size = len(document)
            tar.addfile(about, io.BytesIO(document))
        return file.getvalue()

    async def put(self, body: bytes, query: str = "restore=true", **cookies: str) -> tuple[int, dict[str, Any]]:
        """The status, and the task's record."""
        cookie = "; ".join(f"{name}={one}" for name, one in {"session_id": self.session, **cookies}.items())
        head = f"PUT /import_metadata?{query} HTTP/1.1\r\nHost: x\r\nCookie: {cookie}\r\nContent-Length: {len(body)}"
        answer = await threads.deferToThread(talk, self.server.port, head.encode() + b"\r\n\r\n" + body)
        return status(answer), self.told(answer)

    def told(self, answer: bytes) -> dict[str, Any]:
        task = header(answer, b"task-id")
        return dict(self.server.records.get("task", task)) if task else {}

    async def refused(self, body: bytes, query: str = "restore=true") -> list[str]:
        before = {cls: self.server.records.refs(cls) for cls in ("VM", "VBD", "VIF", "VDI")}
        got, task = await self.put(body, query)
        assert (got, task["status"]) == (200, "failure")
        assert {cls: self.server.records.refs(cls) for cls in before} == before
        return list(task["error_info"])


def talk(port: int, sent: bytes, then: Callable[[socket.socket, bytes], None] | None = None) -> bytes:
    """All that is answered; `then` is called with what came first."""
    with socket.create_connection(("127.0.0.1", port), 20) as sock:
        sock.sendall(sent)
        answer = b""
        while b"\r\n\r\n" not in answer and (piece := sock.recv(1 << 16)):
            answer += piece
        if then is not None:
            then(sock, answer)
        while piece := sock.recv(1 << 16):
            answer += piece
        return answer


def status(answer: bytes) -> int:
    return int(answer.split()[1])


def header(answer: bytes, name: bytes) -> str:
    lines = answer.partition(b"\r\n\r\n")[0].split(b"\r\n")[1:]
    found = [line.partition(b": ")[2] for line in lines if line.lower().startswith(name + b":")]
    return found[0].decode() if found else ""


@asynccontextmanager
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with one_server(tmp_path / "server", "server", FakeLuns()) as server:
        sr = await server.new_sr()
        ref = await server.new_vm(sr, running=False)
        records = server.records
        records.update("VM", ref, other_config={"mac_seed": SEED, "xo:abc": "kept"})
        vm = dict(records.get("VM", ref))
        objects, _ = export_objects(records, ref, records.get("VM", ref), vm["VBDs"], {}, {})
        mac = records.get("VIF", vm["VIFs"][0])["MAC"]
        vdi = records.get("VBD", vm["VBDs"][0])["VDI"]
        await server.call("VM.destroy", ref)
        yield World(server, server.server.sessions.open(USER, "here"), objects, vm, vdi, mac)


@pytest.mark.parametrize("bare", [True, False])
@pytest_twisted.ensureDeferred
async def test_a_vm_is_restored(tmp_path: Path, bare: bool) -> None:
    async with world(tmp_path) as w:
        w.of("VM").update(is_a_template=True, blocked_operations={"clone": "mine"})
        w.of("VM")["other_config"].update(HideFromXenCenter="true", xapi_migrate_arrival="7")
        task = await w.server.call("task.create", "mine", "")
        got, told = await w.put(w.document() if bare else w.archive(), task_id=task)
        assert (got, told["status"], told["error_info"]) == (200, "success", [])
        [ref] = w.server.records.refs("VM")
        assert told["result"] == f"<value><array><data><value>{ref}</value></data></array></value>"
        vm = w.server.records.get("VM", ref)
        assert (vm["uuid"], vm["power_state"], vm["is_a_template"]) == (w.vm["uuid"], "Halted", True)
        assert vm["other_config"] == {
            "mac_seed": SEED, "xo:abc": "kept", "HideFromXenCenter": "true", "xapi_migrate_arrival": "7"
        }  # fmt: skip
        assert vm["blocked_operations"] == {"clone": "mine"} and vm["memory_static_max"] == w.vm["memory_static_max"]
        [vbd] = [w.server.records.get("VBD", one) for one in vm["VBDs"]]
        [vif] = [w.server.records.get("VIF", one) for one in vm["VIFs"]]
        assert (vbd["VDI"], vif["MAC"], vif["network"]) == (w.vdi, w.mac, w.server.network)
        # the client's task is the import's since: nobody else says how it ends, and it goes when that is asked
        await w.server.call("task.set_status", task, "pending")
        assert w.server.records.get("task", task)["status"] == "success"
        await w.server.call("task.destroy", task)
        await w.server.call("VM.set_is_a_template", ref, False)
        await w.server.call("VM.start", ref, False, False)


@pytest_twisted.ensureDeferred
async def test_one_that_is_not_restored_is_another(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        for _ in range(2):
            assert (await w.put(w.archive(), ""))[1]["status"] == "success"
        vms = [w.server.records.get("VM", ref) for ref in w.server.records.refs("VM")]
        macs = {w.server.records.get("VIF", vif)["MAC"] for vm in vms for vif in vm["VIFs"]}
        assert len({w.vm["uuid"], *(vm["uuid"] for vm in vms)}) == 3 and len({w.mac, *macs}) == 3
        assert [vm["other_config"] for vm in vms] == [{"xo:abc": "kept"}] * 2


@pytest_twisted.ensureDeferred
async def test_a_rehearsal_makes_nothing(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        got, told = await w.put(w.archive(), "restore=true&dry_run=true")
        assert (got, told["status"]) == (200, "success")
        assert told["result"].replace("<data></data>", "<data/>") == "<value><array><data/></array></value>"
        for cls in ("VM", "VBD", "VIF"):
            assert w.server.records.refs(cls) == []


@pytest_twisted.ensureDeferred
async def test_what_is_refused_is_told_by_the_task_and_leaves_nothing(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        records = w.server.records

        async def refused(code: str, word: str = "", query: str = "restore=true") -> None:
            for more in ("", "&dry_run=true"):
                said = await w.refused(w.archive(), query + more)
                assert said[0] == code and word in " ".join(said), said

        twin = records.create("VM", uuid=w.vm["uuid"], name_label="here already")
        await refused("DUPLICATE_VM", twin)
        records.destroy("VM", twin)
        twin = records.create("VM", name_label="its twin", other_config={"mac_seed": SEED})
        await refused("DUPLICATE_MAC_SEED", SEED)
        records.destroy("VM", twin)
        await refused("OPERATION_NOT_ALLOWED", "live", "live=true")
        await refused("OPERATION_NOT_ALLOWED", "vdi:", "vdi:a=b")
        w.of("VM")["power_state"] = "Running"
        await refused("IMPORT_ERROR", "only Halted")
        w.of("VM")["power_state"] = "Halted"
        w.of("VDI")["other_config"] = {"maps_to": "OpaqueRef:nobody"}
        await refused("HANDLE_INVALID", "OpaqueRef:nobody")
        w.of("VDI").update(other_config={}, uuid="00000000-0000-4000-8000-000000000000")
        await refused("VDI_LOCATION_MISSING", "00000000-0000-4000-8000-000000000000")
        w.of("VDI")["other_config"] = {"maps_to": w.vdi}
        w.of("VIF")["MAC"] = "01:00:5e:00:00:01"
        await refused("IMPORT_ERROR", "MAC")
        w.of("VIF").update(MAC=w.mac, other_config={"maps_to": "OpaqueRef:nowhere"})
        await refused("HANDLE_INVALID", "OpaqueRef:nowhere")


@pytest_twisted.ensureDeferred
async def test_what_attackers_send_is_refused(tmp_path: Path) -> None:
    bomb = b'<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><value>&b;</value>'
    outside = b'<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]><value>&a;</value>'
    async with world(tmp_path) as w:
        for body in (b"", b"\0" * 1000, bomb, outside, w.archive("../ova.xml"), w.archive(document=bomb), b"<value/>"):
            assert (await w.refused(body))[0] == "IMPORT_ERROR"
        w.of("VM").update(PV_kernel="/etc/shadow", PV_ramdisk="/etc/shadow", PCI_bus="0000:00:01.0")
        w.of("VM")["platform"] = {"device-model": "/bin/sh", "acpi": "1"}
        w.of("VM")["other_config"].update({"pci": "0/0000:00:01.0", "hvm_serial": "file:/etc/passwd"})
        w.of("VBD")["other_config"] = {"backend-local": "/dev/sda", "owner": ""}
        w.of("VM")["current_operations"] = {"x": "start"}
        assert (await w.put(w.archive()))[1]["status"] == "success"
        [vm] = [w.server.records.get("VM", ref) for ref in w.server.records.refs("VM")]
        assert (vm["PV_kernel"], vm["PV_ramdisk"], vm["PCI_bus"]) == ("", "", "")
        assert vm["platform"] == {"acpi": "1", "cores-per-socket": "1"} and vm["current_operations"] == {}
        assert set(vm["other_config"]) == {"mac_seed", "xo:abc"}
        assert w.server.records.get("VBD", vm["VBDs"][0])["other_config"] == {}


@pytest_twisted.ensureDeferred
async def test_who_has_no_session_is_told_so_before_he_sends_anything(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        task = await w.server.call("task.create", "mine", "")
        for cookie, query, code in (
            ("session_id=OpaqueRef:nobody", "restore=true", 401),
            ("", "restore=true", 401),
            (f"session_id={w.session}; task_id=OpaqueRef:nobody", "", 400),
            (f"session_id={w.session}; task_id={w.session}", "", 400),
            (f"session_id={w.session}", "&".join("a=b" for _ in range(40)), 400),
            (f"session_id={w.session}", "a=" + "b" * 5000, 400),
            (f"session_id=OpaqueRef:nobody; task_id={task}", "", 401),
        ):
            head = (
                f"PUT /import_metadata?{query} HTTP/1.1\r\nHost: x\r\nCookie: {cookie}\r\n"
                "Content-Length: 100000\r\nExpect: 100-continue\r\n\r\n"
            )
            answer = await threads.deferToThread(talk, w.server.port, head.encode())
            assert status(answer) == code, (cookie, answer)
        assert w.server.records.get("task", task)["_by_client"] and w.server.records.refs("task") == [task]
        head = f"PUT /import_metadata HTTP/1.1\r\nHost: x\r\nCookie: session_id={w.session}\r\n"
        sent = f"{head}Content-Length: {LIMIT + 1}\r\n\r\n".encode()
        assert status(await threads.deferToThread(talk, w.server.port, sent)) == 413
        # in the query they are as good
        query = f"restore=true&session_id={w.session}&task_id={task}"
        head = f"PUT /import_metadata?{query} HTTP/1.0\r\nContent-Length: {len(w.archive())}\r\n\r\n"
        answer = await threads.deferToThread(talk, w.server.port, head.encode() + w.archive())
        assert status(answer) == 200 and w.told(answer)["status"] == "success"
        assert header(answer, b"task-id") == task


@pytest_twisted.ensureDeferred
async def test_a_client_that_waits_for_200_gets_it_and_then_sends(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        body = w.archive()
        head = (
            f"PUT /import_metadata?restore=true HTTP/1.1\r\nHost: x\r\nCookie: session_id={w.session}\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        seen: list[bytes] = []

        def then(sock: socket.socket, came: bytes) -> None:
            seen.append(came)
            sock.sendall(body)

        answer = await threads.deferToThread(talk, w.server.port, head.encode(), then)
        assert status(seen[0]) == 200 and header(seen[0], b"task-id") and header(seen[0], b"connection") == "close"
        assert w.told(answer)["status"] == "success"


@pytest_twisted.ensureDeferred
async def test_a_body_that_breaks_off_or_does_not_end_fails_its_task(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        head = f"PUT /import_metadata?restore=true HTTP/1.1\r\nHost: x\r\nCookie: session_id={w.session}\r\n"

        def cut(sock: socket.socket, came: bytes) -> None:
            sock.shutdown(socket.SHUT_RDWR)

        half = w.archive()[:1000]
        sent = head.encode() + b"Content-Length: 100000\r\n\r\n" + half
        try:
            await threads.deferToThread(talk, w.server.port, sent, cut)
        except OSError:
            pass
        [task] = w.server.records.refs("task")
        await until(lambda: w.server.records.get("task", task)["status"] == "failure")
        assert w.server.records.get("task", task)["error_info"] == ["IMPORT_ERROR_PREMATURE_EOF"]
        w.server.records.destroy("task", task)

        def flood(sock: socket.socket, came: bytes) -> None:
            piece = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
            with pytest.raises(OSError):
                for _ in range(10_000):
                    sock.sendall(piece)

        try:
            await threads.deferToThread(
                talk, w.server.port, head.encode() + b"Transfer-Encoding: chunked\r\n\r\n", flood
            )
        except OSError:
            pass
        [task] = w.server.records.refs("task")
        await until(lambda: w.server.records.get("task", task)["status"] == "failure")
        assert w.server.records.get("task", task)["error_info"] == ["IMPORT_ERROR", f"it is longer than {LIMIT} bytes"]
        assert w.server.records.refs("VM") == []


@pytest_twisted.ensureDeferred
async def test_what_could_not_be_written_down_is_not_there(tmp_path: Path) -> None:
    async with world(tmp_path) as w:

        async def broken() -> None:
            raise OSError("the disk is full")

        flush, w.server.records.flush = w.server.records.flush, broken  # type: ignore[assignment, method-assign]
        try:
            assert (await w.refused(w.archive()))[0] == "INTERNAL_ERROR"
        finally:
            w.server.records.flush = flush  # type: ignore[method-assign]
