"""IRecords: the working set in memory, the database behind it."""

from __future__ import annotations

import secrets
import uuid as uuids
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from twisted.internet import defer
from twisted.logger import Logger
from zope.interface import implementer

from xapi_migrate.errors import FieldTypeError, HandleInvalid, InternalError, InvalidValue, UuidInvalid
from xapi_migrate.store.commits import News, Row
from xapi_migrate.store.database import Database
from xapi_migrate.store.interfaces import NULL, Change, IRecords, Record
from xapi_migrate.store.relations import Relations
from xapi_migrate.xenapi.datamodel import DataModel

MOST_MARKS = 20_000


def new_ref() -> str:
    """A fresh reference, not to be guessed."""
    return f"OpaqueRef:{uuids.uuid4()}"


@implementer(IRecords)
class Records:
    """Records are immutable snapshots: a change makes a new one, so whoever holds one sees no half of a change."""

    log = Logger()

    def __init__(self, model: DataModel, reactor: Any, url: str = "sqlite://") -> None:
        self.model = model
        self.generation = 0
        self._relations = Relations(model)
        self._database = Database(url, model, self._relations.derived, reactor)
        self._tables: dict[str, dict[str, Record]] = {name: {} for name in model.classes}
        self._by_uuid: dict[str, dict[str, str]] = {name: {} for name in model.classes}
        self._seqs: dict[tuple[str, str], int] = {}
        self._seq = 0
        self._subscribers: list[Callable[[Change], None]] = []
        self._news: deque[Change] = deque()
        self._telling = False
        self._foreign = False
        self.shared = False
        """Other daemons may use the same database."""
        self.tag = secrets.randbelow((1 << 20) - 1) + 1
        """Names this daemon's numbering of changes in tokens."""
        self._marks: deque[tuple[int, int]] = deque(maxlen=MOST_MARKS)
        self._database.learn = self._learn
        self._database.committed = self._mark
        self._blank: dict[str, dict[str, Any]] = {
            name: {f.name: f.default for f in cls.fields.values()} for name, cls in model.classes.items()
        }

    # -- opening and closing -------------------------------------------------------------------

    async def open(self) -> None:
        """Load everything; once, before anything else. InternalError if the database cannot be used."""
        rows = await self._database.open()
        self.generation = self._database.generation
        self._mark(self.generation, self.generation)
        for row in rows:
            derived: dict[str, Any] = {f: [] for cls, f in self._relations.derived if cls == row.cls}
            self._place(row.cls, row.ref, {**self._blank[row.cls], **(row.fields or {}), **derived}, row.seq)
        self._seq = max((row.seq for row in rows), default=0)
        for row in rows:
            self._mend(row.cls, row.ref)

    def _place(self, cls: str, ref: str, record: dict[str, Any], seq: int) -> None:
        self._tables[cls][ref] = MappingProxyType(record)
        self._by_uuid[cls][record["uuid"]] = ref
        self._seqs[cls, ref] = seq

    def _mend(self, cls: str, ref: str) -> None:
        """After loading: forget references to what was not kept, then join the reverse sets."""
        record = self._whole(cls, dict(self._tables[cls][ref]))
        self._tables[cls][ref] = MappingProxyType(record)
        for other, target, reverse in self._relations.targets(cls, record):
            joined = self._tables[other][target]
            self._tables[other][target] = MappingProxyType({**joined, reverse: [*joined[reverse], ref]})

    def flush(self) -> defer.Deferred[None]:
        return self._database.flush()

    def refresh(self) -> defer.Deferred[bool]:
        return self._database.follow() if self.shared else defer.succeed(True)

    async def take(self, cls: str, ref: str, field: str, free: tuple[Any, ...], value: Any) -> bool:
        """Set an internal field if it is one of `free`, at one member only; whether it was. InternalError if the
        database does not answer: then nobody can know."""
        if not self.shared:
            if self.get(cls, ref).get(field) not in free:
                return False
            self.update(cls, ref, **{field: value})
            return True
        if not await self.refresh():
            raise InternalError("The pool's database does not answer, so it is not known what its other members do.")
        taken = await self._database.take(cls, ref, field, free, value)
        await self.refresh()
        if taken and self.has(cls, ref):
            self.update(cls, ref, **{field: value})
        return taken

    def pool_wide(self, name: str) -> tuple[str, str]:
        """A ref and a uuid that are the same at every daemon of this database, for what belongs to all of them."""
        return tuple(  # type: ignore[return-value]
            f"{prefix}{uuids.uuid5(uuids.NAMESPACE_OID, f'{self._database.seed}/{kind}/{name}')}"
            for prefix, kind in (("OpaqueRef:", "ref"), ("", "uuid"))
        )

    @property
    def member_secret(self) -> str:
        """What the members of this pool know each other by; "" where there are no others."""
        return self._database.secret if self.shared else ""

    def after_write(self, callback: Callable[[], None]) -> None:
        """Call back when something was committed."""
        self._database.after_write = callback

    # -- numbers: this daemon's own, and those of the commits ------------------------------------

    @property
    def pool_generation(self) -> int:
        """All commits up to this one are known here."""
        return self._database.generation

    def _mark(self, pool: int, local: int) -> None:
        if not self._marks or self._marks[-1] != (pool, local):
            self._marks.append((pool, local))

    def local_number(self, pool: int) -> int | None:
        """A change of this number and those before it were in the commits up to `pool`; None: too long ago to tell."""
        at = bisect_right(self._marks, pool, key=lambda mark: mark[0])
        return self._marks[at - 1][1] if at else None

    async def close(self) -> None:
        await self._database.close()

    # -- reading -------------------------------------------------------------------------------

    def _table(self, cls: str) -> dict[str, Record]:
        try:
            return self._tables[cls]
        except KeyError:
            raise InternalError(f"the data model has no class {cls}") from None

    def get(self, cls: str, ref: str) -> Record:
        try:
            return self._table(cls)[ref]
        except KeyError:
            raise HandleInvalid(cls, ref) from None

    def has(self, cls: str, ref: str) -> bool:
        """Whether there is such a record."""
        return ref in self._table(cls)

    def find(self, cls: str, **fields: Any) -> list[str]:
        wanted = fields.items()
        return [
            ref for ref, record in self._table(cls).items() if all(record.get(name) == value for name, value in wanted)
        ]

    def by_uuid(self, cls: str, uuid: str) -> str:
        self._table(cls)
        try:
            return self._by_uuid[cls][uuid]
        except KeyError:
            raise UuidInvalid(cls, uuid) from None

    def refs(self, cls: str) -> list[str]:
        return list(self._table(cls))

    # -- changing ------------------------------------------------------------------------------

    def create(self, cls: str, /, ref: str = "", **fields: Any) -> str:
        table = self._table(cls)
        ref = ref or new_ref()
        uuid = fields.get("uuid") or str(uuids.uuid4())
        if ref in table or ref == NULL:
            raise InvalidValue("ref", ref)
        if uuid in self._by_uuid[cls]:
            raise InvalidValue("uuid", uuid)
        fields["uuid"] = uuid
        self._check(cls, fields)
        self._seq += 1
        self._place(cls, ref, {**self._blank[cls], **fields}, self._seq)
        self._note(cls, "add", ref)
        self._join(cls, ref, {}, self._tables[cls][ref])
        self._tell()
        return ref

    def update(self, cls: str, ref: str, **fields: Any) -> None:
        before = self.get(cls, ref)
        self._check(cls, fields)
        changed = {name: value for name, value in fields.items() if name not in before or before[name] != value}
        if not changed:
            return
        if "uuid" in changed:
            raise FieldTypeError(f"{cls}.uuid (use rekey)")
        after = self._put(cls, ref, {**before, **changed})
        self._join(cls, ref, before, after)
        self._tell()

    def rekey(self, cls: str, ref: str, new_ref: str, new_uuid: str) -> None:
        before = self.get(cls, ref)
        table, by_uuid = self._tables[cls], self._by_uuid[cls]
        if (new_ref != ref and new_ref in table) or not new_ref or new_ref == NULL:
            raise InvalidValue("ref", new_ref)
        if by_uuid.get(new_uuid, ref) != ref or not new_uuid:
            raise InvalidValue("uuid", new_uuid)
        if (new_ref, new_uuid) == (ref, before["uuid"]):
            return
        if new_ref == ref:
            del by_uuid[before["uuid"]]
            by_uuid[new_uuid] = ref
            self._put(cls, ref, {**before, "uuid": new_uuid})
        else:
            self._rename(cls, ref, new_ref, new_uuid)
        self._tell()

    def _rename(self, cls: str, ref: str, new_ref: str, new_uuid: str) -> None:
        before = dict(self._tables[cls][ref])
        seq = self._seqs[cls, ref]
        self._remove(cls, ref)
        self._place(cls, new_ref, {**before, "uuid": new_uuid}, seq)
        # in the place of the old one: order of creation
        ordered = sorted(self._tables[cls].items(), key=lambda item: self._seqs[cls, item[0]])
        self._tables[cls].clear()
        self._tables[cls].update(ordered)
        self._note(cls, "add", new_ref)
        self._follow(cls, ref, new_ref)
        for other, target, reverse in set(self._relations.targets(cls, self._tables[cls][new_ref])):
            joined = self._tables[other][target]
            self._put(other, target, {**joined, reverse: [new_ref if r == ref else r for r in joined[reverse]]})

    def destroy(self, cls: str, ref: str) -> None:
        before = self._table(cls).get(ref)
        if before is None:
            return
        self._erase(cls, ref)
        self._tell()

    def _erase(self, cls: str, ref: str) -> None:
        self._join(cls, ref, self._tables[cls][ref], {})
        self._follow(cls, ref, NULL)
        self._remove(cls, ref)

    # -- how a change spreads ------------------------------------------------------------------

    def _check(self, cls: str, fields: Mapping[str, Any]) -> None:
        """Each field known, not derived, of its type, and referring to what is there."""
        types = self._relations.fields(cls)
        for name, value in fields.items():
            if name.startswith("_"):
                continue
            type_ = types.get(name)
            if type_ is None or (cls, name) in self._relations.derived or not type_.holds(value):
                raise FieldTypeError(f"{cls}.{name}")
            for other, target in type_.references(value):
                if self._relations.known(other) and target not in self._tables[other]:
                    raise HandleInvalid(other, target)

    def _put(self, cls: str, ref: str, record: dict[str, Any]) -> Record:
        after: Record = MappingProxyType(record)
        before = self._tables[cls][ref]
        self._tables[cls][ref] = after
        changed = {name for name in record if name not in before or before[name] != record[name]}
        self._note(cls, "mod", ref, frozenset(n for n in changed if (cls, n) not in self._relations.derived))
        return after

    def _remove(self, cls: str, ref: str) -> None:
        record = self._tables[cls].pop(ref)
        if self._by_uuid[cls].get(record["uuid"]) == ref:
            del self._by_uuid[cls][record["uuid"]]
        self._note(cls, "del", ref)
        del self._seqs[cls, ref]

    def _join(self, cls: str, ref: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
        """The reverse sets, after a record's forward fields went from `before` to `after` (either may be empty)."""
        old = set(self._relations.targets(cls, before)) if before else set()
        new = set(self._relations.targets(cls, after)) if after else set()
        for other, target, reverse in sorted(old - new):
            joined = self._tables[other][target]
            self._put(other, target, {**joined, reverse: [r for r in joined[reverse] if r != ref]})
        for other, target, reverse in sorted(new - old):
            joined = self._tables[other][target]
            self._put(other, target, {**joined, reverse: [*joined[reverse], ref]})

    def _follow(self, cls: str, ref: str, new_ref: str) -> None:
        """Make all forward references to `ref` name `new_ref`."""
        for name, field, type_ in self._relations.mentions(cls):
            for holder, record in list(self._tables[name].items()):
                if (cls, ref) in type_.references(record[field]):
                    self._put(name, holder, {**record, field: type_.replace(record[field], cls, ref, new_ref)})

    # -- what others have changed ----------------------------------------------------------------

    def _learn(self, news: News) -> None:
        """Take over what was committed elsewhere; what is still to be written from here comes after it."""
        self._foreign = True
        try:
            pending = self._database.pending
            rows = [row for row in news.rows if row.cls in self._tables]
            fresh = [row for row in rows if row.ref not in self._tables[row.cls]]
            rows = [row for row in rows if (at := pending.get((row.cls, row.ref))) is None or at.fields is not None]
            fresh = [row for row in fresh if (row.cls, row.ref) not in pending]
            for row in fresh:
                derived: dict[str, Any] = {f: [] for cls, f in self._relations.derived if cls == row.cls}
                self._place(row.cls, row.ref, {**self._blank[row.cls], **(row.fields or {}), **derived}, row.seq)
            self._seq = max((self._seq, *(row.seq for row in rows)))
            for row in fresh:
                record = self._whole(row.cls, dict(self._tables[row.cls][row.ref]))
                self._tables[row.cls][row.ref] = MappingProxyType(record)
                self._note(row.cls, "add", row.ref)
                self._join(row.cls, row.ref, {}, record)
            new = {(row.cls, row.ref) for row in fresh}
            for row in rows:
                if (row.cls, row.ref) not in new:
                    self._take(row, pending.get((row.cls, row.ref)))
            removed = news.removed
            if news.whole:
                there = {(row.cls, row.ref) for row in news.rows}
                removed = [(c, r) for c, table in self._tables.items() for r in table if (c, r) not in there]
            for cls, ref in removed:
                if cls in self._tables and ref in self._tables[cls] and not _made_here(pending.get((cls, ref))):
                    pending.pop((cls, ref), None)
                    self._erase(cls, ref)
        finally:
            self._foreign = False
        self._tell()

    def _take(self, row: Row, pending: Row | None) -> None:
        before = self._tables[row.cls].get(row.ref)
        if before is None or (pending is not None and pending.again):
            return
        ours = pending.changed if pending is not None and pending.changed else frozenset()
        reverse = {f for cls, f in self._relations.derived if cls == row.cls}
        kept = {name: value for name, value in before.items() if name in reverse or name in ours}
        record = self._whole(row.cls, {**self._blank[row.cls], **(row.fields or {}), **kept})
        if record == before:
            return
        if record["uuid"] != before["uuid"]:
            if self._by_uuid[row.cls].get(before["uuid"]) == row.ref:
                del self._by_uuid[row.cls][before["uuid"]]
            self._by_uuid[row.cls][record["uuid"]] = row.ref
        after = self._put(row.cls, row.ref, record)
        self._join(row.cls, row.ref, before, after)

    def _whole(self, cls: str, record: dict[str, Any]) -> dict[str, Any]:
        """Without references to what is gone."""
        for name, type_ in self._relations.fields(cls).items():
            if (cls, name) not in self._relations.derived:
                for other, target in list(type_.references(record[name])):
                    if self._relations.known(other) and target not in self._tables[other]:
                        record[name] = type_.replace(record[name], other, target, NULL)
        return record

    # -- telling others ------------------------------------------------------------------------

    def _note(self, cls: str, operation: str, ref: str, changed: frozenset[str] | None = None) -> None:
        self.generation += 1
        record = None if operation == "del" else self._tables[cls][ref]
        self._news.append(Change(self.generation, cls, operation, ref, record, self._foreign))
        # reverse sets are not kept, so a record of which nothing else changed is not written
        if self._foreign or changed == frozenset():
            self._database.number(self.generation)
        else:
            self._database.write(Row(cls, ref, self._seqs[cls, ref], record, changed), self.generation)

    def _tell(self) -> None:
        """In order of generation, also when a subscriber changes something itself."""
        if self._telling:
            return
        self._telling = True
        try:
            while self._news:
                change = self._news.popleft()
                for callback in list(self._subscribers):
                    try:
                        callback(change)
                    except Exception:
                        self.log.failure("A subscriber to record changes failed")
        finally:
            self._telling = False

    def subscribe(self, callback: Callable[[Change], None]) -> Callable[[], None]:
        self._subscribers.append(callback)

        def end() -> None:
            if callback in self._subscribers:
                self._subscribers.remove(callback)

        return end


def _made_here(pending: Row | None) -> bool:
    return pending is not None and pending.fields is not None and pending.changed is None
