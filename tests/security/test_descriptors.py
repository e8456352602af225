"""A daemon without one free descriptor decides all the same."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import pytest_twisted

from xapi_migrate.migration.journal import FileJournals, JournalFailed, Mark


@contextmanager
def no_descriptor_left() -> Iterator[None]:
    """Not one more file can be opened by this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    held = [os.open("/dev/null", os.O_RDONLY)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (held[0] + 32, hard))
    try:
        with pytest.raises(OSError, match=os.strerror(errno.EMFILE)):
            while True:
                held.append(os.open("/dev/null", os.O_RDONLY))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for one in held:
            os.close(one)


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("again", [False, True], ids=["same daemon", "restarted daemon"])
async def test_a_decision_needs_no_new_descriptor(tmp_path: Path, again: bool) -> None:
    journals = FileJournals(tmp_path)
    journal = journals.begin("receiver", "m")
    await journal.record(Mark.BEGUN)
    if again:
        [journal] = await journals.read()
    other = journals.begin("receiver", "m-1")
    await other.record(Mark.BEGUN)
    with no_descriptor_left():
        await journal.record(Mark.PREPARED)
        await journal.record(Mark.COMMITTED)
        with pytest.raises(JournalFailed, match=os.strerror(errno.EMFILE)):
            await journals.begin("receiver", "m-2").record(Mark.BEGUN)
        await other.remove()
    [read] = await journals.read()
    assert [entry.mark for entry in read.entries] == [Mark.BEGUN, Mark.PREPARED, Mark.COMMITTED]


@pytest_twisted.ensureDeferred
async def test_what_has_ended_holds_no_descriptor(tmp_path: Path) -> None:
    """Its other side may be away for months."""
    journals = FileJournals(tmp_path)
    ended, removed = journals.begin("sender", "m-1"), journals.begin("sender", "m-2")
    for journal in (ended, removed):
        await journal.record(Mark.BEGUN)
    await ended.record(Mark.ENDED)
    await removed.remove()
    read = await journals.read()
    assert [one.migration for one in read] == ["m-1"]
    assert not _opened_below(tmp_path)
    await ended.record(Mark.COMMITTED)
    [once_more] = await journals.read()
    assert [entry.mark for entry in once_more.entries] == [Mark.BEGUN, Mark.ENDED, Mark.COMMITTED]


def _opened_below(folder: Path) -> list[Path]:
    found = []
    for number in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # that of the listing itself
            found.append(number.readlink())
    return [path for path in found if path.is_relative_to(folder)]
