"""Clients see our tasks among the upstream's: in lists, by reference, and by event.from with one token."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import pytest_twisted
import XenAPI
from twisted.internet import threads

from tests.upstream.overlaid import USERS, Overlaid, SteeredMoves, overlaid, with_client
from tests.upstream.simulated.server import SimulatedXapi
from tests.upstream.test_upstream_away import ask
from tests.wire.raw import Conversation, post, xml
from xapi_migrate.upstream.peek import Peeked, Wire
from xapi_migrate.upstream.polls import Wish

WAIT = 40.0


@pytest.fixture
def xapi() -> Iterator[SimulatedXapi]:
    with SimulatedXapi(USERS) as running:
        yield running


@asynccontextmanager
async def view(xapi: SimulatedXapi) -> AsyncIterator[tuple[Overlaid, SteeredMoves]]:
    moves = SteeredMoves()
    async with overlaid(xapi.upstream, moves=moves) as here:
        yield here, moves


def begin(session: Any) -> str:
    return str(session.xenapi.Async.VM.migrate("OpaqueRef:vm", ["http://x"], {}, {}))


def events(session: Any, classes: list[str], token: str, timeout: float) -> dict[str, Any]:
    return dict(session.xenapi_request("event.from", (classes, token, timeout)))


@pytest_twisted.ensureDeferred
async def test_lists_hold_both(xapi: SimulatedXapi) -> None:
    theirs = xapi.database.task_create("theirs", "")

    def work(session: Any) -> None:
        x = session.xenapi
        ours = begin(session)
        assert set(x.task.get_all()) == {theirs, ours}
        records = x.task.get_all_records()
        assert set(records) == {theirs, ours}
        assert set(records[ours]) == set(records[theirs])
        assert {type(one) for one in records[ours].values()} == {type(one) for one in records[theirs].values()}
        assert x.task.get_by_name_label("Async.VM.migrate_send") == [ours]
        assert x.task.get_by_name_label("theirs") == [theirs]
        for ref, label in ((theirs, "theirs"), (ours, "Async.VM.migrate_send")):
            assert x.task.get_name_label(ref) == label
            assert x.task.get_by_uuid(x.task.get_uuid(ref)) == ref
            assert x.task.get_record(ref)["name_label"] == label
        with pytest.raises(XenAPI.Failure, match="HANDLE_INVALID"):
            x.task.get_record("OpaqueRef:nobody")
        assert records[ours]["progress"] == 0.25

    async with view(xapi) as (here, moves):
        await here.client(work)
        moves.ending.callback("OpaqueRef:new")


@pytest_twisted.ensureDeferred
async def test_methods_are_both(xapi: SimulatedXapi) -> None:
    second = post(json.dumps({"jsonrpc": "2.0", "method": "system.listMethods", "params": [], "id": 0}), "/jsonrpc")
    async with view(xapi) as (here, _):
        by_xml, by_json = await threads.deferToThread(ask, here.address, post(xml("system.listMethods")), second)
        [direct] = await threads.deferToThread(ask, ("127.0.0.1", xapi.port), second)
    assert by_json.json["result"] == [*direct.json["result"], "VM.receive", "VM.migrate"]
    assert by_xml.text.endswith(
        "<value>VM.receive</value><value>VM.migrate</value></data></array></value></param></params></methodResponse>"
    )


@pytest_twisted.ensureDeferred
async def test_who_may_end_a_task(xapi: SimulatedXapi) -> None:
    async with view(xapi) as (here, moves):
        ours = await here.client(begin, "admin")

        def stranger(session: Any) -> None:
            assert session.xenapi.task.get_status(ours) == "pending"
            for call in (session.xenapi.task.cancel, session.xenapi.task.destroy, session.xenapi.Async.task.cancel):
                with pytest.raises(XenAPI.Failure, match="RBAC_PERMISSION_DENIED"):
                    call(ours)

        await here.client(stranger, "guest")
        assert moves.tasks[0].pending
        await here.client(lambda session: session.xenapi.task.cancel(ours), "admin")
        assert await here.client(lambda session: session.xenapi.task.get_status(ours)) == "cancelled"
        await here.client(lambda session: session.xenapi.task.destroy(ours))
        assert await here.client(lambda session: session.xenapi.task.get_all()) == []


@pytest_twisted.ensureDeferred
async def test_one_token_for_both(xapi: SimulatedXapi) -> None:
    """Whatever happens on either side is told once, in the order in which it was asked for."""

    def follow(session: Any, moves: SteeredMoves) -> None:
        first = events(session, ["*"], "", 0.0)
        counts = first["valid_ref_counts"]
        assert counts["task"] == 0 and counts["host"] == 1
        assert {event["class"] for event in first["events"]} == {"host", "pool", "network"}

        theirs = xapi.database.task_create("theirs", "")
        second = events(session, ["*"], first["token"], WAIT)
        assert [(e["ref"], e["operation"]) for e in second["events"]] == [(theirs, "add")]
        assert second["valid_ref_counts"]["task"] == 1

        ours = begin(session)
        third = events(session, ["*"], second["token"], WAIT)
        assert {(e["ref"], e["operation"], e["class"]) for e in third["events"]} == {(ours, "add", "task")}
        assert third["events"][0]["snapshot"]["name_label"] == "Async.VM.migrate_send"
        assert third["valid_ref_counts"]["task"] == 2

        began = time.monotonic()
        quiet = events(session, ["*"], third["token"], 0.3)
        assert quiet["events"] == [] and time.monotonic() - began < WAIT

        xapi.database.update("task", theirs, progress=0.5)
        moves.tasks[0].set_progress(0.5)
        seen: set[str] = set()
        token = quiet["token"]
        while seen != {ours, theirs}:
            more = events(session, ["task"], token, WAIT)
            assert more["events"]
            assert not seen & {event["ref"] for event in more["events"]}
            seen |= {event["ref"] for event in more["events"]}
            token = more["token"]
        only = events(session, [f"task/{ours}"], "", 0.0)
        assert [event["ref"] for event in only["events"]] == [ours]
        assert events(session, ["vm"], "", 0.0)["events"] == []

    async with view(xapi) as (here, moves):
        await here.client(lambda session: follow(session, moves))


@pytest_twisted.ensureDeferred
async def test_our_news_leave_the_upstreams_waiting_call_where_it_is(xapi: SimulatedXapi) -> None:
    database = xapi.database

    def follow(session: Any, moves: SteeredMoves) -> None:
        token = session.xenapi.event.inject("pool", database.pool)
        begin(session)
        for number in range(1, 20):
            answer = events(session, ["task", "vm"], token, WAIT)
            assert [event["class"] for event in answer["events"]] == ["task"]
            assert answer["valid_ref_counts"]["pool"] == 1
            token = answer["token"]
            moves.tasks[0].set_progress(0.25 + number / 100)
        assert database.calls.count("event.from") <= 4
        assert database.waiting <= 1
        events(session, ["task", "vm"], token, WAIT)
        database.create("VM")
        token = events(session, ["task", "vm"], token, WAIT)["token"]
        session.xenapi.session.logout()

    async with view(xapi) as (here, moves):
        await here.client(lambda session: follow(session, moves))
        await threads.deferToThread(_until_nobody_waits, xapi)


def _until_nobody_waits(xapi: SimulatedXapi) -> None:
    with xapi.database.changed:
        assert xapi.database.changed.wait_for(lambda: xapi.database.waiting == 0, WAIT)


@pytest_twisted.ensureDeferred
async def test_json_keeps_its_ids_and_versions(xapi: SimulatedXapi) -> None:
    def work(here: Overlaid) -> None:
        session = with_client(here.url, lambda session: session._session)
        token = ""
        for number, version in ((5, "2.0"), ("x", ""), (None, "2.0")):
            call = {"method": "event.from", "params": [session, ["task"], token, 0.0], "id": number}
            call |= {"jsonrpc": version} if version else {}
            [answer] = ask(here.address, post(json.dumps(call), "/jsonrpc"))
            assert answer.headers["content-type"] == "application/json"
            assert answer.json["id"] == number
            assert ("error" in answer.json) is (not version)
            token = answer.json["result"]["token"]
            assert ";" in token
        bad = {"jsonrpc": "2.0", "method": "event.from", "params": [session, ["vm"], "nonsense", 0.0], "id": 9}
        [answer] = ask(here.address, post(json.dumps(bad), "/jsonrpc"))
        assert answer.json == {
            "jsonrpc": "2.0", "id": 9,
            "error": {"code": 1, "message": "EVENT_FROM_TOKEN_PARSE_FAILURE", "data": ["nonsense"]},
        }  # fmt: skip

    async with view(xapi) as (here, _):
        await threads.deferToThread(work, here)


@pytest_twisted.ensureDeferred
async def test_a_log_out_wakes_who_waits(xapi: SimulatedXapi) -> None:
    def work(here: Overlaid) -> list[str]:
        session = with_client(here.url, lambda session: session)
        token = session.xenapi.event.inject("pool", xapi.database.pool)
        with Conversation(here.address) as talk:
            wait = xml("event.from", session._session, "<array><data><value>task</value></data></array>", token,
                       f"<double>{WAIT}</double>")  # fmt: skip
            talk.say(post(wait))
            with xapi.database.changed:
                assert xapi.database.changed.wait_for(lambda: xapi.database.waiting == 1, WAIT)
            session.xenapi.session.logout()
            return talk.answer().error()

    async with view(xapi) as (here, _):
        assert (await threads.deferToThread(work, here))[0] == "SESSION_INVALID"


@pytest_twisted.ensureDeferred
async def test_users_texts_are_not_taken_for_the_answers_own(xapi: SimulatedXapi) -> None:
    trick = "</data></array></value></member><member><name>token</name><value>mine</value>"
    xapi.database.task_create(trick, "<name>token</name>")
    xapi.database.create("VM", name_label=trick, other_config={"token": "5;7", "valid_ref_counts": "x", trick: trick})

    def work(session: Any) -> None:
        ours = begin(session)
        answer = events(session, ["task", "vm"], "", 0.0)
        assert len(answer["events"]) == 3
        assert answer["events"][1]["snapshot"]["other_config"][trick] == trick
        assert answer["events"][-1]["ref"] == ours
        assert events(session, ["task", "vm"], answer["token"], 0.0)["events"] == []
        assert len(session.xenapi.task.get_all_records()) == 2

    async with view(xapi) as (here, _):
        await here.client(work)


def news(session: Any) -> list[tuple[str, str]]:
    return [(event["ref"], event["operation"]) for event in session.xenapi_request("event.next", ())]


@pytest_twisted.ensureDeferred
async def test_the_old_events_hold_both(xapi: SimulatedXapi) -> None:
    """Each is told once, and while our news are told, the upstream's call goes on waiting."""
    database = xapi.database

    def follow(session: Any, moves: SteeredMoves) -> None:
        with pytest.raises(XenAPI.Failure, match="SESSION_NOT_REGISTERED"):
            news(session)
        session.xenapi.event.register(["task", "vm"])
        ours = begin(session)
        assert news(session) == [(ours, "add")]
        for number in range(1, 10):
            moves.tasks[0].set_progress(0.25 + number / 100)
            [event] = session.xenapi_request("event.next", ())
            assert (event["ref"], event["operation"], event["class"]) == (ours, "mod", "task")
            assert event["obj_uuid"] == event["snapshot"]["uuid"]
        assert database.calls.count("event.next") == 2 and database.waiting == 1
        theirs = database.task_create("theirs", "")
        assert news(session) == [(theirs, "add")]
        vm = database.create("VM")
        moves.tasks[0].set_progress(0.5)
        seen: list[tuple[str, str]] = []
        while len(seen) < 2:
            seen += news(session)
        assert sorted(seen) == sorted([(vm, "add"), (ours, "mod")])
        session.xenapi.event.unregister(["task"])
        moves.tasks[0].set_progress(0.75)
        database.update("VM", vm, name_label="x")
        assert news(session) == [(vm, "mod")]
        session.xenapi.session.logout()

    async with view(xapi) as (here, moves):
        await here.client(lambda session: follow(session, moves))
        await threads.deferToThread(_until_nobody_waits, xapi)


