"""host.call_plugin of our own plug-in through an overlay: VMs of the toolstack that stay locked, and which nothing says
where they are."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
import XenAPI
from twisted.internet import threads

from tests.upstream.beside import Begun, Beside, Two, begin, beside, session_of, world
from tests.upstream.overlaid import USERS, SteeredMoves, overlaid
from tests.upstream.simulated.server import SimulatedXapi
from xapi_migrate.errors import PeerSilent
from xapi_migrate.toolstack.plugin_calls import PLUGIN
from xapi_migrate.upstream.lease import BLOCKED
from xapi_migrate.xenapi.calls import CallContext

STILL_BLOCKED = set(BLOCKED) - {"destroy", "hard_shutdown"}


def ask(session: Any, function: str, **arguments: str) -> Any:
    x = session.xenapi
    said = x.host.call_plugin(x.session.get_this_host(session.handle), PLUGIN, function, arguments)
    return json.loads(said) if said else None


def locked(session: Any) -> list[dict[str, str]]:
    return [one for one in ask(session, "leftovers") if one["kind"] == "lock"]


@asynccontextmanager
async def lost(kind: str, tmp_path: Path) -> AsyncIterator[tuple[Two, Beside, Begun, Any]]:
    """The journal of a migration has gone, so nothing says how it ended."""
    async with world(tmp_path, kind, stalled=True) as (two, kept):
        async with beside(two.source, kept) as here:
            begun = await begin(two, here)
        kept.journals = type(kept.journals)()
        async with beside(two.source, kept) as here:
            yield two, here, begun, await threads.deferToThread(session_of, here)


@pytest_twisted.ensureDeferred
async def test_one_that_stays_is_free_again_and_may_move(kind: str, tmp_path: Path) -> None:
    async with lost(kind, tmp_path) as (two, here, begun, session):

        def work() -> None:
            assert ask(session, "in_doubt") == [begun.uuid] and locked(session) == []
            for vm, outcome in (("nobody", "stays"), (begun.uuid, "perhaps")):
                with pytest.raises(XenAPI.Failure, match="OPERATION_NOT_ALLOWED|INVALID_VALUE"):
                    ask(session, "force_settle", vm=vm, outcome=outcome)
            ask(session, "force_settle", vm=begun.uuid, outcome="stays")
            assert ask(session, "in_doubt") == [] and locked(session) == []

        await threads.deferToThread(work)
        assert two.source.records.get("VM", begun.vm)["blocked_operations"] == {}
        assert here.leases.known == {} and here.records.refs("VM") == []
        await threads.deferToThread(session.xenapi.VM.start, begun.vm, False, False)


@pytest_twisted.ensureDeferred
async def test_one_that_has_moved_stays_locked_with_its_disks_and_may_be_destroyed(kind: str, tmp_path: Path) -> None:
    async with lost(kind, tmp_path) as (two, here, begun, session):
        await threads.deferToThread(ask, session, "force_settle", vm=begun.uuid, outcome="moved")
        assert set(two.source.records.get("VM", begun.vm)["blocked_operations"]) == set(BLOCKED) - {
            "destroy",
            "hard_shutdown",
        }
        assert set(two.source.records.refs("VDI")) == set(begun.vdis)
        assert here.leases.known == {} and here.records.refs("VM") == []
        with pytest.raises(XenAPI.Failure, match="OPERATION_BLOCKED"):
            await threads.deferToThread(session.xenapi.VM.start, begun.vm, False, False)
        await threads.deferToThread(session.xenapi.VM.destroy, begun.vm)


@pytest.mark.parametrize("moves", [True, False])
@pytest_twisted.ensureDeferred
async def test_a_lock_that_is_left_is_told_and_removed_by_who_asks(kind: str, tmp_path: Path, moves: bool) -> None:
    async with world(tmp_path, kind, stalled=True) as (two, kept), beside(two.source, kept) as here:
        begun = await begin(two, here)
        for ref in two.source.records.refs("session"):
            two.source.records.destroy("session", ref)
        if moves:
            here.disks.popitem()[1].stalled = False
        else:
            here.overlaid.server.tasks.get(begun.task).cancel()
        await two.until(lambda: here.records.get("task", begun.task)["status"] in ("success", "cancelled"))

        def work() -> None:
            session = session_of(here)
            [lock] = locked(session)
            assert (lock["name"], "destroys" in lock["remedy"]) == (begun.uuid, moves)
            assert lock["why"].startswith("it has moved" if moves else "it stays")
            done = ask(session, "remove_leftovers", names=json.dumps([f"lock:{begun.uuid}"]))
            assert done == {"removed": [f"lock:{begun.uuid}"], "failed": []}
            assert locked(session) == []

        await threads.deferToThread(work)
        assert here.leases.known == {}
        assert two.source.records.refs("VM") == ([] if moves else [begun.vm])


@pytest_twisted.ensureDeferred
async def test_what_is_in_doubt_and_said_to_have_moved_is_kept(kind: str, tmp_path: Path) -> None:
    """The engine knows of it: it hears the word, and nothing is destroyed at the toolstack for that."""
    async with world(tmp_path, kind, stalled=True) as (two, kept), beside(two.source, kept) as here:
        begun = await begin(two, here)
        [sending] = here.engine._outgoing.values()

        async def silent() -> Any:
            raise PeerSilent("the receiver", "it is gone")

        peer: Any = sending.migration.peer
        peer.put_done = peer.get_control = peer.delete = silent
        here.disks.popitem()[1].stalled = False
        await two.until(lambda: sending.in_doubt)

        def work() -> None:
            assert ask(begun.session, "in_doubt") == [begun.uuid] and locked(begun.session) == []
            ask(begun.session, "force_settle", vm=begun.uuid, outcome="moved")

        await threads.deferToThread(work)
        await two.until(lambda: not here.leases.known)
        assert set(two.source.records.get("VM", begun.vm)["blocked_operations"]) == set(BLOCKED) - {
            "destroy",
            "hard_shutdown",
        }
        assert set(two.source.records.refs("VDI")) == set(begun.vdis)
        assert here.records.refs("VM") == [] and here.records.refs("VDI") == []


class Plugin(SteeredMoves):
    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[str, str, str]] = []

    async def host_call_plugin(self, call: CallContext, host: str, plugin: str, fn: str, args: dict[str, str]) -> str:
        self.asked.append((call.user, plugin, fn))
        return "ours"


@pytest_twisted.ensureDeferred
async def test_only_our_plug_in_is_ours_and_for_those_who_may() -> None:
    ours = Plugin()
    with SimulatedXapi(USERS) as xapi:
        other = xapi.database.create("host", name_label="another")

        def work(session: Any) -> None:
            call = session.xenapi.host.call_plugin
            host = xapi.database.host
            assert call(host, PLUGIN, "leftovers", {}) == "ours"
            assert call(host, "echo", "f", {"a": "b"}) == "f ['a']"
            assert b"<value>echo</value>" in xapi.server.bodies[-1].replace(b"<string>", b"").replace(b"</string>", b"")
            for where, name in ((host, "xapi-migrate "), (host, "Xapi-migrate"), (other, PLUGIN)):
                with pytest.raises(XenAPI.Failure, match="XENAPI_MISSING_PLUGIN"):
                    call(where, name, "leftovers", {})

        def denied(session: Any) -> None:
            for call in (session.xenapi.host.call_plugin, session.xenapi.Async.host.call_plugin):
                with pytest.raises(XenAPI.Failure, match="RBAC_PERMISSION_DENIED"):
                    call(xapi.database.host, PLUGIN, "force_settle", {"vm": "x", "outcome": "moved"})

        async with overlaid(xapi.upstream, moves=ours) as here:
            await here.client(work)
            for user in ("admin", "guest"):
                await here.client(denied, user)
    assert ours.asked == [("root", PLUGIN, "leftovers")]
