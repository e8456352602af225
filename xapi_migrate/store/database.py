"""Where records are kept between runs: SQLAlchemy Core, one thread, written in order behind the reactor's back."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import attrs
from sqlalchemy import Engine, bindparam, create_engine, delete, event, insert, select
from sqlalchemy.pool import StaticPool
from twisted.internet import defer, threads
from twisted.internet.interfaces import IDelayedCall, IReactorThreads, IReactorTime
from twisted.logger import Logger
from twisted.python.threadpool import ThreadPool

from xapi_migrate.store.schema import COUNTERS, RECORDS, upgrade
from xapi_migrate.xenapi.datamodel import DataModel
from xapi_migrate.xenapi.types import Type

_T = TypeVar("_T")
_RETRY_SECONDS = 2.0


@attrs.frozen
class Row:
    """A record on its way to or from the database. `fields` None: it is gone."""

    cls: str
    ref: str
    seq: int
    fields: Mapping[str, Any] | None


def open_engine(url: str) -> Engine:
    """An engine for a database URL; an SQLite one is made safe and quick for a single writer."""
    if not url.startswith("sqlite"):
        return create_engine(url)
    memory = url in ("sqlite://", "sqlite:///:memory:")
    options: dict[str, Any] = {"poolclass": StaticPool} if memory else {}
    engine = create_engine(url, connect_args={"check_same_thread": False}, **options)

    @event.listens_for(engine, "connect")
    def tune(connection: Any, _record: object) -> None:
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute("PRAGMA synchronous=NORMAL")
        cursor.close()

    return engine


class Database:
    """Loads all rows once, then takes changes. The latest state of a record wins; everything that was pending
    when a write began becomes durable in one transaction."""

    log = Logger()

    def __init__(self, url: str, model: DataModel, derived: frozenset[tuple[str, str]], reactor: Any) -> None:
        self._url = url
        self._reactor: IReactorThreads = reactor
        self._clock: IReactorTime = reactor
        self._stored: dict[str, dict[str, Type]] = {
            name: {f.name: f.type for f in cls.fields.values() if (name, f.name) not in derived}
            for name, cls in model.classes.items()
        }
        self._pool = ThreadPool(0, 1, "records")
        self._engine: Engine | None = None
        self._pending: dict[tuple[str, str], Row] = {}
        self._generation = 0
        self._dirty = False
        self._writing = False
        self._waiting: list[defer.Deferred[None]] = []
        self._retry: IDelayedCall | None = None

    def _in_thread(self, function: Callable[[], _T]) -> defer.Deferred[_T]:
        return threads.deferToThreadPool(self._reactor, self._pool, function)

    async def open(self) -> tuple[list[Row], int]:
        """All rows in order of creation, and the generation that was last written."""
        self._pool.start()
        return await self._in_thread(self._load)

    def _load(self) -> tuple[list[Row], int]:
        self._engine = open_engine(self._url)
        upgrade(self._engine)
        with self._engine.connect() as connection:
            rows = [self._decode(row) for row in connection.execute(select(RECORDS).order_by(RECORDS.c.seq))]
            generation = connection.execute(select(COUNTERS.c.value).where(COUNTERS.c.name == "generation")).scalar()
        return [row for row in rows if row is not None], generation or 0

    def _decode(self, row: Any) -> Row | None:
        types = self._stored.get(row.cls)
        if types is None:
            return None
        values = json.loads(row.fields)
        fields = {name: types[name].from_json(value) for name, value in values.items() if name in types}
        return Row(row.cls, row.ref, row.seq, {**fields, **json.loads(row.internal), "uuid": row.uuid})

    def _encode(self, row: Row) -> dict[str, Any]:
        types, values = self._stored[row.cls], row.fields or {}
        fields = {
            name: type_.to_json(values[name]) for name, type_ in types.items() if name != "uuid" and name in values
        }
        internal = {name: value for name, value in values.items() if name.startswith("_")}
        return {
            "cls": row.cls, "ref": row.ref, "uuid": values.get("uuid", ""), "seq": row.seq,
            "fields": json.dumps(fields), "internal": json.dumps(internal),
        }  # fmt: skip

    def write(self, row: Row, generation: int) -> None:
        """Keep this state of a record; soon, in order."""
        self._pending[row.cls, row.ref] = row
        self._generation = generation
        self._dirty = True
        if not self._writing and self._retry is None:
            self._begin()

    def _begin(self) -> None:
        self._writing = True
        # one turn of the reactor later, so that changes made together go together
        self._clock.callLater(0, lambda: defer.Deferred.fromCoroutine(self._work()))

    async def _work(self) -> None:
        try:
            while self._dirty:
                batch, generation = self._pending, self._generation
                self._pending, self._dirty = {}, False
                try:
                    await self._in_thread(lambda: self._store(list(batch.values()), generation))  # noqa: B023
                except Exception:
                    self.log.failure("Records could not be written to the database; trying again")
                    self._pending, self._dirty = {**batch, **self._pending}, True
                    self._retry = self._clock.callLater(_RETRY_SECONDS, self._again)
                    return
        finally:
            self._writing = False
        waiting, self._waiting = self._waiting, []
        for done in waiting:
            done.callback(None)

    def _again(self) -> None:
        self._retry = None
        if not self._writing:
            self._begin()

    def _store(self, batch: list[Row], generation: int) -> None:
        assert self._engine is not None
        with self._engine.begin() as connection:
            if batch:
                gone = delete(RECORDS).where(RECORDS.c.cls == bindparam("c"), RECORDS.c.ref == bindparam("r"))
                connection.execute(gone, [{"c": row.cls, "r": row.ref} for row in batch])
            kept = [self._encode(row) for row in batch if row.fields is not None]
            if kept:
                connection.execute(insert(RECORDS), kept)
            connection.execute(delete(COUNTERS).where(COUNTERS.c.name == "generation"))
            connection.execute(insert(COUNTERS).values(name="generation", value=generation))

    def flush(self) -> defer.Deferred[None]:
        """Fires when all that was given to `write` so far is in the database."""
        done: defer.Deferred[None] = defer.Deferred(lambda d: self._waiting.remove(d))
        if self._dirty or self._writing:
            self._waiting.append(done)
        else:
            done.callback(None)
        return done

    async def close(self) -> None:
        """Flush, then let go. A database that cannot be written to does not keep the daemon from ending."""
        if not self._pool.started:
            return
        if self._retry is not None:
            self._retry.cancel()
            self._again()
        if self._dirty or self._writing:
            await defer.DeferredList(
                [self.flush().addTimeout(3 * _RETRY_SECONDS, self._clock)],
                consumeErrors=True,
            )
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        if self._engine is not None:
            await self._in_thread(self._engine.dispose)
        await threads.deferToThread(self._pool.stop)
