"""The record store: completeness, relations, identity, what survives a restart."""

from __future__ import annotations

import sqlite3
from datetime import UTC, datetime
from pathlib import Path

import pytest
import pytest_twisted
from twisted.internet import reactor

from xapi_migrate.errors import FieldTypeError, HandleInvalid, InternalError, InvalidValue, UuidInvalid
from xapi_migrate.store.interfaces import NULL, Change
from xapi_migrate.store.records import Records
from xapi_migrate.xenapi.own_calls import data_model


@pytest.fixture
def records() -> Records:
    return Records(data_model(), reactor)


def url(path: Path) -> str:
    return f"sqlite:///{path}/records.db"


def test_a_record_is_complete_and_has_its_defaults(records: Records) -> None:
    vm = records.get("VM", records.create("VM", name_label="a"))
    assert set(vm) == set(data_model().classes["VM"].fields)
    assert vm["power_state"] == "Halted" and vm["HVM_shadow_multiplier"] == 1.0 and vm["start_delay"] == 0
    assert vm["snapshot_time"] == datetime(1970, 1, 1, tzinfo=UTC) and vm["affinity"] == NULL


def test_reverse_references_follow(records: Records) -> None:
    vm, other, vdi = records.create("VM"), records.create("VM"), records.create("VDI")
    vbd = records.create("VBD", VM=vm, VDI=vdi)
    assert records.get("VM", vm)["VBDs"] == [vbd] and records.get("VDI", vdi)["VBDs"] == [vbd]
    records.update("VBD", vbd, VM=other)
    assert records.get("VM", vm)["VBDs"] == [] and records.get("VM", other)["VBDs"] == [vbd]
    records.destroy("VDI", vdi)
    assert records.get("VBD", vbd)["VDI"] == NULL
    records.destroy("VBD", vbd)
    assert records.get("VM", other)["VBDs"] == []


def test_rekey_takes_every_reference_along(records: Records) -> None:
    first, vm, last = records.create("VM"), records.create("VM", name_label="moved", _domain="d"), records.create("VM")
    vbd, child = records.create("VBD", VM=vm), records.create("VM", parent=vm)
    host = records.create("host")
    records.update("VM", vm, resident_on=host)
    records.rekey("VM", vm, "OpaqueRef:new", "the-uuid")
    assert records.refs("VM") == [first, "OpaqueRef:new", last, child]
    assert records.by_uuid("VM", "the-uuid") == "OpaqueRef:new"
    assert records.get("VBD", vbd)["VM"] == records.get("VM", child)["parent"] == "OpaqueRef:new"
    assert records.get("host", host)["resident_VMs"] == ["OpaqueRef:new"]
    assert records.get("VM", "OpaqueRef:new")["VBDs"] == [vbd]
    assert records.get("VM", "OpaqueRef:new")["_domain"] == "d"
    with pytest.raises(HandleInvalid):
        records.get("VM", vm)


def test_rekey_refuses_what_another_record_has(records: Records) -> None:
    a, b = records.create("VM", uuid="a"), records.create("VM", uuid="b")
    with pytest.raises(InvalidValue):
        records.rekey("VM", a, b, "c")
    with pytest.raises(InvalidValue):
        records.rekey("VM", a, "OpaqueRef:c", "b")
    assert records.get("VM", a)["uuid"] == "a"


@pytest.mark.parametrize(
    "fields",
    [
        {"name_label": 1},
        {"no_such_field": ""},
        {"VBDs": []},
        {"user_version": True},
        {"user_version": 2**63},
        {"tags": ["a", 1]},
    ],
)
def test_wrong_fields_are_refused_and_nothing_changes(records: Records, fields: dict[str, object]) -> None:
    vm = records.create("VM", name_label="a")
    before = records.get("VM", vm)
    with pytest.raises(FieldTypeError):
        records.update("VM", vm, **fields)
    with pytest.raises(FieldTypeError):
        records.create("VM", **fields)
    assert records.get("VM", vm) is before and records.refs("VM") == [vm]


def test_a_reference_to_nothing_is_refused(records: Records) -> None:
    with pytest.raises(HandleInvalid):
        records.create("VBD", VM="OpaqueRef:nobody")
    with pytest.raises(UuidInvalid):
        records.by_uuid("VM", "nobody")


def test_a_snapshot_does_not_change_under_its_holder(records: Records) -> None:
    vm = records.create("VM", name_label="a")
    held = records.get("VM", vm)
    records.update("VM", vm, name_label="b")
    assert held["name_label"] == "a"
    with pytest.raises(TypeError):
        held["name_label"] = "c"  # type: ignore[index]


def test_changes_arrive_in_order_even_when_a_subscriber_makes_one(records: Records) -> None:
    seen: list[tuple[int, str, str]] = []

    def meddle(change: Change) -> None:
        if change.operation == "add":
            records.update("VM", change.ref, name_description="seen")

    records.subscribe(meddle)
    end = records.subscribe(lambda change: seen.append((change.generation, change.cls, change.operation)))
    vm = records.create("VM")
    records.update("VM", vm, name_description="seen")
    assert seen == [(1, "VM", "add"), (2, "VM", "mod")]
    end()
    records.destroy("VM", vm)
    assert len(seen) == 2


def test_a_failing_subscriber_does_not_stop_the_others(records: Records) -> None:
    seen: list[str] = []

    def fail(change: Change) -> None:
        raise RuntimeError("on purpose")

    records.subscribe(fail)
    records.subscribe(lambda change: seen.append(change.operation))
    records.create("VM")
    assert seen == ["add"]


@pytest_twisted.ensureDeferred
async def test_everything_survives_a_restart(tmp_path: Path) -> None:
    records = Records(data_model(), reactor, url(tmp_path))
    await records.open()
    session = records.create("session")
    host = records.create("host")
    when = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    vm = records.create(
        "VM", tags=["x"], other_config={"k": "ü"}, snapshot_time=when, resident_on=host, _domain={"id": "d"}
    )
    vbd = records.create("VBD", VM=vm)
    gone = records.create("VM")
    records.destroy("VM", gone)
    records.rekey("VM", vm, "OpaqueRef:new", "new")
    generation = records.generation
    before = {cls: {ref: dict(records.get(cls, ref)) for ref in records.refs(cls)} for cls in ("VM", "VBD", "host")}
    await records.close()

    again = Records(data_model(), reactor, url(tmp_path))
    await again.open()
    try:
        after = {cls: {ref: dict(again.get(cls, ref)) for ref in again.refs(cls)} for cls in ("VM", "VBD", "host")}
        assert after == before
        assert again.generation == generation
        assert again.refs("session") == [session]
        assert again.get("VM", "OpaqueRef:new")["VBDs"] == [vbd]
    finally:
        await again.close()


@pytest_twisted.ensureDeferred
async def test_flush_means_written(tmp_path: Path) -> None:
    records = Records(data_model(), reactor, url(tmp_path))
    await records.open()
    try:
        vm = records.create("VM", name_label="a")
        await records.flush()
        with sqlite3.connect(tmp_path / "records.db") as database:
            rows = database.execute("select ref, uuid from records").fetchall()
        assert rows == [(vm, records.get("VM", vm)["uuid"])]
    finally:
        await records.close()


@pytest_twisted.ensureDeferred
async def test_a_database_of_a_newer_program_is_left_alone(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "records.db") as database:
        database.execute("create table schema_version (number integer)")
        database.execute("insert into schema_version values (99)")
    records = Records(data_model(), reactor, url(tmp_path))
    try:
        with pytest.raises(InternalError, match="schema 99"):
            await records.open()
    finally:
        await records.close()
