"""An overlay in this process, before an upstream of the test's choice."""

from __future__ import annotations

import hashlib
import socket
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import XenAPI
from twisted.internet import defer, reactor, threads

from xapi_migrate.store.records import Records
from xapi_migrate.upstream.address import parse_upstream
from xapi_migrate.upstream.opening import DEFAULT, Limits, front, open_overlay, stand_beside
from xapi_migrate.upstream.overlay import Overlay
from xapi_migrate.xenapi.calls import CallContext
from xapi_migrate.xenapi.own_calls import data_model
from xapi_migrate.xenapi.server import XenAPIServer, make_server
from xapi_migrate.xenapi.tasks import Task

USERS = {"root": ("correct horse", "root"), "guest": ("of the house", "read-only"), "admin": ("vm", "vm-power-admin")}


class SteeredMoves:
    """VM.receive and VM.migrate as tests want them to go."""

    def __init__(self) -> None:
        self.users: list[str] = []
        self.tasks: list[Task] = []
        self.ending: defer.Deferred[str] = defer.Deferred()

    async def VM_receive(self, call: CallContext, sr: str, options: dict[str, str]) -> list[str]:
        self.users.append(call.user)
        return ["http://127.0.0.1:1/migrate/x"]

    async def VM_migrate(
        self, call: CallContext, vm: str, uris: list[str], vdi_sr_map: dict[str, str], options: dict[str, str]
    ) -> str:
        self.users.append(call.user)
        self.tasks.append(call.task)
        call.task.on_cancel(self.ending.cancel)
        call.task.set_progress(0.25)
        return await self.ending


@attrs.define
class Overlaid:
    overlay: Overlay
    server: XenAPIServer
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def address(self) -> tuple[str, int]:
        return ("127.0.0.1", self.port)

    def client(self, work: Callable[[Any], Any], user: str = "root") -> defer.Deferred[Any]:
        return threads.deferToThread(with_client, self.url, work, user)


def with_client(url: str, work: Callable[[Any], Any], user: str = "root") -> Any:
    """`work(the official library's session)`, logged in."""
    session = XenAPI.Session(url)
    session.xenapi.login_with_password(user, USERS[user][0], "2.20", "tests")
    try:
        return work(session)
    finally:
        session("close")()


@asynccontextmanager
async def overlaid(
    upstream: str, trust_root: Any = None, local: Path | None = None, moves: Any = None, limits: Limits = DEFAULT
) -> AsyncIterator[Overlaid]:
    records = Records(data_model(), reactor)
    await records.open()
    beside = stand_beside(parse_upstream(upstream), records, reactor, trust_root, limits)
    server = make_server(records, [], reactor, sessions=beside.sessions, elsewhere=beside.elsewhere)
    server.dispatcher.register(moves or SteeredMoves())
    overlay = open_overlay(beside, server, 300 << 10)
    factory = front(overlay, None)
    port = reactor.listenTCP(0, factory, interface="127.0.0.1")  # type: ignore[attr-defined]
    if local is not None:
        trusted = front(overlay, None)
        trusted.trusted = True
        local_port = reactor.listenUNIX(str(local), trusted)  # type: ignore[attr-defined]
    try:
        yield Overlaid(overlay, server, port.getHost().port)
    finally:
        await defer.maybeDeferred(port.stopListening)
        if local is not None:
            await defer.maybeDeferred(local_port.stopListening)
        server.stop()
        overlay.close()
        await records.close()


def digest_of(size: int, block: bytes) -> str:
    digest = hashlib.sha256()
    for _ in range(size // len(block)):
        digest.update(block)
    digest.update(block[: size % len(block)])
    return digest.hexdigest()


def read_all(sock: socket.socket) -> bytes:
    pieces = []
    while piece := sock.recv(1 << 16):
        pieces.append(piece)
    return b"".join(pieces)


def in_threads(count: int, work: Callable[[int], Any]) -> list[Any]:
    """`work(number)` side by side in so many threads; their results, or the first failure."""
    results: list[Any] = [None] * count
    failures: list[BaseException] = []

    def run(number: int) -> None:
        try:
            results[number] = work(number)
        except BaseException as error:
            failures.append(error)

    running = [threading.Thread(target=run, args=(number,), daemon=True) for number in range(count)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join(100)
    if failures:
        raise failures[0]
    return results
