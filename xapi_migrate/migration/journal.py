"""The journal: what must never be forgotten about a migration, written before it is acted upon.

One file per migration and role, one JSON object per line, appended and fsynced; the folder is fsynced
when a file is made. It is local to the host and never in the pool's database. A last line that was cut by a
crash counts as not written. Records are derived from the journal, not the other way round.

A file is made with room for all that may follow its first line, zeroes until then: a disk that is full at the moment of
decision refuses a new migration, and not the decision about one that is under way. For the same reason it stays open
from its first line to ENDED: no decision needs a descriptor that is not to be had.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Awaitable, Callable
from enum import Enum
from pathlib import Path
from typing import Any

import attrs
from twisted.internet import defer, threads
from zope.interface import Attribute, Interface, implementer

from ..errors import MigrateError, catalogue
from ..whole_file import sync_folder
from .stops import nowhere
from .story import Story

RESERVED = 16 << 10
"""Bytes that are allocated behind the first line."""
LONGEST_REASON = 1000
"""Characters of a reason that are kept: at most 12 bytes each, so that it fits into what is reserved."""


class Mark(Enum):
    """What can be written. Sender: BEGUN, DONE (from here on in doubt), COMMITTED or ABORTED (the receiver's word).
    Receiver: BEGUN (the offer was taken up), PREPARED (records and VDIs are there), OFFERED (for each disk: its URL may
    be told), COMMITTED or ABORTED (its own decision). Both: MEMORY (phase 4 begins: a restart does not go on from
    here), UNDONE (it is being undone: nor from here), ENDED (the VM is its owner's again: what is left is to agree with
    the other side, nothing is done or undone any more)."""

    BEGUN = "begun"
    PREPARED = "prepared"
    OFFERED = "offered"
    MEMORY = "memory"
    UNDONE = "undone"
    DONE = "done"
    COMMITTED = "committed"
    ABORTED = "aborted"
    ENDED = "ended"


@catalogue
class JournalFailed(MigrateError):
    """The journal of migration {migration} could not be written in {folder} ({reason}): see to that disk."""

    migration: str
    folder: str
    reason: str


@attrs.frozen
class Entry:
    mark: Mark
    data: dict[str, Any]


class IJournal(Interface):
    """The journal of one migration on one side."""

    role: str = Attribute("sender or receiver")
    migration: str = Attribute("the migration's id")
    entries: list[Entry] = Attribute("what has been written, oldest first")

    def record(mark: Mark, **data: Any) -> Awaitable[None]:
        """Durable when it fires. JournalFailed, or cancelled: whether it was written is then only known after a
        restart. A cancelled one is written before anything that is recorded later."""

    def remove() -> Awaitable[None]:
        """The migration has ended and nobody will ask again."""


class IJournals(Interface):
    """All journals of one host."""

    def begin(role: str, migration: str) -> IJournal:
        """A new, empty journal; nothing is written yet."""

    def read() -> Awaitable[list[IJournal]]:
        """Those that an earlier daemon left, for recovery."""


def marked(journal: IJournal, mark: Mark) -> bool:
    """Whether this mark has been written."""
    return any(entry.mark is mark for entry in journal.entries)


def data_of(journal: IJournal, mark: Mark) -> dict[str, Any]:
    """What was written with the latest such mark; {} if none was."""
    return next((e.data for e in reversed(journal.entries) if e.mark is mark), {})


async def note_end(journal: IJournal, story: Story) -> None:
    """Write ENDED. Where that fails a restarted daemon ends the migration once more."""
    await _note(journal, story, Mark.ENDED)


async def note_undone(journal: IJournal, story: Story) -> None:
    """Write UNDONE, if a restarted daemon could go on otherwise. Where that fails it may."""
    if marked(journal, Mark.BEGUN) and not any(marked(journal, mark) for mark in (Mark.MEMORY, Mark.UNDONE)):
        await _note(journal, story, Mark.UNDONE)


async def _note(journal: IJournal, story: Story, mark: Mark) -> None:
    try:
        await journal.record(mark)
    except JournalFailed as failure:
        story.note(str(failure))


@implementer(IJournal)
class FileJournal:
    def __init__(
        self,
        path: Path,
        role: str,
        migration: str,
        entries: list[Entry],
        length: int,
        at: Callable[[str, str], None] = nowhere,
        file: _Open | None = None,
    ) -> None:
        self.role = role
        self.migration = migration
        self.entries = entries
        self._at = at
        self._path = path
        self._length = length
        self._file = file
        self._one_at_a_time = defer.DeferredLock()
        self._broken = ""

    async def record(self, mark: Mark, **data: Any) -> None:
        line = json.dumps({"mark": mark.value, "data": data}, separators=(",", ":")).encode() + b"\n"
        await self._uncancelled(self._record(Entry(mark, data), line))

    async def remove(self) -> None:
        await self._uncancelled(self._remove())

    async def _remove(self) -> None:
        file, self._file = self._file, None
        await threads.deferToThread(_remove, self._path, file)

    async def _uncancelled(self, work: Awaitable[None]) -> None:
        """A thread cannot be stopped: whoever waits for it may leave, but the next one has its turn after it."""
        waiting: defer.Deferred[None] = defer.Deferred()

        async def in_turn() -> None:
            await self._one_at_a_time.acquire()
            try:
                await work
            finally:
                self._one_at_a_time.release()

        defer.Deferred.fromCoroutine(in_turn()).addCallbacks(waiting.callback, waiting.errback)
        await waiting

    async def _record(self, entry: Entry, line: bytes) -> None:
        if self._broken:
            raise self._failed()
        self._at(self.role, f"before-{entry.mark.value}")
        try:
            await threads.deferToThread(self._write, line)
        except OSError as failure:
            # Half a line may be on disk: what follows it would be unreadable, so nothing may follow.
            self._broken = failure.strerror or "I/O error"
            raise self._failed() from failure
        self.entries.append(entry)
        if entry.mark is Mark.ENDED:
            self._file = None  # the other side may be away for months, and nothing is decided any more
        self._at(self.role, f"after-{entry.mark.value}")

    def _failed(self) -> JournalFailed:
        return JournalFailed(self.migration, str(self._path.parent), self._broken)

    def _write(self, line: bytes) -> None:
        if not self._length:
            self._file = _create(self._path, line)
        else:
            self._file = self._file or _Open(self._path)
            _append(self._file, self._length, line)
        self._length += len(line)


@implementer(IJournals)
class FileJournals:
    """Journals in one folder, readable by this user only: a sender's holds the capability of its offer."""

    def __init__(self, folder: Path, at: Callable[[str, str], None] = nowhere) -> None:
        self._folder = folder
        self._at = at

    def begin(self, role: str, migration: str) -> IJournal:
        return FileJournal(self._folder / f"{role}-{migration}.jsonl", role, migration, [], 0, self._at)

    async def read(self) -> list[IJournal]:
        return await threads.deferToThread(self._read)

    def _read(self) -> list[IJournal]:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        sync_folder(self._folder.parent)  # it may be new
        found: list[IJournal] = []
        for path in sorted(self._folder.glob("*-*.jsonl")):
            role, _, migration = path.stem.partition("-")
            entries, length = _parse(path.read_bytes())
            if entries:
                # What is readable may not be durable yet: the daemon may have died between write and fsync. It must
                # be before anything is done because of it.
                file = _Open(path)
                _wipe_tail(file, length)
                ended = any(entry.mark is Mark.ENDED for entry in entries)
                found.append(
                    FileJournal(path, role, migration, entries, length, self._at, None if ended else file)
                )  # fmt: skip
            else:
                path.unlink()  # nothing was promised
        sync_folder(self._folder)
        return found


def _parse(text: bytes) -> tuple[list[Entry], int]:
    """The whole lines, and the length in bytes that they take up."""
    entries: list[Entry] = []
    length = 0
    for line in text.splitlines(keepends=True):
        try:
            value = json.loads(line)
            entry = Entry(Mark(value["mark"]), value["data"])
        except (ValueError, KeyError, TypeError):
            break
        if not line.endswith(b"\n"):
            break
        entries.append(entry)
        length += len(line)
    return entries, length


class _Open:
    """A file and its folder, open for as long as somebody holds this: the journal, or the thread that writes for it."""

    def __init__(self, path: Path, flags: int = 0) -> None:
        self.descriptor = self.folder = -1
        self.descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | flags, 0o600)
        self.folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def close(self) -> None:
        """More than once is once."""
        both = self.descriptor, self.folder
        self.descriptor = self.folder = -1
        for one in both:
            if one >= 0:
                os.close(one)

    __del__ = close


