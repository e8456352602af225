"""event.from at both: the client has one token and one answer.

A token is the upstream's, a semicolon, and ours. A call waits at the upstream and here; the first with something to say
answers. If that is this side, the upstream's waiting call is kept for the client's next one: cut and made anew at each
of our events, it would leave a thread waiting there every time.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import attrs
from twisted.internet import defer
from twisted.python.failure import Failure

from ..together import started
from ..xenapi import jsonrpc, wire
from ..xenapi.events import Events
from . import merge
from .client import UpstreamClient
from .peek import Peeked, Wire
from .pool import Kind

SEPARATOR = ";"
OURS = "task"
"""The class of which there are objects here that clients see."""
MOST_KEPT = 200
MOST_COUNTS = 2000
_MARGIN = 30.0
"""Seconds beyond its own time-out that the upstream may take."""
LONGEST = 3600.0


@attrs.frozen
class Wish:
    """An event.from as a client asked for it."""

    call: Peeked
    path: bytes
    session: str
    classes: tuple[str, ...]
    token: str
    timeout: float

    @classmethod
    def of(cls, call: Peeked, path: bytes) -> Wish | None:
        """None if it is not of the form that is needed: the upstream says what is wrong with it."""
        if len(call.params) != 4:
            return None
        session, classes, token, timeout = call.params
        if not isinstance(session, str) or not isinstance(token, str) or not isinstance(classes, list):
            return None
        if type(timeout) not in (str, int, float) or not all(isinstance(one, str) for one in classes):
            return None
        try:
            seconds = float(timeout)
        except (ValueError, OverflowError):
            return None
        return cls(call, path, session, tuple(classes), token, min(max(0.0, seconds), LONGEST))

    @property
    def theirs(self) -> str:
        return self.token.partition(SEPARATOR)[0]

    @property
    def ours(self) -> str:
        """Our part of the token; "", and with it everything that is here, for a token of the upstream's alone."""
        return self.token.partition(SEPARATOR)[2]

    @property
    def our_classes(self) -> list[str]:
        """What of the subscription concerns this side."""
        return ours_of(self.classes)

    def for_upstream(self, timeout: float) -> bytes:
        """The call's body."""
        params = [self.session, list(self.classes), self.theirs, timeout]
        if self.call.wire is Wire.XML:
            return wire.call("event.from", params)
        return jsonrpc.dump({"jsonrpc": "2.0", "method": "event.from", "params": params, "id": 0})

    @property
    def key(self) -> tuple[Any, ...]:
        """Calls that are the same to the upstream."""
        return (self.call.wire, self.path, self.session, self.classes, self.theirs)


def ours_of(classes: Sequence[str]) -> list[str]:
    """What of these classes concerns this side."""
    wanted = {name.lower(): name for name in classes}
    if "*" in wanted or OURS in wanted:
        return [OURS]
    return [name for lower, name in wanted.items() if lower.startswith(f"{OURS}/") and len(lower) > len(OURS) + 1]


