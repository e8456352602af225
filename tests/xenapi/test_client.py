"""The API as the XenAPI library sees it."""

from __future__ import annotations

import time
import xmlrpc.client
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
import XenAPI
from twisted.internet import reactor, threads
from twisted.internet.task import deferLater

from tests.xenapi.live import PASSWORD, USER, live


def failure(work: Any) -> list[str]:
    """The error description that a call ends with."""
    with pytest.raises(XenAPI.Failure) as caught:
        work()
    return list(caught.value.details)


@pytest_twisted.ensureDeferred
async def test_log_in_look_and_log_out(tmp_path: Path) -> None:
    async with live(tmp_path) as here:
        vm = here.records.create("VM", name_label="a <b> & ü", user_version=2**40, _domain="hidden")

        def work(session: Any) -> None:
            x = session.xenapi
            assert x.VM.get_all() == [vm]
            assert x.VM.get_by_name_label("a <b> & ü") == [vm] and x.VM.get_by_name_label("other") == []
            record = x.VM.get_record(vm)
            assert record["user_version"] == str(2**40) and record["VBDs"] == [] and record["is_a_template"] is False
            assert not [name for name in record if name.startswith("_")]
            assert x.VM.get_by_uuid(record["uuid"]) == vm
            assert x.VM.get_all_records() == {vm: record}
            assert x.VM.get_HVM_shadow_multiplier(vm) == 1.0
            assert x.VM.get_all_records_where('field "name__label"="a <b> & ü" and not field "power_state"="Running"')
            assert x.VM.get_all_records_where('field "power__state" = "Running"') == {}
            assert session.VM_get_record(session._session, vm)["Value"] == record
            ref = session._session
            session.xenapi.session.logout()
            assert session.VM.get_all(ref)["ErrorDescription"] == ["SESSION_INVALID", ref]

        await here.client(work)


@pytest_twisted.ensureDeferred
async def test_fields_are_set_and_maps_changed(tmp_path: Path) -> None:
    async with live(tmp_path) as here:
        vm, pool = here.records.create("VM"), here.records.create("pool")

        def work(session: Any) -> None:
            x = session.xenapi
            x.VM.set_name_label(vm, "b")
            x.VM.set_user_version(vm, "12")
            x.VM.set_user_version(vm, 13)
            x.VM.add_tags(vm, "t")
            x.VM.add_tags(vm, "t")
            assert x.VM.get_tags(vm) == ["t"] and x.VM.get_user_version(vm) == "13"
            x.VM.remove_tags(vm, "t")
            x.pool.add_to_other_config(pool, "k", "v")
            assert failure(lambda: x.pool.add_to_other_config(pool, "k", "w"))[0] == "MAP_DUPLICATE_KEY"
            x.pool.remove_from_other_config(pool, "k")
            x.pool.remove_from_other_config(pool, "k")
            assert x.pool.get_other_config(pool) == {} and x.VM.get_tags(vm) == []
            assert failure(lambda: x.VM.set_power_state(vm, "Running"))[0] == "MESSAGE_METHOD_UNKNOWN"

        await here.client(work)
        assert here.records.get("VM", vm)["name_label"] == "b"


@pytest_twisted.ensureDeferred
async def test_what_is_wrong_with_a_call_is_said(tmp_path: Path) -> None:
    async with live(tmp_path) as here:
        vm = here.records.create("VM")

        def work(session: Any) -> None:
            x = session.xenapi
            assert failure(lambda: x.VM.frobnicate(vm)) == ["MESSAGE_METHOD_UNKNOWN", "VM.frobnicate"]
            assert failure(lambda: x.VM.get_record()) == ["MESSAGE_PARAMETER_COUNT_MISMATCH", "VM.get_record", "1", "0"]
            assert failure(lambda: x.VM.get_record(vm, vm))[3] == "2"
            assert failure(lambda: x.VM.migrate(vm)) == ["MESSAGE_PARAMETER_COUNT_MISMATCH", "VM.migrate", "3", "1"]
            assert failure(lambda: x.VM.get_record("OpaqueRef:no")) == ["HANDLE_INVALID", "VM", "OpaqueRef:no"]
            assert failure(lambda: x.VM.get_by_uuid("no")) == ["UUID_INVALID", "VM", "no"]
            assert failure(lambda: x.VM.set_user_version(vm, "many")) == ["FIELD_TYPE_ERROR", "value"]
            assert failure(lambda: x.VM.set_name_label(vm, ["a"])) == ["FIELD_TYPE_ERROR", "value"]
            assert failure(lambda: x.VM.migrate(vm, "uri", {}))[0] == "FIELD_TYPE_ERROR"
            assert failure(lambda: x.VM.migrate(vm, [], {"OpaqueRef:no": "x"}))[:2] == ["HANDLE_INVALID", "VDI"]
            assert failure(lambda: x.VM.set_actions_after_shutdown(vm, "explode"))[0] == "INVALID_VALUE"
            assert failure(lambda: x.VM.snapshot(vm, "s", [])) == ["NOT_IMPLEMENTED", "VM.snapshot"]
            assert failure(lambda: x.Async.VM.get_record(vm))[0] == "Fault"
            assert failure(lambda: x.VM.get_all_records_where("field 1"))[0] == "INVALID_VALUE"

        await here.client(work)