def _create(path: Path, line: bytes) -> _Open:
    """The first line, and room for the others. Nothing is left if it cannot be had."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        file = _Open(path, os.O_CREAT)
    except OSError:
        path.unlink(missing_ok=True)
        raise
    try:
        os.posix_fallocate(file.descriptor, 0, len(line) + RESERVED)
        _append(file, 0, line)
        os.fsync(file.folder)
    except OSError:
        path.unlink(missing_ok=True)
        file.close()
        raise
    return file


def _append(file: _Open, length: int, line: bytes) -> None:
    """Durable when it returns."""
    if os.pwrite(file.descriptor, line, length) != len(line):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    os.fsync(file.descriptor)


def _wipe_tail(file: _Open, length: int) -> None:
    """What a crash left half-written goes; the room for what follows stays. A disk that is full now is told when it is
    written to."""
    torn = os.fstat(file.descriptor).st_size - length
    if torn > 0 and os.pread(file.descriptor, torn, length).strip(b"\0"):
        os.pwrite(file.descriptor, bytes(torn), length)
    os.fsync(file.descriptor)


def _remove(path: Path, file: _Open | None) -> None:
    path.unlink(missing_ok=True)
    if file is None:
        sync_folder(path.parent)
    else:
        os.fsync(file.folder)
