"""Where records are kept between runs: one thread, written in order behind the reactor's back; and what other daemons
on the same database have written, read in the same order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from twisted.internet import defer, threads
from twisted.internet.interfaces import IDelayedCall, IReactorThreads, IReactorTime
from twisted.logger import Logger
from twisted.python.threadpool import ThreadPool

from xapi_migrate.store.commits import Commits, News, Row
from xapi_migrate.xenapi.datamodel import DataModel
from xapi_migrate.xenapi.types import Type

_T = TypeVar("_T")
_RETRY_SECONDS = 2.0


class Database:
    """Loads all rows once, then takes changes. Everything that was pending when a write began becomes durable in one
    transaction. Reads and writes come one after the other, so that between two of them it is known what of the
    database this daemon has seen: all up to `generation`.

    `learn` is given what others have committed. `committed(generation, local)` is called when all changes up to the
    number `local` are in the database or in what was learnt, as of that generation.
    """

    log = Logger()

    def __init__(self, url: str, model: DataModel, derived: frozenset[tuple[str, str]], reactor: Any) -> None:
        self._url = url
        self._reactor: IReactorThreads = reactor
        self._clock: IReactorTime = reactor
        self._stored: dict[str, dict[str, Type]] = {
            name: {f.name: f.type for f in cls.fields.values() if (name, f.name) not in derived}
            for name, cls in model.classes.items()
        }
        self.generation = 0
        self.seed = 0
        self.secret = ""
        self.learn: Callable[[News], None] = lambda news: None
        self.committed: Callable[[int, int], None] = lambda generation, local: None
        self.after_write: Callable[[], None] = lambda: None
        self._pool = ThreadPool(0, 1, "records")
        self._commits: Commits | None = None
        self.pending: dict[tuple[str, str], Row] = {}
        self._local = 0
        self._dirty = False
        self._behind = False
        self._working = False
        self._waiting: list[defer.Deferred[None]] = []
        self._asking: list[defer.Deferred[bool]] = []
        self._retry: IDelayedCall | None = None

    def _in_thread(self, function: Callable[[], _T]) -> defer.Deferred[_T]:
        return threads.deferToThreadPool(self._reactor, self._pool, function)

    async def open(self) -> list[Row]:
        """All rows in order of creation."""
        self._pool.start()
        news, self.seed = await self._in_thread(self._load)
        self.generation = self._local = news.generation
        return news.rows

    def _load(self) -> tuple[News, int]:
        self._commits = Commits(self._url, self._stored)
        news = self._commits.load()
        self.secret = self._commits.secret
        return news

    def number(self, local: int) -> None:
        """The number of the latest change, of whatever kind."""
        self._local = local

    def write(self, row: Row, local: int) -> None:
        """Keep this state of a record; soon, in order."""
        self.pending[row.cls, row.ref] = row.after(self.pending.get((row.cls, row.ref)))
        self._local = local
        self._dirty = True
        self._begin()

    def _begin(self) -> None:
        if self._working or self._retry is not None or not self._pool.started:
            return
        self._working = True
        # one turn of the reactor later, so that changes made together go together
        self._clock.callLater(0, lambda: defer.Deferred.fromCoroutine(self._work()))

    async def _work(self) -> None:
        try:
            while self._dirty or self._behind:
                if self._dirty:
                    await self._write_all()
                else:
                    await self._follow()
        except Exception:
            self.log.failure("The database does not answer; trying again")
            self._retry = self._clock.callLater(_RETRY_SECONDS, self._again)
            self._answer(False)
            return
        finally:
            self._working = False
        waiting, self._waiting = self._waiting, []
        for done in waiting:
            done.callback(None)
        self._answer(True)

    async def _write_all(self) -> None:
        assert self._commits is not None
        store = self._commits.store
        batch, local = self.pending, self._local
        self.pending, self._dirty = {}, False
        try:
            before, own = await self._in_thread(lambda: store(list(batch.values()), local))
        except BaseException:
            newer = self.pending
            self.pending, self._dirty = dict(batch), True
            for name, row in newer.items():
                self.pending[name] = row.after(batch.get(name))
            raise
        if before == self.generation:
            self.generation = own
            self.committed(own, local)
        else:
            self._behind = True
        self.after_write()

    async def _follow(self) -> None:
        assert self._commits is not None
        self._behind = False
        asking, self._asking = self._asking, []
        since = self._commits.since
        try:
            news = await self._in_thread(lambda: since(self.generation))
        except BaseException:
            self._behind = True
            self._asking = asking + self._asking
            raise
        if news is not None:
            self.learn(news)
            self.generation = news.generation
            if not self._dirty:
                self.committed(news.generation, self._local)
        for one in asking:
            one.callback(True)

    def _answer(self, followed: bool) -> None:
        asking, self._asking = self._asking, []
        for one in asking:
            one.callback(followed)

    def _again(self) -> None:
        self._retry = None
        self._begin()

    def follow(self) -> defer.Deferred[bool]:
        """Fires when all that others had committed before is known here; False if the database does not answer."""
        asked: defer.Deferred[bool] = defer.Deferred(self._asking.remove)
        if self._retry is not None or not self._pool.started:
            return defer.succeed(False)
        self._asking.append(asked)
        self._behind = True
        self._begin()
        return asked

    def take(self, cls: str, ref: str, field: str, free: tuple[Any, ...], value: Any) -> defer.Deferred[bool]:
        """As `Commits.take`; what it wrote is still to be followed."""
        assert self._commits is not None
        take = self._commits.take
        return self._in_thread(lambda: take(cls, ref, field, free, value))

    def flush(self) -> defer.Deferred[None]:
        """Fires when all that was given to `write` so far is in the database."""
        done: defer.Deferred[None] = defer.Deferred(lambda d: self._waiting.remove(d))
        if self._dirty or self._working:
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
        if self._dirty or self._working:
            await defer.DeferredList(
                [self.flush().addTimeout(3 * _RETRY_SECONDS, self._clock)],
                consumeErrors=True,
            )
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        if self._commits is not None:
            await self._in_thread(self._commits.dispose)
        await threads.deferToThread(self._pool.stop)
