"""What changed since a client last asked: event.from, event.inject, and event.register and event.next of old."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from typing import Any

import attrs
from twisted.internet import defer
from twisted.internet.interfaces import IReactorTime

from xapi_migrate.errors import EventsLost, EventSubscriptionInvalid, EventTokenInvalid, HandleInvalid
from xapi_migrate.store.interfaces import Change
from xapi_migrate.store.records import Records
from xapi_migrate.xenapi.datamodel import DataModel
from xapi_migrate.xenapi.generic import SECRET, visible
from xapi_migrate.xenapi.sessions import Sessions
from xapi_migrate.xenapi.wire import PlainInt

MOST_DELETED = 10_000
"""So many removed objects are remembered; a client that is further behind has lost events."""
LONGEST_WAIT = 3600.0
TAG_BITS = 20
TAG_MASK = (1 << TAG_BITS) - 1
BATCH_SECONDS = 0.05
"""After the first change the others that belong to it are waited for so long."""


@attrs.frozen
class _Seen:
    """The latest state of an object that clients have not all seen: when it came, when it last changed."""

    cls: str
    ref: str
    created: int
    changed: int


class Subscription:
    """The classes, and objects ("task/OpaqueRef:..."), that one event.from asks for."""

    def __init__(self, names: Iterable[str], model: DataModel) -> None:
        self._all = False
        self._classes: set[str] = set()
        self._objects: set[tuple[str, str]] = set()
        lower = {name.lower(): name for name in model.classes}
        for name in names:
            cls, slash, ref = name.partition("/")
            if name == "*":
                self._all = True
            elif slash and cls.lower() in lower and ref:
                self._objects.add((lower[cls.lower()], ref))
            elif slash or not name:
                raise EventSubscriptionInvalid(name)
            else:
                # a class of another version of the model: nothing happens to it here
                self._classes.add(lower.get(cls.lower(), cls))

    def wants(self, cls: str, ref: str) -> bool:
        return self._all or cls in self._classes or (cls, ref) in self._objects


class Events:
    """Follows the records; knows of each object when it last changed, and of the removed ones that they were there."""

    def __init__(self, model: DataModel, records: Records, sessions: Sessions, clock: IReactorTime) -> None:
        self._model = model
        self._records = records
        self._sessions = sessions
        self._clock = clock
        self._first = records.generation
        self._present: OrderedDict[tuple[str, str], _Seen] = OrderedDict()
        self._gone: OrderedDict[tuple[str, str], _Seen] = OrderedDict()
        self._waiting: set[defer.Deferred[None]] = set()
        for cls in model.classes:
            for ref in [] if cls in SECRET else records.refs(cls):
                self._present[cls, ref] = _Seen(cls, ref, self._first, self._first)
        self._end = records.subscribe(self._note)

    def stop(self) -> None:
        """Let all waiting calls go."""
        self._end()
        self._wake()

    @property
    def current(self) -> int:
        """The number of the latest change."""
        return self._records.generation

    @property
    def waiting(self) -> int:
        """How many calls wait for something to happen."""
        return len(self._waiting)

    def count(self, cls: str) -> int:
        """How many objects of a class there are."""
        return len(self._records.refs(cls))

    def token(self) -> str:
        """The first number counts this daemon's changes. In a pool the second says what is known here of what all have
        committed, so that every member can go on from there; and whose counting the first one is."""
        records = self._records
        of_pool = records.pool_generation << TAG_BITS | records.tag if records.shared else 0
        return f"{records.generation:020d},{of_pool:020d}"

    def _note(self, change: Change) -> None:
        key = (change.cls, change.ref)
        if change.cls in SECRET:
            if change.operation == "del":
                self._wake()  # an ended session's calls wait no longer
            return
        known = self._present.pop(key, None)
        created = known.created if known else change.generation
        seen = _Seen(change.cls, change.ref, created, change.generation)
        if change.operation == "del":
            self._gone[key] = seen
            while len(self._gone) > MOST_DELETED:
                _, oldest = self._gone.popitem(last=False)
                self._first = max(self._first, oldest.changed)
        else:
            self._gone.pop(key, None)
            self._present[key] = seen
        self._wake()

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, set()
        for one in waiting:
            one.callback(None)

    async def since(self, session: str, names: list[str], token: str, timeout: float) -> dict[str, Any]:
        """event.from: what changed after `token` ("": everything), waiting up to `timeout` seconds for something."""
        changes = await self._wait(session, Subscription(names, self._model), self._parse(token), timeout)
        return {
            "events": [self._event(operation, seen) for operation, seen in changes],
            "valid_ref_counts": {
                cls.lower(): PlainInt(len(self._records.refs(cls))) for cls in self._model.classes if cls not in SECRET
            },
            "token": self.token(),
        }

    async def next(self, session: str, names: list[str], after: int) -> list[dict[str, Any]]:
        """event.next: what changed after the change of this number, as soon as something has, with the uuid beside each
        ref. EventsLost."""
        self._check_known(after)
        subscription = Subscription(names, self._model)
        while True:
            changes = await self._wait(session, subscription, after, LONGEST_WAIT)
            if changes:
                events = [self._event(operation, seen) for operation, seen in changes]
                return [{**event, "obj_uuid": str(event.get("snapshot", {}).get("uuid", ""))} for event in events]

    async def _wait(
        self, session: str, subscription: Subscription, after: int, timeout: float
    ) -> list[tuple[str, _Seen]]:
        until = self._clock.seconds() + min(max(0.0, timeout), LONGEST_WAIT)
        waited = False
        while True:
            self._sessions.check(session)
            changes = list(self._changes(subscription, after))
            left = until - self._clock.seconds()
            if changes or left <= 0:
                break
            waited = await self._changed(left)
        if waited and left > 0:
            await self._pause(min(BATCH_SECONDS, left))
            changes = list(self._changes(subscription, after))
        return changes

    def _changes(self, subscription: Subscription, after: int) -> Iterator[tuple[str, _Seen]]:
        found: list[tuple[str, _Seen]] = []
        for known in (self._gone, self._present):
            for seen in reversed(known.values()):
                if seen.changed <= after:
                    break
                if subscription.wants(seen.cls, seen.ref):
                    if known is self._present:
                        found.append(("add" if seen.created > after else "mod", seen))
                    elif seen.created <= after:
                        found.append(("del", seen))
        yield from sorted(found, key=lambda item: item[1].changed)

    def _event(self, operation: str, seen: _Seen) -> dict[str, Any]:
        event: dict[str, Any] = {
            "id": str(seen.changed), "timestamp": "0.0", "class": seen.cls.lower(), "operation": operation,
            "ref": seen.ref,
        }  # fmt: skip
        if operation != "del":
            event["snapshot"] = visible(self._records.get(seen.cls, seen.ref))
        return event

    def _parse(self, token: str) -> int:
        if token == "":
            return -1
        number, _, of_pool = token.partition(",")
        if not number.isdecimal() or len(number) > 30 or len(of_pool) > 30:
            raise EventTokenInvalid(token[:100])
        after = int(number)
        if self._records.shared and of_pool.isdecimal() and int(of_pool) & TAG_MASK != self._records.tag:
            of_all = self._records.local_number(int(of_pool) >> TAG_BITS)
            if of_all is None:
                raise EventsLost()
            after = of_all
        self._check_known(after)
        return after

    def _check_known(self, after: int) -> None:
        if after < self._first or after > self._records.generation:
            raise EventsLost()

    async def _changed(self, seconds: float) -> bool:
        """Until something changes, or for so long."""
        one: defer.Deferred[None] = defer.Deferred(self._waiting.discard)
        self._waiting.add(one)
        late = self._clock.callLater(seconds, one.cancel)
        try:
            await one
        except defer.CancelledError:
            if late.active():
                raise
            return False
        finally:
            self._waiting.discard(one)
            if late.active():
                late.cancel()
        return True

    async def _pause(self, seconds: float) -> None:
        done: defer.Deferred[None] = defer.Deferred(lambda _: late.cancel())
        late = self._clock.callLater(seconds, done.callback, None)
        await done

    def inject(self, cls: str, ref: str) -> str:
        """event.inject: as if the object had changed. Whoever has that token has seen it."""
        known = {name.lower(): name for name in self._model.classes}.get(cls.lower(), "")
        if not known or known in SECRET:
            raise HandleInvalid(cls, ref)
        self._records.update(known, ref, _injected=self._records.generation)
        return self.token()
