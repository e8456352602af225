"""Bad log-ins slow their own source down, and many from everywhere all sources that nobody has logged in from."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import attrs
from twisted.internet import defer, task
from twisted.internet.interfaces import IReactorTime

from xapi_migrate.entrance import source_of

FIRST_SECONDS = 0.25
LONGEST_SECONDS = 5.0
FORGET_SECONDS = 600.0
MOST_SOURCES = 10_000
MOST_WAITING = 50
FREE_AT_ONCE = 4
"""Log-ins of one source that are checked side by side."""
STRANGERS_AT_ONCE = 150
"""Bad log-ins of sources that nobody has logged in from, of all together, that are checked without a limit."""
STRANGERS_SECONDS = 1.0
"""Then one in so many seconds."""


@attrs.define
class _Source:
    failures: int = 0
    under_way: int = 0
    waiting: int = 0
    strange: int = 0
    """Those under way that count as a stranger's."""
    next: float = 0.0
    last: float = 0.0


class LoginBrake:
    """Each bad log-in doubles the pause before the source's next is looked at. `wait` before a check, then `ended`. A
    source is an address, or all of an IPv6 network of one host. Who guesses from many sources keeps out those that
    nobody has logged in from (`welcome`), and no others."""

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._sources: OrderedDict[str, _Source] = OrderedDict()
        self._welcome: OrderedDict[str, None] = OrderedDict()
        self._guessed = 0.0
        """When strangers would have guessed as often as they have, at one guess in STRANGERS_SECONDS."""

    def welcome(self, source: str) -> None:
        """Somebody has logged in from there."""
        source = source_of(source)
        self._welcome[source] = None
        self._welcome.move_to_end(source)
        while len(self._welcome) > MOST_SOURCES:
            self._welcome.popitem(last=False)

    def wait(self, source: str) -> defer.Deferred[None] | None:
        """Fires when this log-in may be checked; None: there are too many of its kind already."""
        known = self._source(source)
        pause = min(LONGEST_SECONDS, FIRST_SECONDS * 2 ** min(known.failures, 10)) if self._slow(known) else 0.0
        now = self._clock.seconds()
        if known.waiting >= MOST_WAITING or not self._has_room(source, now):
            return None
        known.under_way += 1
        if source_of(source) not in self._welcome:
            known.strange += 1
            self._guessed = max(self._guessed, now) + STRANGERS_SECONDS
        start = max(now, known.next) if pause else now
        if not pause:
            return defer.succeed(None)
        known.next = start + pause
        known.waiting += 1

        def begin(result: Any) -> Any:
            known.waiting -= 1
            return result

        return task.deferLater(self._clock, start - now).addBoth(begin)

    def ended(self, source: str, good: bool | None) -> None:
        """The check is over; None: there was none."""
        known = self._source(source)
        known.under_way = max(0, known.under_way - 1)  # it may have been forgotten meanwhile, for want of room
        if known.strange:
            known.strange -= 1
            if good is not False:
                self._guessed -= STRANGERS_SECONDS
        if good is None:
            return
        known.last = self._clock.seconds()
        if good:
            known.failures = 0
            self.welcome(source)
        else:
            if not known.failures:
                known.next = known.last + FIRST_SECONDS
            known.failures += 1

    def _has_room(self, source: str, now: float) -> bool:
        return source_of(source) in self._welcome or self._guessed - now <= (STRANGERS_AT_ONCE - 1) * STRANGERS_SECONDS

    def _slow(self, known: _Source) -> bool:
        return known.failures > 0 or known.under_way >= FREE_AT_ONCE

    def _source(self, source: str) -> _Source:
        now, source = self._clock.seconds(), source_of(source)
        known = self._sources.setdefault(source, _Source(last=now))
        if known.failures and now - known.last > FORGET_SECONDS and not known.under_way:
            known.failures = 0
        self._sources.move_to_end(source)
        while len(self._sources) > MOST_SOURCES:
            self._sources.popitem(last=False)
        return known
