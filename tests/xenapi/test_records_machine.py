"""The record engine under random work, against a model: relations both ways, uuids, names, and that a client who
follows events has exactly what get_all_records says, from whatever moment on it follows.

The examples are the same in each run (tests/rules.py).
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import attrs
import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)
from twisted.internet import defer
from twisted.internet.task import Clock

from tests.xenapi.record_model import Follower, RecordModel
from xapi_migrate.errors import EventsLost, FieldTypeError, HandleInvalid, InvalidValue, MapDuplicateKey, UuidInvalid
from xapi_migrate.store.interfaces import NULL
from xapi_migrate.store.records import Records
from xapi_migrate.xenapi import events
from xapi_migrate.xenapi.datamodel import DataModel
from xapi_migrate.xenapi.own_calls import data_model
from xapi_migrate.xenapi.server import make_server
from xapi_migrate.xenapi.types import Kind, Type

CLASSES = ("host", "pool", "SR", "VDI", "blob", "VM_group", "VM", "VBD")
"""Each may refer to those before it, and some to themselves."""
WITH_A_MAP = ("host", "pool", "SR", "VDI", "VM", "VBD")
TAGGED = ("VM", "VDI", "SR", "host", "pool")
TEXT = st.sampled_from(["", "a", "b", "<&>\"'", "ü€\U0001f600", "OpaqueRef:", " x\n", "1"])
NUMBER = st.integers(0, 40)


PHASES = (Phase.explicit, Phase.generate)
"""Making a failing example smaller takes minutes: add Phase.shrink while you look for a fault."""


def small_model() -> DataModel:
    """These classes and what the server itself needs, so that a server is made in no time."""
    whole = data_model()
    classes = {name: whole.classes[name] for name in (*CLASSES, "session", "task", "event")}
    relations = tuple(r for r in whole.relations if r.cls in classes and r.other in classes)
    return attrs.evolve(whole, classes=classes, relations=relations)


MODEL = small_model()
NAMES = {name.lower(): name for name in CLASSES}


class Machine(RuleBasedStateMachine):
    """Changes go in by calls where there is a call for them, else as the toolstack makes them."""

    followers = Bundle("followers")

    def __init__(self) -> None:
        super().__init__()
        self.model = RecordModel(MODEL)
        self.records = Records(MODEL, Clock())
        self.server = make_server(self.records, [], Clock())
        self.session = self.server.sessions.open("root", "here")
        self.numbers = iter(range(10**6))
        self.most_deleted = events.MOST_DELETED

    @initialize(most=st.sampled_from([2, 10_000]))
    def begin(self, most: int) -> None:
        """Not from nothing: what is interesting is what happens to objects that mean each other."""
        events.MOST_DELETED = most
        for _ in range(2):
            for cls in CLASSES:
                types = {name: self.model.forward[cls][name].type for name in self.related(cls) if name != "uuid"}
                self.add(cls, {n: self.pick(t.name, 0) for n, t in types.items() if t.kind is Kind.REF})

    def add(self, cls: str, fields: dict[str, Any]) -> None:
        uuid = f"uuid-{next(self.numbers)}"
        self.model.create(cls, self.records.create(cls, uuid=uuid, **fields), uuid, fields)

    def teardown(self) -> None:
        events.MOST_DELETED = self.most_deleted
        self.server.stop()

    # -- calls, as a client makes them ------------------------------------------------------------

    def call(self, method: str, *params: Any) -> Any:
        """Its result, at once: none of these calls has to wait."""
        ended: list[Any] = []
        work = self.server.dispatcher.call(method, [self.session, *params], "here")
        failed: list[BaseException] = []
        defer.Deferred.fromCoroutine(work).addCallbacks(ended.append, lambda f: failed.append(f.value))
        if failed:
            raise failed[0]
        return ended[0]

    def pick(self, cls: str, number: int) -> str:
        refs = self.model.refs(cls)
        return refs[number % len(refs)] if refs else NULL

    def any_of(self, number: int, classes: tuple[str, ...] = CLASSES) -> tuple[str, str]:
        """An object of these classes; one is made if there is none."""
        objects = [one for one in self.model.objects if one[0] in classes]
        if not objects:
            self.add(classes[0], {})
            return self.any_of(0, classes)
        return objects[number % len(objects)]

    def values(self, type_: Type) -> st.SearchStrategy[Any]:
        match type_.kind:
            case Kind.STRING | Kind.VOID:
                return TEXT
            case Kind.ENUM:
                return st.sampled_from(sorted(MODEL.enums[type_.name]))
            case Kind.INT:
                return st.sampled_from([0, 1, -1, 2**63 - 1])
            case Kind.FLOAT:
                return st.sampled_from([0.0, 0.5, -1e300])
            case Kind.BOOL:
                return st.booleans()
            case Kind.DATETIME:
                return st.sampled_from([datetime(1970, 1, 1, tzinfo=UTC), datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)])
            case Kind.REF:
                return st.sampled_from([NULL, *self.model.refs(type_.name)])
            case Kind.SET:
                assert type_.item is not None
                return st.lists(self.values(type_.item), max_size=3)
            case Kind.MAP:
                assert type_.item is not None and type_.key is not None
                return st.dictionaries(self.values(type_.key), self.values(type_.item), max_size=3)
        raise AssertionError(type_)

    def fields(self, cls: str) -> list[str]:
        return sorted(n for n, f in self.model.forward[cls].items() if f.type.kind is not Kind.RECORD)

    def related(self, cls: str) -> list[str]:
        """The fields that refer to objects: half of all draws take one of these."""
        return [n for n in self.fields(cls) if self.model.forward[cls][n].type.classes() & set(CLASSES)] or ["uuid"]

    def field(self, cls: str, data: st.DataObject) -> str:
        related = self.related(cls)
        if related != ["uuid"] and data.draw(st.booleans()):
            return data.draw(st.sampled_from(related))
        return data.draw(st.sampled_from(self.fields(cls)))

    # -- what may happen ---------------------------------------------------------------------------

    @rule(cls=st.sampled_from(CLASSES), data=st.data())
    def create(self, cls: str, data: st.DataObject) -> None:
        names = data.draw(st.lists(st.sampled_from(self.fields(cls)), max_size=3, unique=True))
        names = sorted({*names, *(n for n in self.related(cls) if n != "uuid")})
        fields = {name: data.draw(self.values(self.model.forward[cls][name].type)) for name in names}
        self.add(cls, fields)

    @rule(number=NUMBER, data=st.data())
    def set(self, number: int, data: st.DataObject) -> None:
        cls, ref = self.any_of(number)
        name = self.field(cls, data)
        value = data.draw(self.values(self.model.forward[cls][name].type))
        if MODEL.message(cls, f"set_{name}") and f"{cls}.set_{name}" in self.server.dispatcher.methods():
            self.call(f"{cls}.set_{name}", ref, value)
        else:
            self.records.update(cls, ref, **{name: value})
        self.model.set(cls, ref, name, value)

    @rule(number=NUMBER, key=TEXT, value=TEXT)
    def add_to_map(self, number: int, key: str, value: str) -> None:
        cls, ref = self.any_of(number, WITH_A_MAP)
        field = "other_config"
        known = self.model.objects[cls, ref][field]
        if key in known:
            with pytest.raises(MapDuplicateKey):
                self.call(f"{cls}.add_to_{field}", ref, key, value)
        else:
            self.call(f"{cls}.add_to_{field}", ref, key, value)
            self.model.set(cls, ref, field, {**known, key: value})

    @rule(number=NUMBER, key=TEXT)
    def remove_from_map(self, number: int, key: str) -> None:
        cls, ref = self.any_of(number, WITH_A_MAP)
        known = self.model.objects[cls, ref]["other_config"]
        self.call(f"{cls}.remove_from_other_config", ref, key)
        self.model.set(cls, ref, "other_config", {k: v for k, v in known.items() if k != key})

    @rule(number=NUMBER, tag=TEXT, add=st.booleans())
    def change_set(self, number: int, tag: str, add: bool) -> None:
        cls, ref = self.any_of(number, TAGGED)
        known = self.model.objects[cls, ref]["tags"]
        self.call(f"{cls}.{'add' if add else 'remove'}_tags", ref, tag)
        after = [*known, *([tag] if tag not in known else [])] if add else [t for t in known if t != tag]
        self.model.set(cls, ref, "tags", after)

    @rule(number=NUMBER)
    def destroy(self, number: int) -> None:
        cls, ref = self.any_of(number)
        self.records.destroy(cls, ref)
        self.model.destroy(cls, ref)

    @rule(number=NUMBER, same=st.booleans())
    def rekey(self, number: int, same: bool) -> None:
        """Also to what once was another's: the moved VM comes back."""
        cls, ref = self.any_of(number)
        free = [r for c, r in self.model.gone if c == cls and (c, r) not in self.model.objects]
        new = ref if same else free[number % len(free)] if free else f"OpaqueRef:new-{next(self.numbers)}"
        uuid = f"uuid-{next(self.numbers)}"
        self.records.rekey(cls, ref, new, uuid)
        self.model.rekey(cls, ref, new, uuid)

    @rule(number=NUMBER, data=st.data())
    def refused(self, number: int, data: st.DataObject) -> None:
        """What is refused has changed nothing; the invariants see that."""
        cls, ref = self.any_of(number)
        with pytest.raises(InvalidValue):
            self.records.create(cls, uuid=self.model.objects[cls, ref]["uuid"])
        with pytest.raises(FieldTypeError):
            self.records.update(cls, ref, **{data.draw(st.sampled_from(self.fields(cls))): object()})
        for name in self.related(cls):
            if name != "uuid" and self.model.forward[cls][name].type.kind is Kind.REF:
                with pytest.raises(HandleInvalid):
                    self.records.update(cls, ref, **{name: "OpaqueRef:nobody"})

    @rule(number=NUMBER)
    def inject(self, number: int) -> None:
        cls, ref = self.any_of(number)
        before = self.server.events.token()
        token = self.call("event.inject", cls, ref)
        [event] = self.call("event.from", [cls], before, 0.0)["events"]
        assert (event["ref"], event["operation"]) == (ref, "mod")
        assert self.call("event.from", [cls], token, 0.0)["events"] == []

    # -- clients that follow -------------------------------------------------------------------------

    @initialize(target=followers)
    def connected(self) -> Follower:
        return Follower(["*"])

    @rule(target=followers, classes=st.lists(st.sampled_from(CLASSES), max_size=4, unique=True))
    def connect(self, classes: list[str]) -> Follower:
        """It asks for everything; without a class it takes all of them."""
        follower = Follower(classes or ["*"])
        self.follow(follower)
        return follower

    @rule(target=followers, follower=followers)
    def wait(self, follower: Follower) -> Follower:
        """Another client that was told the same, and may fall behind further."""
        return Follower(follower.classes, follower.token, dict(follower.cache))

    @rule(target=followers)
    def begin_from_records(self) -> Any:
        """As Xen Orchestra does: the token of event.inject first, then all records."""
        pools = self.model.refs("pool")
        if not pools:
            return multiple()
        follower = Follower(["*"], self.call("event.inject", "pool", pools[0]))
        for cls in CLASSES:
            follower.cache.update(((cls, ref), r) for ref, r in self.call(f"{cls}.get_all_records").items())
        return follower

    @rule(follower=followers)
    def follow(self, follower: Follower) -> None:
        try:
            answer = self.call("event.from", follower.classes, follower.token, 0.0)
        except EventsLost:
            assert events.MOST_DELETED == 2, "nothing may be lost here"
            follower.token = ""
            follower.cache.clear()
            answer = self.call("event.from", follower.classes, "", 0.0)
        answer["events"] = [event for event in answer["events"] if event["class"] in NAMES]
        follower.take(answer, NAMES)
        wanted = CLASSES if follower.classes == ["*"] else follower.classes
        assert follower.cache == {
            (cls, ref): record for cls in wanted for ref, record in self.call(f"{cls}.get_all_records").items()
        }
        counts = answer["valid_ref_counts"]
        assert {cls: counts[cls.lower()] for cls in CLASSES} == {cls: len(self.model.refs(cls)) for cls in CLASSES}

    # -- what holds at each moment ---------------------------------------------------------------------

    @invariant()
    def records_are_the_models(self) -> None:
        for cls in CLASSES:
            said = self.call(f"{cls}.get_all_records")
            assert list(said) == self.call(f"{cls}.get_all") == self.model.refs(cls)
            assert {ref: self.model.in_no_order(cls, record) for ref, record in said.items()} == self.model.records(cls)

    @invariant()
    def they_are_found_by_uuid_and_by_name(self) -> None:
        for cls in CLASSES:
            names: dict[str, list[str]] = {}
            for ref in self.model.refs(cls):
                fields = self.model.objects[cls, ref]
                assert self.call(f"{cls}.get_by_uuid", fields["uuid"]) == ref
                names.setdefault(fields.get("name_label", ""), []).append(ref)
            if MODEL.message(cls, "get_by_name_label"):
                for name, refs in names.items():
                    assert self.call(f"{cls}.get_by_name_label", name) == refs
                assert self.call(f"{cls}.get_by_name_label", "nobody has that") == []

    @precondition(lambda self: self.model.gone)
    @invariant()
    def what_is_gone_is_not_found(self) -> None:
        cls, ref = self.model.gone[-1]
        if (cls, ref) not in self.model.objects:
            with pytest.raises(HandleInvalid):
                self.call(f"{cls}.get_record", ref)
        cls, uuid = self.model.old_uuids[-1]
        with pytest.raises(UuidInvalid):
            self.call(f"{cls}.get_by_uuid", uuid)


def test_records_relations_and_events_stay_what_the_model_says() -> None:
    run_state_machine_as_test(Machine, settings=settings(max_examples=50, stateful_step_count=40, phases=PHASES))
