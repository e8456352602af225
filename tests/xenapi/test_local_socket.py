"""The API on a unix socket, by PyPI's XenAPI as scripts on the host use it, and on a raw socket."""

from __future__ import annotations

import json
import secrets
import shutil
import socket
import stat
import xmlrpc.client
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
import XenAPI
from twisted.internet import defer, reactor, threads

from tests.wire.raw import Conversation, post, xml
from tests.xenapi.live import PASSWORD, USER, Live, live
from xapi_migrate.errors import InvalidValue
from xapi_migrate.lab.host import LabHost
from xapi_migrate.xenapi.local_socket import LONGEST, listen_locally


@pytest.fixture
def folder() -> Iterator[Path]:
    """The library writes a socket's path as a host name with "_" for "/": this one has no "_" of its own."""
    path = Path(f"/tmp/xm{secrets.token_hex(5)}")
    path.mkdir(mode=0o700)
    yield path
    shutil.rmtree(path)


def local_session(path: Path) -> Any:
    """What XenAPI.xapi_local() gives, at another path."""
    return XenAPI.Session(f"http://{str(path).replace('/', '_')}/", transport=XenAPI.UDSTransport())


@asynccontextmanager
async def served(here: Live, path: Path, mode: str = "0600") -> AsyncIterator[None]:
    port = await listen_locally(reactor, path, mode, here.server.site())
    try:
        yield
    finally:
        await defer.maybeDeferred(port.stopListening)


@pytest_twisted.ensureDeferred
async def test_who_may_open_it_is_root_without_a_password(tmp_path: Path, folder: Path) -> None:
    path = folder / "xapi"
    async with live(tmp_path) as here, served(here, path):
        vm = here.records.create("VM", name_label="a")
        assert stat.S_IMODE(path.stat().st_mode) == 0o600

        def work() -> None:
            session = local_session(path)
            session.xenapi.login_with_password("", "", "1.0", "a script")
            assert session.xenapi.VM.get_name_label(vm) == "a"
            mine = session._session
            assert session.xenapi.session.get_auth_user_name(mine) == "root"
            assert session.xenapi.session.get_originator(mine) == "a script"
            assert session.xenapi.session.get_is_local_superuser(mine) is True
            session.xenapi.session.logout()
            # a session is needed all the same
            with pytest.raises(xmlrpc.client.Fault, match="You must log in"):
                local_session(path).xenapi.VM.get_all()

        await threads.deferToThread(work)
    assert not path.exists()


@pytest_twisted.ensureDeferred
async def test_it_speaks_all_that_the_ports_speak(tmp_path: Path, folder: Path) -> None:
    async with live(tmp_path) as here, served(here, folder / "xapi", "0660"):
        assert stat.S_IMODE((folder / "xapi").stat().st_mode) == 0o660

        def work() -> None:
            with Conversation(str(folder / "xapi")) as wire:
                wire.say(post(json.dumps({"method": "system.listMethods", "params": [], "id": 1}), "/jsonrpc"))
                assert "VM.get_all" in wire.answer().json["result"]
                wire.say(post(xml("session.login_with_password", "x", "y"), "/RPC2", version="1.0"))
                assert wire.answer().value().startswith("<value>OpaqueRef:")
            with Conversation(str(folder / "xapi")) as wire:
                wire.say("HEAD /migrate/x HTTP/1.1\r\nHost: x\r\n\r\n")
                assert wire.answer(body=False).status == 404

        await threads.deferToThread(work)


@pytest_twisted.ensureDeferred
async def test_other_sockets_want_the_password(tmp_path: Path, folder: Path) -> None:
    """A port, and a unix socket of `listen`, whose mode nobody looks at."""
    async with live(tmp_path) as here, served(here, folder / "xapi"):
        port = reactor.listenUNIX(str(folder / "other"), here.server.site())  # type: ignore[attr-defined]

        def work() -> None:
            for session in (local_session(folder / "other"), XenAPI.Session(here.url)):
                with pytest.raises(XenAPI.Failure, match="SESSION_AUTHENTICATION_FAILED"):
                    session.xenapi.login_with_password("", "")
            session = local_session(folder / "other")
            session.xenapi.login_with_password(USER, PASSWORD)

        try:
            await threads.deferToThread(work)
        finally:
            await port.stopListening()


def left_by_a_dead_daemon(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
        dead.listen()


@pytest_twisted.ensureDeferred
async def test_what_a_dead_daemon_left_is_replaced(tmp_path: Path, folder: Path) -> None:
    path = folder / "new" / "xapi"
    path.parent.mkdir()
    left_by_a_dead_daemon(path)
    async with live(tmp_path) as here:
        async with served(here, path):
            await threads.deferToThread(lambda: local_session(path).xenapi.login_with_password("", ""))
        assert not path.exists()


@pytest_twisted.ensureDeferred
async def test_what_is_anothers_is_left_alone(tmp_path: Path, folder: Path) -> None:
    (folder / "file").write_text("precious")
    (folder / "link").symlink_to(folder / "file")
    async with live(tmp_path) as here, served(here, folder / "xapi"):
        for name, said in (("file", "no socket"), ("link", "no socket"), ("xapi", "Another daemon")):
            with pytest.raises(OSError, match=said):
                await listen_locally(reactor, folder / name, "0600", here.server.site())
        assert (folder / "file").read_text() == "precious"
        await threads.deferToThread(lambda: local_session(folder / "xapi").xenapi.login_with_password("", ""))


@pytest.mark.parametrize("mode", ["0666", "666", "0777", "", "rw"])
@pytest_twisted.ensureDeferred
async def test_nobody_else_is_let_in(tmp_path: Path, folder: Path, mode: str) -> None:
    async with live(tmp_path) as here:
        with pytest.raises(InvalidValue, match="api_socket_mode"):
            await listen_locally(reactor, folder / "xapi", mode, here.server.site())
        with pytest.raises(InvalidValue, match="longer"):
            await listen_locally(reactor, folder / ("x" * LONGEST), "0600", here.server.site())


@pytest.mark.system
def test_a_daemon_serves_it_and_replaces_its_own_after_a_kill(folder: Path) -> None:
    host = LabHost("one", folder / "state", "secret")
    path = folder / "run" / "xapi"
    host.configure({"api_socket": str(path)})
    try:
        for _ in range(2):
            host.start()
            host.wait_ready(100.0)
            session = local_session(path)
            session.xenapi.login_with_password("", "")
            [one] = session.xenapi.host.get_all()
            assert session.xenapi.host.get_address(one) == "127.0.0.1"
            host.kill()
            assert path.is_socket()
    finally:
        host.end()
