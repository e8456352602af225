"""One commit, and what others have committed since: what the thread of database.py runs. It blocks.

A commit takes the counter's row first, so commits come one after the other, and each has a generation in that order.
Only fields that were changed are written, into the row as it is then: two members that change different fields of one
record do not undo each other's work.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterable, Mapping
from typing import Any

import attrs
from sqlalchemy import (
    Connection,
    Engine,
    bindparam,
    create_engine,
    delete,
    event,
    func,
    insert,
    make_url,
    select,
    update,
)
from sqlalchemy.exc import ArgumentError
from sqlalchemy.pool import StaticPool

from xapi_migrate.errors import InvalidValue
from xapi_migrate.store.schema import COUNTERS, GENERATION, HORIZON, MEMBERS, RECORDS, REMOVED, SECRETS, SEED, upgrade
from xapi_migrate.xenapi.types import Type

CHANNEL = "xapi_migrate"
"""Where PostgreSQL tells that something was committed."""
KEPT_REMOVALS = 50_000
_CHUNK = 400
_BUSY_SECONDS = 30.0


@attrs.frozen
class Row:
    """A record on its way to or from the database. `fields` None: it is gone. `changed`: the fields to be written;
    None: it is new. `again`: it was removed just before, so what the database still has of it does not count."""

    cls: str
    ref: str
    seq: int
    fields: Mapping[str, Any] | None
    changed: frozenset[str] | None = None
    again: bool = False

    def after(self, before: Row | None) -> Row:
        """Both changes as one."""
        if before is None or self.fields is None:
            return self
        if self.changed is None:
            return attrs.evolve(self, again=self.again or before.fields is None)
        if before.changed is None:
            return attrs.evolve(self, changed=None, again=before.again)
        return attrs.evolve(self, changed=self.changed | before.changed)


@attrs.frozen
class News:
    """What was committed up to `generation`. `whole`: these are all rows, what is not among them is gone."""

    generation: int
    rows: list[Row]
    removed: list[tuple[str, str]]
    whole: bool = False


def open_engine(url: str) -> Engine:
    """An engine for a database URL; transactions of an SQLite one take the write lock at once unless they only read.
    InvalidValue."""
    if url.startswith(("postgresql://", "postgres://")):
        url = "postgresql+psycopg://" + url.partition("://")[2]
    try:
        make_url(url)
    except ArgumentError:  # the URL may hold a password: it is not repeated
        raise InvalidValue("database", "there (no URL such as postgresql://USER@HOST/NAME)") from None
    if not url.startswith("sqlite"):
        alive = {"connect_timeout": 5, "keepalives_idle": 5, "keepalives_interval": 2, "keepalives_count": 3}
        return create_engine(url, pool_pre_ping=True, pool_size=1, connect_args={**alive, "tcp_user_timeout": 10000})
    memory = url in ("sqlite://", "sqlite:///:memory:")
    options: dict[str, Any] = {"poolclass": StaticPool} if memory else {}
    arguments = {"check_same_thread": False, "timeout": _BUSY_SECONDS}
    engine = create_engine(url, connect_args=arguments, **options)

    @event.listens_for(engine, "connect")
    def tune(connection: Any, _record: object) -> None:
        connection.isolation_level = None  # we say BEGIN ourselves
        cursor = connection.cursor()
        _write_ahead(cursor)
        cursor.execute("PRAGMA synchronous=FULL")  # a commit that was waited for outlives a loss of power
        cursor.close()

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        reading = connection.get_execution_options().get("reading")
        connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")

    return engine


def _write_ahead(cursor: Any) -> None:
    """SQLite does not wait by itself for another process that makes the same change of mode."""
    until = time.monotonic() + _BUSY_SECONDS
    while True:
        try:
            cursor.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError:
            if time.monotonic() > until:
                raise
            time.sleep(0.02)


class Commits:
    """`stored` has the types of each class's fields that are kept."""

    def __init__(self, url: str, stored: Mapping[str, Mapping[str, Type]]) -> None:
        self._stored = stored
        self._engine = open_engine(url)
        self._count = 0
        self.secret = ""
        """The pool's; read by `load`."""

    def load(self) -> tuple[News, int]:
        """Everything, the database brought to this program's schema before; and its seed."""
        upgrade(self._engine)
        with self._reading() as connection:
            news = self._whole(connection, _counter(connection, GENERATION))
            self.secret = str(connection.execute(select(SECRETS.c.value).where(SECRETS.c.name == MEMBERS)).scalar())
            return news, _counter(connection, SEED)

    def dispose(self) -> None:
        self._engine.dispose()

    def store(self, batch: list[Row], generation: int) -> tuple[int, int]:
        """One transaction. The generation of the commit before it and its own, which is at least `generation`."""
        with self._engine.begin() as connection:
            where = COUNTERS.c.name == GENERATION
            connection.execute(update(COUNTERS).where(where).values(value=COUNTERS.c.value + 1))
            own = _counter(connection, GENERATION)
            before = own - 1
            if generation > own:
                connection.execute(update(COUNTERS).where(where).values(value=generation))
                own = generation
            if batch:
                self._write(connection, batch, own)
            self._count += 1
            if self._count % 256 == 0:
                self._forget_removals(connection, own - KEPT_REMOVALS)
            if connection.dialect.name == "postgresql":
                connection.execute(select(func.pg_notify(CHANNEL, str(own))))
        return before, own

    def take(self, cls: str, ref: str, field: str, free: tuple[Any, ...], value: Any) -> bool:
        """Set an internal field to `value` if it is one of `free` in the database now; whether it was. Of several
        daemons that try, one succeeds."""
        with self._engine.begin() as connection:
            where = COUNTERS.c.name == GENERATION
            connection.execute(update(COUNTERS).where(where).values(value=COUNTERS.c.value + 1))
            own = _counter(connection, GENERATION)
            this = (RECORDS.c.cls == cls) & (RECORDS.c.ref == ref)
            internal = connection.execute(select(RECORDS.c.internal).where(this)).scalar()
            if internal is None or json.loads(internal).get(field) not in free:
                return False
            text = json.dumps({**json.loads(internal), field: value})
            connection.execute(update(RECORDS).where(this).values(internal=text, generation=own))
            return True

    def _write(self, connection: Connection, batch: list[Row], generation: int) -> None:
        known = self._known(connection, [row.ref for row in batch])
        written: list[dict[str, Any]] = []
        gone: list[dict[str, Any]] = []
        for row in batch:
            there = known.get((row.cls, row.ref))
            if row.fields is None:
                gone.append({"cls": row.cls, "ref": row.ref, "generation": generation})
            elif row.changed is None:
                if there is None or row.again:
                    written.append(self._encode(row, generation))
            elif there is not None:
                written.append(self._merged(there, self._encode(row, generation), row.changed))
        names = [{"c": one["cls"], "r": one["ref"]} for one in (*written, *gone)]
        if names:
            for table in (RECORDS, REMOVED):
                these = delete(table).where(table.c.cls == bindparam("c"), table.c.ref == bindparam("r"))
                connection.execute(these, names)
        if written:
            connection.execute(insert(RECORDS), written)
        if gone:
            connection.execute(insert(REMOVED), gone)

    def _known(self, connection: Connection, refs: list[str]) -> dict[tuple[str, str], Any]:
        found: dict[tuple[str, str], Any] = {}
        for start in range(0, len(refs), _CHUNK):
            these = select(RECORDS).where(RECORDS.c.ref.in_(refs[start : start + _CHUNK]))
            found.update(((row.cls, row.ref), row) for row in connection.execute(these))
        return found

    def _forget_removals(self, connection: Connection, horizon: int) -> None:
        if horizon > 0:
            connection.execute(delete(REMOVED).where(REMOVED.c.generation <= horizon))
            connection.execute(update(COUNTERS).where(COUNTERS.c.name == HORIZON).values(value=horizon))

    def since(self, generation: int) -> News | None:
        """What was committed after that generation; None: nothing."""
        with self._reading() as connection:
            latest = _counter(connection, GENERATION)
            if latest == generation:
                return None
            # a lower number is that of a database that was put back from a copy
            if latest < generation or generation < _counter(connection, HORIZON):
                return self._whole(connection, latest)
            rows = connection.execute(select(RECORDS).where(RECORDS.c.generation > generation).order_by(RECORDS.c.seq))
            decoded = list(self._decoded(rows))
            removed = connection.execute(select(REMOVED).where(REMOVED.c.generation > generation))
            return News(latest, decoded, [(row.cls, row.ref) for row in removed])

    def _whole(self, connection: Connection, generation: int) -> News:
        rows = connection.execute(select(RECORDS).order_by(RECORDS.c.seq, RECORDS.c.ref))
        return News(generation, list(self._decoded(rows)), [], whole=True)

    def _reading(self) -> Connection:
        """One state of the database, whatever is committed meanwhile."""
        options: dict[str, Any] = {"reading": True}
        if self._engine.dialect.name == "postgresql":
            options["isolation_level"] = "REPEATABLE READ"
        return self._engine.connect().execution_options(**options)

    def _decoded(self, rows: Iterable[Any]) -> Iterable[Row]:
        for row in rows:
            types = self._stored.get(row.cls)
            if types is not None:
                values = json.loads(row.fields)
                fields = {name: types[name].from_json(value) for name, value in values.items() if name in types}
                yield Row(row.cls, row.ref, row.seq, {**fields, **json.loads(row.internal), "uuid": row.uuid})

    def _encode(self, row: Row, generation: int) -> dict[str, Any]:
        types, values = self._stored[row.cls], row.fields or {}
        fields = {
            name: type_.to_json(values[name]) for name, type_ in types.items() if name != "uuid" and name in values
        }
        internal = {name: value for name, value in values.items() if name.startswith("_")}
        return {
            "cls": row.cls, "ref": row.ref, "uuid": values.get("uuid", ""), "seq": row.seq,
            "fields": json.dumps(fields), "internal": json.dumps(internal), "generation": generation,
        }  # fmt: skip

    def _merged(self, there: Any, encoded: dict[str, Any], changed: frozenset[str]) -> dict[str, Any]:
        merged = {**encoded, "seq": there.seq, "uuid": encoded["uuid"] if "uuid" in changed else there.uuid}
        for column in ("fields", "internal"):
            ours = json.loads(encoded[column])
            both = {**json.loads(getattr(there, column)), **{k: v for k, v in ours.items() if k in changed}}
            merged[column] = json.dumps(both)
        return merged


def _counter(connection: Connection, name: str) -> int:
    value = connection.execute(select(COUNTERS.c.value).where(COUNTERS.c.name == name)).scalar()
    return int(value or 0)
