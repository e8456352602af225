"""An existing xapi answers VM.receive and VM.migrate itself: the executables as xapi runs them, the plugin's socket."""

from __future__ import annotations

import json
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from click.testing import CliRunner
from lxml import etree
from twisted.internet import defer, reactor, threads

from tests.upstream.overlaid import USERS, SteeredMoves, overlaid
from tests.upstream.simulated.server import SimulatedXapi
from tests.wire.raw import Answer, Conversation, post, struct, xml
from xapi_migrate.cli.extensions import install_extensions, uninstall_extensions
from xapi_migrate.upstream.plugin import plugin_site
from xapi_migrate.xenapi.local_socket import listen_locally


def command(which: Any, state_dir: Path, *more: str) -> str:
    done = CliRunner().invoke(which, ["--state-dir", str(state_dir), *more], standalone_mode=False)
    if done.exception is not None:
        raise done.exception
    assert done.return_value in (None, 0), done.output
    return str(done.output)


def install(tmp_path: Path) -> Path:
    folder = tmp_path / "etc" / "xapi.d" / "extensions"
    command(install_extensions, tmp_path / "state", "--extensions-dir", str(folder))
    return folder


def as_xapi_runs_it(program: Path, call: str) -> bytes:
    """Its only argument, the call on its input, nothing of an environment, the answer on its output."""
    done = subprocess.run([program, "--xmlrpc"], input=call.encode(), capture_output=True, cwd="/", env={}, timeout=60)
    assert (done.returncode, done.stderr) == (0, b"")
    return done.stdout


def error_of(answer: bytes) -> list[str]:
    assert b"<value>Failure</value>" in answer
    return [value.text or "" for value in etree.fromstring(answer).findall(".//data/value")]


@pytest_twisted.ensureDeferred
async def test_the_executables_hand_calls_to_the_daemon(short_tmp: Path) -> None:
    folder = install(short_tmp)
    assert sorted(path.name for path in folder.iterdir()) == ["VM.migrate", "VM.receive"]
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o755}
    moves = SteeredMoves()
    with SimulatedXapi(USERS, path=short_tmp / "xapi") as xapi:
        session = _session(xapi, "admin")
        guest = _session(xapi, "guest")
        async with overlaid(xapi.upstream, moves=moves, local=short_tmp / "state" / "api.sock"):
            receive = folder / "VM.receive"
            said = await threads.deferToThread(as_xapi_runs_it, receive, xml("VM.receive", session, "OpaqueRef:sr"))
            assert b"<value>http://127.0.0.1:1/migrate/x</value>" in said
            assert b"<value>Success</value>" in said
            # xapi lets whoever has a session run an extension
            said = await threads.deferToThread(as_xapi_runs_it, receive, xml("VM.receive", guest, "OpaqueRef:sr"))
            assert error_of(said)[0] == "RBAC_PERMISSION_DENIED"
            migrate = xml("VM.migrate", session, "OpaqueRef:vm", "<array><data/></array>", "<struct/>")
            moves.ending.callback("OpaqueRef:moved")
            said = await threads.deferToThread(as_xapi_runs_it, folder / "VM.migrate", migrate)
            assert b"<value>OpaqueRef:moved</value>" in said
        said = await threads.deferToThread(as_xapi_runs_it, receive, xml("VM.receive", session, "OpaqueRef:sr"))
        code, where, why = error_of(said)
        assert (code, where) == ("CANNOT_CONTACT_HOST", str(short_tmp / "state" / "api.sock"))
        assert "does not answer" in why
    assert moves.users == ["admin", "admin"]


@pytest.mark.parametrize("parameter", ["x" * (400 << 10), "<array><data>" * 200 + "</data></array>" * 200])
@pytest_twisted.ensureDeferred
async def test_a_call_that_cannot_be_read_is_not_handed_back_to_xapi(short_tmp: Path, parameter: str) -> None:
    """It would run the executable again, and so without end."""
    folder = install(short_tmp)
    with SimulatedXapi(USERS, path=short_tmp / "xapi") as xapi:
        call = xml("VM.receive", _session(xapi, "guest"), parameter)
        async with overlaid(xapi.upstream, local=short_tmp / "state" / "api.sock"):
            said = await threads.deferToThread(as_xapi_runs_it, folder / "VM.receive", call)
        assert error_of(said)[0] == "CANNOT_CONTACT_HOST"
        assert "VM.receive" not in xapi.database.calls


