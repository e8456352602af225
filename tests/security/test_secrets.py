"""What is secret is told to nobody but whom it was made for, and kept by nobody who need not have it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted

from tests.system import labs
from tests.system.world import World
from tests.xenapi.two_servers import PASSWORD, USER, Server, two_servers
from xapi_migrate.errors import RemoteError
from xapi_migrate.lab.provisioning import Guest
from xapi_migrate.migration.stops import FOLDER
from xapi_migrate.processes import remains
from xapi_migrate.uris.offer import parse

POOL_SECRET = "5" * 43
LARGEST = 8 << 20
"""Bytes; a larger file is a disk."""


def heard(server: Server) -> list[bytes]:
    """All that comes to this server from now on."""
    site, parts = server.door._site, list[bytes]()
    build = site.buildProtocol

    def listening(address: Any) -> Any:
        protocol = build(address)
        receive: Callable[[bytes], None] = protocol.dataReceived

        def note(data: bytes) -> None:
            parts.append(data)
            receive(data)

        protocol.dataReceived = note
        return protocol

    site.buildProtocol = listening
    return parts


@pytest_twisted.ensureDeferred
async def test_another_pool_is_told_neither_a_session_nor_the_pools_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A member tells every receiver that it knows the secret, by a proof that only another member can check."""
    async with two_servers(tmp_path) as world:
        here, there = world.source, world.destination
        secret = property(lambda records: POOL_SECRET if records is here.records else "6" * 43)
        monkeypatch.setattr(type(here.records), "member_secret", secret)
        vm = await here.new_vm(await here.new_sr(), disks=2)
        here.records.update("VM", vm, other_config={"note": "x"})
        sr = await there.new_sr()
        [uri] = await there.call("VM.receive", sr)
        told = heard(there)
        session = here.server.sessions.open(USER, "here")
        task = await here.server.dispatcher.call("Async.VM.migrate", [session, vm, [uri], {}, {}], "here")
        await world.until(lambda: here.records.get("task", task)["status"] != "pending")
        assert here.records.get("task", task)["status"] == "success", here.records.get("task", task)["error_info"]
        said = b"".join(told)
        assert b"PUT" in said and b"<name>member</name>" in said
        kept = [ref.encode() for ref in here.records.refs("session")]
        for secret in (session.encode(), session[-12:].encode(), POOL_SECRET.encode(), PASSWORD.encode(), *kept):
            assert secret not in said


def strings(value: Any) -> list[str]:
    """All texts in what a call has answered, one after the other."""
    if isinstance(value, dict):
        return [text for pair in value.items() for part in pair for text in strings(part)]
    if isinstance(value, list | tuple | set):
        return [text for part in value for text in strings(part)]
    return [str(value)]


@pytest_twisted.ensureDeferred
async def test_no_session_is_shown_a_secret(tmp_path: Path) -> None:
    """While a migration runs: everything that can be asked for, and all events."""
    async with two_servers(tmp_path) as world:
        here, there = world.source, world.destination
        vm = await here.new_vm(await here.new_sr())
        here.slow()
        [uri] = await there.call("VM.receive", await there.new_sr())
        task = await here.call("Async.VM.migrate", vm, [uri], {}, {})
        await world.until(lambda: here.records.get("task", task)["progress"] > 0.05)
        capability = parse(uri).capability.text
        for server in (here, there):
            mine, others = (server.server.sessions.open(USER, "here") for _ in range(2))
            shown = strings(await server.server.dispatcher.call("event.from", [mine, ["*"], "", 0.0], "here"))
            for name in server.server.dispatcher.methods():
                if name.endswith((".get_all_records", ".get_all")):
                    shown += strings(await server.server.dispatcher.call(name, [mine], "here"))
            told = "\n".join(shown)
            assert len(told) > 10_000 and task in told or server is there
            for secret in (capability, mine, others, PASSWORD):
                assert secret not in told
            assert not any(ref in told for ref in server.records.refs("session"))
        await here.call("task.cancel", task)
        await world.until(lambda: here.records.get("task", task)["status"] != "pending")
        await world.until(lambda: not there.records.refs("VM"))


@pytest.mark.parametrize("call", ["VM.receive", "host.migrate_receive"])
@pytest_twisted.ensureDeferred
async def test_no_task_has_a_capability(tmp_path: Path, call: str) -> None:
    """It would be everybody's to read, and for an hour on disk."""
    async with two_servers(tmp_path) as world:
        there = world.destination
        params = [await there.new_sr()] if call == "VM.receive" else [there.host, there.network, {}]
        with pytest.raises(RemoteError, match=f"No async mode for this operation .rpc: {call}."):
            await there.call(f"Async.{call}", *params)
        assert await there.call(call, *params)
        assert there.records.refs("task") == []


def texts(folder: Path) -> dict[Path, bytes]:
    """The files below a folder, disks left out."""
    found = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    return {path: path.read_bytes() for path in found if path.stat().st_size <= LARGEST}


@pytest.mark.system
def test_a_receiver_keeps_no_capability() -> None:
    """Neither on disk nor where other users of the machine see it, shortly before it decides."""
    with labs.lab() as lab:
        world = World(lab)
        made, receiver = world.new_guest(world.source, Guest(filled=2)), world.destination
        uris = world.receive()
        capability = parse(uris[0]).capability
        (receiver.state_dir / FOLDER).mkdir(exist_ok=True)
        (receiver.state_dir / FOLDER / "receiver-before-committed").touch()
        task = world.begin(made.uuid, uris)
        pid = receiver.process.pid if receiver.process else 0
        world.wait(lambda: state(pid) == "T", "it does not stop")
        kept = texts(receiver.state_dir)
        assert any(path.name == "records.db" for path in kept) and any(path.suffix == ".log" for path in kept)
        [journal] = [content for path, content in kept.items() if path.suffix == ".jsonl"]
        assert capability.digest.hex().encode() in journal
        assert [path for path, content in kept.items() if capability.text.encode() in content] == []
        processes = [pid, *(one.pid for one in remains.children(receiver.state_dir))]
        assert len(processes) > 2
        for one in processes:
            for name in ("cmdline", "environ"):
                assert capability.text.encode() not in Path(f"/proc/{one}/{name}").read_bytes()
        os.kill(pid, signal.SIGCONT)
        assert world.follow(task).status == "success"


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
