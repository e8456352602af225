"""A server on loopback with calls to test with, and XenAPI clients in threads."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import XenAPI
from twisted.internet import defer, reactor, threads

from xapi_migrate.errors import VdiNotInMap
from xapi_migrate.store.records import Records
from xapi_migrate.xenapi.calls import CallContext
from xapi_migrate.xenapi.migration_calls import MigrationCalls
from xapi_migrate.xenapi.own_calls import data_model
from xapi_migrate.xenapi.passwords import PasswordFile, user_line
from xapi_migrate.xenapi.server import XenAPIServer, make_server
from xapi_migrate.xenapi.tasks import Task

USER, PASSWORD = "root", "correct horse"


class Engine:
    """Offers and migrations that tests steer."""

    def __init__(self) -> None:
        self.asked: list[tuple[object, ...]] = []
        self.tasks: list[Task] = []
        self.ending: defer.Deferred[str] = defer.Deferred()

    async def receive(self, sr: str, options: dict[str, str], user: str) -> list[str]:
        self.asked.append(("receive", sr, options, user))
        return ["http://127.0.0.1:1/migrate/x"]

    async def migrate(
        self, vm: str, uris: list[str], vdi_to_sr: dict[str, str], options: dict[str, str], task: Task
    ) -> str:
        self.asked.append(("migrate", vm, uris, vdi_to_sr, options))
        self.tasks.append(task)
        if "refuse" in options:
            raise VdiNotInMap("OpaqueRef:vdi")
        if "break" in options:
            raise ZeroDivisionError("a secret in an exception")
        task.on_cancel(self.ending.cancel)
        task.set_progress(0.25)
        return await self.ending


class MoreCalls:
    """A call that waits, for tests of what goes on meanwhile."""

    def __init__(self) -> None:
        self.gate: defer.Deferred[None] = defer.Deferred()

    async def VM_clean_shutdown(self, call: CallContext, vm: str) -> None:
        await self.gate


class Live:
    def __init__(self, server: XenAPIServer, engine: Engine, more: MoreCalls, port: Any) -> None:
        self.server, self.records, self.engine, self.more = server, server.records, engine, more
        self.port: int = port.getHost().port
        self.url = f"http://127.0.0.1:{self.port}/"

    def client(self, work: Callable[[Any], Any], path: str = "") -> defer.Deferred[Any]:
        """`work(xenapi session)` in a thread, logged in."""

        def run() -> Any:
            session = XenAPI.Session(self.url + path)
            session.xenapi.login_with_password(USER, PASSWORD, "1.0", "tests")
            try:
                return work(session)
            finally:
                session("close")()

        return threads.deferToThread(run)


@asynccontextmanager
async def live(tmp_path: Path, cost: tuple[int, int, int] = (16, 1, 1), **site: Any) -> AsyncIterator[Live]:
    (tmp_path / "users").write_text("# users\n" + user_line(USER, PASSWORD, cost))
    records = Records(data_model(), reactor)
    await records.open()
    server = make_server(records, [PasswordFile(tmp_path / "users")], reactor)
    engine, more = Engine(), MoreCalls()
    server.dispatcher.register(MigrationCalls(records, engine), more)
    server.start()
    port = reactor.listenTCP(0, server.site(**site), interface="127.0.0.1")  # type: ignore[attr-defined]
    try:
        yield Live(server, engine, more, port)
    finally:
        server.stop()
        await port.stopListening()
        await records.close()
