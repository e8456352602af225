"""Journals in memory, for simulations: they survive a simulated crash of the daemon, and let a test be there
before and after each write."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from zope.interface import implementer

from ..migration.journal import Entry, IJournal, IJournals, JournalFailed, Mark


class Crash(BaseException):
    """The simulated daemon dies here; no code of the daemon may catch it."""


@implementer(IJournal)
class MemoryJournal:
    def __init__(self, journals: MemoryJournals, role: str, migration: str) -> None:
        self.role = role
        self.migration = migration
        self.entries: list[Entry] = []
        self._journals = journals

    async def record(self, mark: Mark, **data: Any) -> None:
        self._journals.before(self, mark)
        self._journals.all[(self.role, self.migration)] = self
        if self._journals.broken:
            raise JournalFailed(self.migration, "memory", "No space left on device")
        self.entries.append(Entry(mark, json.loads(json.dumps(data))))
        self._journals.after(self, mark)
        if mark in self._journals.broken_after:
            self._journals.broken_after.discard(mark)
            raise JournalFailed(self.migration, "memory", "Input/output error")

    async def remove(self) -> None:
        self._journals.all.pop((self.role, self.migration), None)


@implementer(IJournals)
class MemoryJournals:
    """`before` and `after` are called at each write and may raise Crash; `broken` makes every write fail,
    `broken_after` the next one of such a mark, which is there all the same."""

    def __init__(self) -> None:
        self.all: dict[tuple[str, str], MemoryJournal] = {}
        self.broken = False
        self.broken_after: set[Mark] = set()
        self.before: Callable[[MemoryJournal, Mark], None] = lambda journal, mark: None
        self.after: Callable[[MemoryJournal, Mark], None] = lambda journal, mark: None

    def begin(self, role: str, migration: str) -> IJournal:
        return MemoryJournal(self, role, migration)

    async def read(self) -> list[IJournal]:
        found: list[IJournal] = []
        for journal in list(self.all.values()):
            again = MemoryJournal(self, journal.role, journal.migration)
            again.entries = list(journal.entries)
            self.all[(journal.role, journal.migration)] = again
            found.append(again)
        return found
