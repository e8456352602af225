"""Random work on the store, against a model that knows only forward references."""

from __future__ import annotations

from itertools import count
from pathlib import Path

import pytest_twisted
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from twisted.internet import reactor

from xapi_migrate.errors import MigrateError
from xapi_migrate.store.interfaces import NULL
from xapi_migrate.store.records import Records
from xapi_migrate.xenapi.own_calls import data_model

CLASSES = {
    "VM": {"parent": "VM", "resident_on": "host", "appliance": "VM_appliance"},
    "VBD": {"VM": "VM", "VDI": "VDI"},
    "VDI": {"SR": "SR", "snapshot_of": "VDI"},
    "SR": {},
    "host": {},
    "VM_appliance": {},
}
NUMBERS = count()
"""Every example has a database of its own."""
CHOICE = st.integers(0, 7)
STEP = st.tuples(
    st.sampled_from(["create", "update", "rekey", "destroy"]), st.sampled_from(sorted(CLASSES)), CHOICE, CHOICE
)


class Model:
    """(class, ref) -> forward references and uuid."""

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str], dict[str, str]] = {}

    def pick(self, cls: str, number: int) -> str:
        refs = [ref for c, ref in self.objects if c == cls]
        return refs[number % len(refs)] if refs and number < 6 else NULL

    def replace(self, cls: str, old: str, new: str) -> None:
        for (c, _), fields in self.objects.items():
            for field, target in CLASSES[c].items():
                if target == cls and fields[field] == old:
                    fields[field] = new


def run(records: Records, model: Model, steps: list[tuple[str, str, int, int]], start: int = 0) -> None:
    for number, (action, cls, which, other) in enumerate(steps, start):
        ref = model.pick(cls, which)
        links = {field: model.pick(target, other) for field, target in CLASSES[cls].items()}
        if action == "create":
            ref = records.create(cls, uuid=f"uuid-{number}", **links)
            model.objects[cls, ref] = {**links, "uuid": f"uuid-{number}"}
        elif ref == NULL:
            continue
        elif action == "update":
            records.update(cls, ref, **links)
            model.objects[cls, ref].update(links)
        elif action == "rekey":
            new_ref = model.pick(cls, other) if other < 3 else f"OpaqueRef:new-{number}"
            try:
                records.rekey(cls, ref, new_ref, f"uuid-{number}")
            except MigrateError:
                assert new_ref == NULL or (new_ref != ref and (cls, new_ref) in model.objects)
                continue
            fields = model.objects.pop((cls, ref))
            model.objects[cls, new_ref] = {**fields, "uuid": f"uuid-{number}"}
            model.replace(cls, ref, new_ref)
        else:
            records.destroy(cls, ref)
            del model.objects[cls, ref]
            model.replace(cls, ref, NULL)


def same(records: Records, model: Model) -> None:
    relations = [r for r in data_model().relations if r.cls in CLASSES and r.field in CLASSES[r.cls]]
    for cls in CLASSES:
        assert set(records.refs(cls)) == {ref for c, ref in model.objects if c == cls}
    for (cls, ref), fields in model.objects.items():
        record = records.get(cls, ref)
        assert {name: record[name] for name in fields} == fields
        assert records.by_uuid(cls, fields["uuid"]) == ref
        for relation in relations:
            if relation.other == cls:
                expected = [r for (c, r), f in model.objects.items() if c == relation.cls and f[relation.field] == ref]
                assert sorted(record[relation.reverse]) == sorted(expected)


class _NoDatabase:
    """A reactor that never gets round to writing."""

    def callLater(self, seconds: float, function: object) -> None:
        pass


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(STEP, max_size=40))
@pytest_twisted.ensureDeferred
async def test_what_is_loaded_is_what_was_there(tmp_path: Path, steps: list[tuple[str, str, int, int]]) -> None:
    url = f"sqlite:///{tmp_path}/{next(NUMBERS)}.db"
    records, model = Records(data_model(), reactor, url), Model()
    await records.open()
    for start in range(0, len(steps), 7):
        run(records, model, steps[start : start + 7], start)
        await records.flush()
    await records.close()
    again = Records(data_model(), reactor, url)
    await again.open()
    try:
        same(again, model)
        assert [again.refs(cls) for cls in CLASSES] == [records.refs(cls) for cls in CLASSES]
    finally:
        await again.close()