@pytest_twisted.ensureDeferred
async def test_wrong_passwords_are_refused_slower_and_slower_and_hold_nobody_up(tmp_path: Path) -> None:
    async with live(tmp_path) as here:

        def guess() -> tuple[list[list[str]], float]:
            session, begun = XenAPI.Session(here.url), time.monotonic()
            answers = [failure(lambda: session.xenapi.login_with_password(USER, "guess")) for _ in range(3)]
            nobody = failure(lambda: session.xenapi.login_with_password("nobody", PASSWORD))
            return [*answers, nobody], time.monotonic() - begun

        guessing = threads.deferToThread(guess)
        assert here.server.sessions.check(here.server.sessions.open("other", "elsewhere")) == "other"
        answers, seconds = await guessing
        assert answers == [
            ["SESSION_AUTHENTICATION_FAILED", name, "Authentication failure"] for name in [USER] * 3 + ["nobody"]
        ]
        assert seconds > 1.0
        assert [here.records.get("session", ref)["auth_user_name"] for ref in here.records.refs("session")] == ["other"]


@pytest_twisted.ensureDeferred
async def test_a_migration_is_followed_and_cancelled(tmp_path: Path) -> None:
    async with live(tmp_path) as here:
        vm, sr = here.records.create("VM", name_label="demo"), here.records.create("SR")

        def begin(session: Any) -> str:
            x = session.xenapi
            uris = x.VM.receive(sr)
            assert uris == ["http://127.0.0.1:1/migrate/x"] and x.VM.receive(sr, {"a": "b"}) == uris
            task: str = x.Async.VM.migrate(vm, uris, {}, {})
            record = x.task.get_record(task)
            assert record["status"] == "pending" and record["progress"] == 0.25
            assert record["allowed_operations"] == ["cancel"] and record["name_label"] == "Async.VM.migrate_send"
            assert record["other_config"] == {"XenCenterMeddlingActionTitle": "Migrating demo", "applies_to": vm}
            return task

        def cancel(session: Any) -> None:
            x = session.xenapi
            x.task.cancel(task)
            record = x.task.get_record(task)
            assert record["status"] == "cancelled" and record["error_info"] == [] and record["progress"] == 1.0
            assert failure(lambda: x.task.cancel(task))[0] == "OPERATION_NOT_ALLOWED"
            x.task.destroy(task)
            assert failure(lambda: x.task.get_record(task)) == ["HANDLE_INVALID", "task", task]

        task = await here.client(begin)
        await here.client(cancel)
        assert here.engine.asked[0] == ("receive", sr, {}, USER)


@pytest_twisted.ensureDeferred
async def test_a_task_ends_with_a_result_or_an_error(tmp_path: Path) -> None:
    async with live(tmp_path) as here:
        vm = here.records.create("VM")

        def work(session: Any) -> None:
            x = session.xenapi
            refused = x.Async.VM.migrate(vm, [], {}, {"refuse": "1"})
            assert x.task.get_status(refused) == "failure"
            assert x.task.get_error_info(refused) == ["VDI_NOT_IN_MAP", "OpaqueRef:vdi"]
            assert failure(lambda: x.VM.migrate(vm, [], {}, {"refuse": "1"})) == ["VDI_NOT_IN_MAP", "OpaqueRef:vdi"]
            broken = failure(lambda: x.VM.migrate(vm, [], {}, {"break": "1"}))
            assert broken[0] == "INTERNAL_ERROR" and "secret" not in broken[1]

        def ended(session: Any) -> None:
            x = session.xenapi
            task = x.Async.VM.migrate(vm, [], {})
            assert x.task.get_allowed_operations(task) == []
            assert x.task.get_result(task) == "<value>OpaqueRef:moved</value>"
            assert x.task.get_status(task) == "success" and x.task.get_finished(task) >= x.task.get_created(task)

        await here.client(work)
        here.engine.ending.callback("OpaqueRef:moved")
        await here.client(ended)


@pytest_twisted.ensureDeferred
async def test_events_follow_changes_and_end_with_the_session(tmp_path: Path) -> None:
    async with live(tmp_path) as here:
        vm = here.records.create("VM", name_label="a")

        def first(session: Any) -> str:
            x = session.xenapi
            got = getattr(x.event, "from")(["*"], "", 0.0)
            assert [(e["class"], e["operation"], e["ref"]) for e in got["events"]] == [("vm", "add", vm)]
            assert got["events"][0]["snapshot"]["name_label"] == "a" and got["valid_ref_counts"]["vm"] == 1
            assert getattr(x.event, "from")(["vm"], got["token"], 0.0)["events"] == []
            assert failure(lambda: getattr(x.event, "from")(["vm"], "x", 0.0))[0] == "EVENT_FROM_TOKEN_PARSE_FAILURE"
            token: str = got["token"]
            return token

        token = await here.client(first)
        waiting = here.client(lambda session: getattr(session.xenapi.event, "from")(["VM"], token, 100.0))
        while not here.server.events.waiting:
            await deferLater(reactor, 0.01)
        assert not waiting.called
        here.records.update("VM", vm, name_label="b")
        other = here.records.create("VM")
        here.records.destroy("VM", other)
        got = await waiting
        assert [(e["operation"], e["snapshot"]["name_label"]) for e in got["events"]] == [("mod", "b")]
        here.records.destroy("VM", vm)

        def last(session: Any) -> None:
            got_now = getattr(session.xenapi.event, "from")(["vm"], got["token"], 1.0)
            assert [(e["operation"], e["ref"]) for e in got_now["events"]] == [("del", vm)]

        await here.client(last)
        ref = here.server.sessions.open(USER, "here")
        proxy = xmlrpc.client.ServerProxy(here.url)
        blocked = threads.deferToThread(getattr(proxy.event, "from"), ref, ["vm"], here.server.events.token(), 100.0)
        while not here.server.events.waiting:
            await deferLater(reactor, 0.01)
        here.server.sessions.logout(ref)
        answer = await blocked
        assert answer["ErrorDescription"] == ["SESSION_INVALID", ref]
        proxy("close")()