def _session(xapi: SimulatedXapi, user: str) -> str:
    return xapi.database.login(user, USERS[user][0], local=False)


def test_uninstall_leaves_no_trace(tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    (tmp_path / "state").mkdir()
    folder = install(tmp_path)
    install(tmp_path)  # once more, as after an upgrade
    (folder / "VM.receive.new").write_text("of an install that was killed")
    said = command(uninstall_extensions, tmp_path / "state")
    assert said.count("removed") == 2
    assert not folder.exists()
    (tmp_path / "state").rmdir()
    assert sorted(tmp_path.rglob("*")) == before


def test_what_is_not_ours_stays(tmp_path: Path) -> None:
    folder = install(tmp_path)
    stranger, changed = folder / "Other.call", folder / "VM.receive"
    stranger.write_text("somebody else's")
    changed.write_text("changed by hand")
    done = CliRunner().invoke(uninstall_extensions, ["--state-dir", str(tmp_path / "state")], standalone_mode=False)
    assert done.return_value == 1
    assert f"kept {changed}" in done.output
    assert sorted(folder.iterdir()) == [stranger, changed]
    with pytest.raises(Exception, match="is there already"):
        install(tmp_path)
    assert changed.read_text() == "changed by hand"
    changed.unlink()
    command(uninstall_extensions, tmp_path / "state")
    assert list(folder.iterdir()) == [stranger]
    assert not (tmp_path / "state" / "extensions.json").exists()


@pytest_twisted.ensureDeferred
async def test_the_plugins_socket(short_tmp: Path) -> None:
    moves = SteeredMoves()
    with SimulatedXapi(USERS, path=short_tmp / "xapi") as xapi:
        session, guest = _session(xapi, "root"), _session(xapi, "guest")
        async with overlaid(xapi.upstream, moves=moves) as here:
            path = short_tmp / "plugin" / "xapi_migrate"
            site = plugin_site(here.overlay.calls, "xapi_migrate", 300 << 10)
            port = await listen_locally(reactor, path, "0600", site)

            def ask(*requests: bytes) -> list[Answer]:
                with Conversation(str(path)) as talk:
                    answers = []
                    for request in requests:
                        talk.say(request)
                        answers.append(talk.answer())
                    return answers

            base = "/services/plugin/xapi_migrate"
            json_call = json.dumps(
                {"jsonrpc": "2.0", "id": 1, "method": "VM.receive", "params": [session, "OpaqueRef:s"]}
            )
            xapi.database.records["VM"]["OpaqueRef:runs"] = {"power_state": "Running"}
            to_ours = struct(xapi_migrate="https://x/")
            about, good, bad, foreign, login, running, nonsense, elsewhere = await threads.deferToThread(
                ask, f"GET {base} HTTP/1.1\r\nHost: x\r\n\r\n".encode(), post(json_call, f"{base}/jsonrpc"),
                post(xml("VM.receive", guest, "OpaqueRef:s"), f"{base}/RPC2"),
                post(xml("VM.get_all", session), f"{base}/RPC2"),
                post(xml("session.login_with_password", "root", ""), f"{base}/RPC2"),
                post(xml("VM.migrate_send", session, "OpaqueRef:runs", to_ours), f"{base}/RPC2"),
                post("x", f"{base}/RPC2"),
                b"GET /services/plugin/other HTTP/1.1\r\nHost: x\r\n\r\n",
            )  # fmt: skip
            await defer.maybeDeferred(port.stopListening)
    assert "VM.migrate" in about.json["calls"]
    assert good.json["result"] == ["http://127.0.0.1:1/migrate/x"]
    assert bad.error()[0] == "RBAC_PERMISSION_DENIED"
    assert foreign.error() == ["MESSAGE_METHOD_UNKNOWN", "VM.get_all"]
    assert login.error() == ["MESSAGE_METHOD_UNKNOWN", "session.login_with_password"]
    # one that runs is the toolstack's to move: it is asked, and this one cannot
    assert running.error() == ["VM_MIGRATE_CONTACT_REMOTE_SERVICE_FAILED"]
    assert (nonsense.status, elsewhere.status) == (400, 404)


def test_the_unit_lets_children_live() -> None:
    unit = (Path(__file__).parents[2] / "packaging" / "xapi-migrate.service").read_text().splitlines()
    assert "KillMode=process" in unit
    assert not [line for line in unit if line.startswith(("Private", "Protect", "ReadOnly"))]
