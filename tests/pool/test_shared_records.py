"""Several members on one database: each sees what the others have committed, nothing is lost or undone."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest_twisted
from twisted.internet import reactor, task

from xapi_migrate.store.interfaces import NULL, Change
from xapi_migrate.store.records import Records
from xapi_migrate.testing.postgresql import PostgreSQL
from xapi_migrate.together import together
from xapi_migrate.xenapi.own_calls import data_model
from xapi_migrate.xenapi.server import make_server


@asynccontextmanager
async def members(url: str, number: int = 2) -> AsyncIterator[list[Records]]:
    opened: list[Records] = []
    try:
        for _ in range(number):
            records = Records(data_model(), reactor, url)
            records.shared = True
            opened.append(records)
        await together(*(records.open() for records in opened))
        yield opened
    finally:
        for records in opened:
            await records.close()


def everything(records: Records) -> dict[str, dict[str, Any]]:
    unordered = {"VBDs", "VIFs", "VDIs", "PBDs", "resident_VMs", "consoles"}
    return {
        cls: {
            ref: {k: sorted(v) if k in unordered else v for k, v in records.get(cls, ref).items()}
            for ref in records.refs(cls)
        }
        for cls in ("VM", "VBD", "VDI", "SR", "host", "session")
    }


@pytest_twisted.ensureDeferred
async def test_a_change_at_one_member_is_seen_at_the_other_with_its_relations_and_events(database: str) -> None:
    async with members(database) as (a, b):
        heard: list[Change] = []
        b.subscribe(heard.append)
        sr = a.create("SR")
        vdi = a.create("VDI", SR=sr)
        vm = a.create("VM", name_label="one", _domain="d")
        vbd = a.create("VBD", VM=vm, VDI=vdi)
        await a.flush()
        assert await b.refresh()
        assert everything(a) == everything(b)
        assert b.get("VM", vm)["VBDs"] == b.get("VDI", vdi)["VBDs"] == [vbd]
        assert {(c.cls, c.operation) for c in heard} >= {("VM", "add"), ("VBD", "add"), ("VDI", "add"), ("SR", "add")}
        assert all(change.foreign for change in heard)
        heard.clear()
        a.update("VM", vm, name_label="two")
        await a.flush()
        await b.refresh()
        assert [(c.cls, c.operation, c.ref) for c in heard] == [("VM", "mod", vm)]
        a.rekey("VM", vm, "OpaqueRef:other", "another-uuid")
        await a.flush()
        await b.refresh()
        assert b.refs("VM") == ["OpaqueRef:other"] and b.by_uuid("VM", "another-uuid") == "OpaqueRef:other"
        assert b.get("VBD", vbd)["VM"] == "OpaqueRef:other"
        a.destroy("VM", "OpaqueRef:other")
        await a.flush()
        await b.refresh()
        assert b.refs("VM") == [] and b.get("VBD", vbd)["VM"] == NULL


@pytest_twisted.ensureDeferred
async def test_two_members_that_change_different_fields_of_one_record_do_not_undo_each_other(database: str) -> None:
    async with members(database) as (a, b):
        vm = a.create("VM", name_label="one")
        await a.flush()
        await b.refresh()
        a.update("VM", vm, name_label="by a")
        b.update("VM", vm, name_description="by b", _domain="of b")
        await together(a.flush(), b.flush())
        await together(a.refresh(), b.refresh())
        assert everything(a) == everything(b)
        record = a.get("VM", vm)
        assert (record["name_label"], record["name_description"], record["_domain"]) == ("by a", "by b", "of b")


@pytest_twisted.ensureDeferred
async def test_what_is_removed_at_one_member_is_not_brought_back_by_a_change_at_the_other(database: str) -> None:
    async with members(database) as (a, b):
        vm = a.create("VM")
        await a.flush()
        await b.refresh()
        a.destroy("VM", vm)
        await a.flush()
        b.update("VM", vm, name_label="late")
        await b.flush()
        await together(a.refresh(), b.refresh())
        assert a.refs("VM") == b.refs("VM") == []


@pytest_twisted.ensureDeferred
async def test_members_that_start_together_agree_on_what_belongs_to_all(database: str) -> None:
    async with members(database, 3) as opened:
        for number, records in enumerate(opened):
            ref, uuid = records.pool_wide("pool")
            records.create("pool", ref=ref, uuid=uuid, name_label=f"{number}")
        await together(*(records.flush() for records in opened))
        await together(*(records.refresh() for records in opened))
        seen = [[dict(records.get("pool", ref)) for ref in records.refs("pool")] for records in opened]
        assert len(seen[0]) == 1 and seen[0] == seen[1] == seen[2]


@pytest_twisted.ensureDeferred
async def test_random_work_at_three_members_ends_in_one_state(database: str) -> None:
    dice = random.Random(4)
    async with members(database, 3) as opened:
        hosts = [records.create("host", name_label=str(n)) for n, records in enumerate(opened)]
        for _ in range(60):
            records = dice.choice(opened)
            vms = records.refs("VM")
            match dice.randrange(5):
                case 0 | 1:
                    records.create("VM", name_label=str(dice.random()))
                case 2 if vms:
                    field = dice.choice(["name_label", "name_description", "reference_label"])
                    records.update("VM", dice.choice(vms), **{field: str(dice.random())})
                case 3 if vms:
                    known = [host for host in hosts if records.has("host", host)]
                    records.update("VM", dice.choice(vms), resident_on=dice.choice(known))
                case 4 if len(vms) > 4:
                    records.destroy("VM", dice.choice(vms))
            if dice.random() < 0.4:
                await records.flush()
            if dice.random() < 0.3:
                await dice.choice(opened).refresh()
        await together(*(records.flush() for records in opened))
        await together(*(records.refresh() for records in opened))
        states = [everything(records) for records in opened]
        assert states[0] == states[1] == states[2] and states[0]["VM"]
        assert [records.pool_generation for records in opened] == [opened[0].pool_generation] * 3


@pytest_twisted.ensureDeferred
async def test_a_postgresql_that_was_away_loses_nothing(postgresql: PostgreSQL) -> None:
    async with members(postgresql.new_database()) as (a, b):
        vm = a.create("VM", name_label="before")
        await a.flush()
        postgresql.stop()
        a.update("VM", vm, name_label="meanwhile")
        other = a.create("VM", name_label="made meanwhile")
        assert await b.refresh() is False
        a.update("VM", vm, name_description="too")
        postgresql.start()
        await a.flush()
        while not await b.refresh():
            await task.deferLater(reactor, 0.2)
        assert b.get("VM", vm)["name_label"] == "meanwhile" and b.get("VM", vm)["name_description"] == "too"
        assert b.get("VM", other)["name_label"] == "made meanwhile"


@pytest_twisted.ensureDeferred
async def test_what_only_one_may_have_is_taken_by_one(database: str) -> None:
    async with members(database, 3) as opened:
        vm = opened[0].create("VM", _domain_host="")
        await opened[0].flush()
        await together(*(records.refresh() for records in opened))
        taken = await together(*(r.take("VM", vm, "_domain_host", ("",), str(n)) for n, r in enumerate(opened)))
        assert sorted(taken) == [False, False, True]
        await together(*(records.flush() for records in opened))
        await together(*(records.refresh() for records in opened))
        assert {records.get("VM", vm)["_domain_host"] for records in opened} == {str(taken.index(True))}


@pytest_twisted.ensureDeferred
async def test_a_token_of_one_member_is_good_at_another(database: str) -> None:
    async with members(database) as (a, b):
        servers = [make_server(records, [], reactor) for records in (a, b)]
        vms = [a.create("VM", name_label=str(n)) for n in range(3)]
        await a.flush()
        await together(a.refresh(), b.refresh())
        sessions = [server.sessions.open("root", "here") for server in servers]
        first = await servers[0].events.since(sessions[0], ["vm"], "", 0.0)
        b.update("VM", vms[1], name_label="changed at b")
        a.update("VM", vms[2], name_label="changed at a")
        await together(a.flush(), b.flush())
        await together(a.refresh(), b.refresh())
        for server, session in zip(servers, sessions, strict=True):
            seen = await server.events.since(session, ["vm"], first["token"], 0.0)
            assert {event["ref"] for event in seen["events"]} == {vms[1], vms[2]}
        # a session of one is good at the other, and neither database nor records tell it
        await a.flush()
        assert await servers[1].sessions.look_for(sessions[0]) == "root"
        assert sessions[0] not in a.refs("session") and sessions[0] not in b.refs("session")
        for server in servers:
            server.stop()
