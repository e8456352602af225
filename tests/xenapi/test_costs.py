"""What the API costs, by processor time and by what wakes up; bench.api measures the same over sockets."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any

from twisted.internet import defer
from twisted.internet.task import Clock

from bench.api_server import populate
from xapi_migrate.store.records import Records
from xapi_migrate.xenapi import jsonrpc, wire
from xapi_migrate.xenapi.own_calls import data_model
from xapi_migrate.xenapi.server import XenAPIServer, make_server


def big(count: int) -> tuple[XenAPIServer, Clock, str]:
    clock = Clock()
    records = Records(data_model(), Clock())
    populate(records, count)
    server = make_server(records, [], clock)
    return server, clock, server.sessions.open("root", "here")


def ask(server: XenAPIServer, method: str, *params: Any) -> defer.Deferred[Any]:
    return defer.Deferred.fromCoroutine(server.dispatcher.call(method, list(params), "here"))


def test_a_thousand_vms_take_no_second_of_the_processor() -> None:
    server, _, session = big(1000)
    for method, params in (("VM.get_all_records", ()), ("event.from", (["*"], "", 0.0))):
        for write in (wire.success, lambda value: jsonrpc.success(jsonrpc.JsonCall("m", [], 1, "2.0"), value)):
            begun = time.process_time()
            text: list[bytes] = []
            ask(server, method, session, *params).addCallback(lambda value, w=write, t=text: t.append(w(value)))
            spent = time.process_time() - begun
            assert text[0].count(b"VCPUs_max") == 1000
            assert spent < 2.0, f"{method} took {spent:.2f} s of the processor"


def test_who_waits_for_events_costs_nothing_until_there_is_one() -> None:
    server, clock, session = big(3)
    token = server.events.token()
    answers: list[Any] = []
    waits = [ask(server, "event.from", session, ["*"], token, 60.0).addCallback(answers.append) for _ in range(100)]
    assert server.events.waiting == 100
    # the end of each wait is all that is ever going to happen
    assert [call.getTime() for call in clock.getDelayedCalls()] == [60.0] * 100
    clock.advance(59)
    assert answers == []
    [vm, *_] = server.records.refs("VM")
    server.records.update("VM", vm, name_label="changed")
    clock.advance(0.5)
    assert [answer["events"][0]["snapshot"]["name_label"] for answer in answers] == ["changed"] * 100
    assert clock.getDelayedCalls() == [] and len(waits) == 100


def test_a_records_text_is_kept_until_the_record_is_replaced() -> None:
    server, _, session = big(1)
    [vm] = server.records.refs("VM")

    def text() -> bytes:
        got: list[Any] = []
        ask(server, "VM.get_record", session, vm).addCallback(got.append)
        return wire.success(got[0])

    first = text()
    assert text() == first
    server.records.update("VM", vm, name_label="another", _internal="never told")
    second = text()
    assert b"<value>another</value>" in second and b"another" not in first and b"_internal" not in second
    server.records.update("VM", vm, snapshot_time=datetime(2026, 1, 2, tzinfo=UTC))
    assert b"20260102T00:00:00Z" in text()


def test_no_more_is_kept_than_there_is_room_for() -> None:
    server, _, session = big(40)
    kept = wire.Kept(wire._struct, most=16)
    for _ in range(3):
        for vm in server.records.refs("VM"):
            record = server.records.get("VM", vm)
            assert kept(record) == wire._struct(record)
    assert len(kept._made) == 16 and session