@pytest_twisted.ensureDeferred
async def test_old_events_that_nobody_heard_are_said_to_be_lost(xapi: SimulatedXapi) -> None:
    def follow(session: Any) -> None:
        session.xenapi.event.register(["*"])
        ours = begin(session)
        assert news(session) == [(ours, "add")]
        with xapi.database.changed:
            assert xapi.database.changed.wait_for(lambda: xapi.database.waiting == 1, WAIT)
        for connection in list(xapi.server.connections):
            connection.shutdown(socket.SHUT_RDWR)
        with pytest.raises(XenAPI.Failure, match="EVENTS_LOST"):
            news(session)
        xapi.database.update("pool", xapi.database.pool)  # told to nobody
        _until_nobody_waits(xapi)
        xapi.database.update("pool", xapi.database.pool)
        assert news(session) == [(xapi.database.pool, "mod")]

    async with view(xapi) as (here, _):
        await here.client(follow)


@pytest_twisted.ensureDeferred
async def test_old_events_of_the_upstream_alone_come_as_they_are(xapi: SimulatedXapi) -> None:
    """Also while our tasks are wanted: who has no news adds nothing."""

    def work(here: Overlaid) -> None:
        session = with_client(here.url, lambda session: session._session)
        calls = [xml("event.register", session, f"<array><data><value>{cls}</value></data></array>")
                 for cls in ("pool", "*")]  # fmt: skip
        for call in calls:
            registered, direct = (ask(where, post(call))[0] for where in (here.address, ("127.0.0.1", xapi.port)))
            assert registered.body == direct.body
            xapi.database.update("pool", xapi.database.pool, name_label="first")
            [through] = ask(here.address, post(xml("event.next", session)))
            # the same once more: what has been told is told again
            xapi.database.registered[session] = (xapi.database.registered[session][0], xapi.database.generation - 1)
            [direct] = ask(("127.0.0.1", xapi.port), post(xml("event.next", session)))
            assert through.body == direct.body
        with_id = json.dumps({"jsonrpc": "2.0", "method": "event.next", "params": [session], "id": "mine"})
        xapi.database.update("pool", xapi.database.pool, name_label="second")
        [answer] = ask(here.address, post(with_id, "/jsonrpc"))
        assert answer.json["id"] == "mine" and answer.json["result"][0]["ref"] == xapi.database.pool

    async with view(xapi) as (here, _):
        await threads.deferToThread(work, here)


@pytest.mark.parametrize("timeout", [10**400, "x", None, True, [], {}])
def test_a_time_that_is_none_is_the_upstreams_to_refuse(timeout: Any) -> None:
    assert Wish.of(Peeked(Wire.JSON, "event.from", ["session", ["task"], "", timeout]), b"/jsonrpc") is None