class Polls:
    """All waiting calls."""

    def __init__(self, client: UpstreamClient, events: Events) -> None:
        self._client = client
        self._events = events
        self._kept: OrderedDict[tuple[Any, ...], defer.Deferred[bytes]] = OrderedDict()
        self._counts: OrderedDict[str, dict[str, int]] = OrderedDict()

    def token(self, theirs: str) -> str:
        """Everything up to now has been seen here too."""
        return f"{theirs}{SEPARATOR}{self._events.token()}"

    async def answer(self, wish: Wish) -> bytes:
        """What the client is answered. MigrateError, merge.Unreadable. The session has been vouched for."""
        mine = wish.our_classes
        ours = wish.ours
        kept = self._take(wish)
        theirs = kept or self._ask(wish, wish.timeout)
        if not mine or not wish.token:
            return await self._after_theirs(wish, theirs, mine, ours)
        own = started(self._events.since(wish.session, mine, ours, wish.timeout))
        await first(theirs, own)
        # one that was kept waits for as long as an earlier call wished, which may be longer
        if theirs.called or not (_has_events(own) or kept is not None):
            drop(own)
            return await self._after_theirs(wish, theirs, mine, ours)
        self._keep(wish, theirs)
        said = await own
        return await self._ours_alone(wish, said)

    async def _after_theirs(self, wish: Wish, theirs: defer.Deferred[bytes], mine: list[str], ours: str) -> bytes:
        body = await theirs
        answer = merge.read(wish.call, body)
        if answer is None:
            self._counts.pop(wish.session, None)
            return merge.refused(wish.call, body)
        return await self._merged(wish, answer, mine, ours)

    async def _merged(self, wish: Wish, answer: merge.Answer, mine: list[str], ours: str) -> bytes:
        if mine:
            said = await self._events.since(wish.session, mine, ours, 0.0)
        else:
            said = {"events": [], "token": ours or self._events.token()}
        self._note(wish.session, answer.counts())
        return self._joined(answer, said)

    async def _ours_alone(self, wish: Wish, said: dict[str, Any]) -> bytes:
        counts = self._counts.get(wish.session)
        token = f"{wish.theirs}{SEPARATOR}{said['token']}"
        if counts is not None:
            own = self._own_counts()
            summed = {name: wire.PlainInt(counts.get(name, 0) + own.get(name, 0)) for name in {**counts, **own}}
            return wish.call.success({"events": said["events"], "valid_ref_counts": summed, "token": token})
        # clients cannot do without these numbers, so the upstream is asked once what there is now
        body = await self._client.send(wish.path, wish.call.content_type, wish.for_upstream(0.0), True)
        answer = merge.read(wish.call, body)
        if answer is None:
            return merge.refused(wish.call, body)
        self._note(wish.session, answer.counts())
        return self._joined(answer, said)

    def _joined(self, answer: merge.Answer, said: dict[str, Any]) -> bytes:
        token = f"{answer.events_token()}{SEPARATOR}{said['token']}"
        return answer.with_events(said["events"], self._own_counts(), token)

    def _own_counts(self) -> dict[str, int]:
        return {OURS: self._events.count(OURS)}

    def _note(self, session: str, counts: dict[str, int]) -> None:
        self._counts[session] = counts
        self._counts.move_to_end(session)
        while len(self._counts) > MOST_COUNTS:
            self._counts.popitem(last=False)

    # -- the upstream's waiting calls ------------------------------------------------------------

    def _ask(self, wish: Wish, timeout: float) -> defer.Deferred[bytes]:
        if self._kept and self._client.crowded(Kind.POLL):
            drop(self._kept.popitem(last=False)[1])  # nobody waits for it now
        body = wish.for_upstream(timeout)
        send = self._client.send
        return started(send(wish.path, wish.call.content_type, body, True, timeout + _MARGIN, Kind.POLL))

    def _take(self, wish: Wish) -> defer.Deferred[bytes] | None:
        kept = self._kept.pop(wish.key, None)
        if kept is not None and kept.called and isinstance(kept.result, Failure):
            drop(kept)  # it failed while nobody waited for it
            return None
        return kept

    def _keep(self, wish: Wish, theirs: defer.Deferred[bytes]) -> None:
        before = self._kept.pop(wish.key, None)
        self._kept[wish.key] = theirs
        if before is not None:
            drop(before)
        while len(self._kept) > MOST_KEPT:
            drop(self._kept.popitem(last=False)[1])

    def forget(self, session: str) -> None:
        """It has ended: what is kept for it goes."""
        self._counts.pop(session, None)
        for key in [key for key in self._kept if key[2] == session]:
            drop(self._kept.pop(key))

    def stop(self) -> None:
        while self._kept:
            drop(self._kept.popitem()[1])


def drop(waiting: defer.Deferred[Any]) -> None:
    waiting.addErrback(lambda _: None)
    waiting.cancel()


def _has_events(own: defer.Deferred[Any]) -> bool:
    """An error is one too: it is to be told."""
    said: Any = own.result if own.called else None
    return own.called and not (isinstance(said, dict) and not said["events"])


async def first(*waiting: defer.Deferred[Any]) -> None:
    """Until one of them has ended, well or not. Where nobody waits for that any more, all of them are dropped."""
    done: defer.Deferred[None] = defer.Deferred()

    def ended(result: Any) -> Any:
        if not done.called:
            done.callback(None)
        return result

    for one in waiting:
        one.addBoth(ended)
    try:
        await done
    except BaseException:
        for one in waiting:
            drop(one)
        raise
