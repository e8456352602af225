"""The journal: durable, readable after any cut, silent about nothing."""

from __future__ import annotations

import errno
import os
import stat
import threading
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from twisted.internet import defer

from tests.small_disk import fill
from xapi_migrate.migration.journal import LONGEST_REASON, FileJournals, JournalFailed, Mark, data_of, marked
from xapi_migrate.migration.metadata_import import MOST_DISKS


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("again", [False, True], ids=["same daemon", "restarted daemon"])
async def test_a_disk_that_is_full_at_the_moment_of_decision_takes_the_decision(small_disk: Path, again: bool) -> None:
    journals = FileJournals(small_disk / "journal")
    journal = journals.begin("receiver", "m")
    await journal.record(Mark.BEGUN, plan="x" * 5000)
    fill(small_disk)
    if again:
        [journal] = await journals.read()
    marks = [Mark.PREPARED, *[Mark.OFFERED] * MOST_DISKS, *list(Mark)[3:]]
    for mark in marks:
        data = {Mark.ABORTED: {"reason": "\N{GRINNING FACE}" * LONGEST_REASON}, Mark.OFFERED: {"disk": 63}}
        await journal.record(mark, **data.get(mark, {}))
    [read] = await journals.read()
    assert [entry.mark for entry in read.entries] == [Mark.BEGUN, *marks]


@pytest_twisted.ensureDeferred
async def test_a_full_disk_refuses_a_new_migration_and_keeps_nothing_of_it(small_disk: Path) -> None:
    journals = FileJournals(small_disk / "journal")
    await journals.begin("sender", "m-1").record(Mark.BEGUN)
    fill(small_disk)
    with pytest.raises(JournalFailed, match=os.strerror(errno.ENOSPC)):
        await journals.begin("sender", "m-2").record(Mark.BEGUN)
    assert [path.name for path in (small_disk / "journal").iterdir()] == ["sender-m-1.jsonl"]


@pytest_twisted.ensureDeferred
async def test_what_was_recorded_is_read_back(tmp_path: Path) -> None:
    journals = FileJournals(tmp_path / "journal")
    journal = journals.begin("sender", "m-1")
    await journal.record(Mark.BEGUN, vm="OpaqueRef:1", uris=["http://a/"])
    await journal.record(Mark.DONE)
    [again] = await journals.read()
    assert (again.role, again.migration) == ("sender", "m-1")
    assert [entry.mark for entry in again.entries] == [Mark.BEGUN, Mark.DONE]
    assert data_of(again, Mark.BEGUN) == {"vm": "OpaqueRef:1", "uris": ["http://a/"]}
    assert not marked(again, Mark.COMMITTED)
    await again.record(Mark.ABORTED, reason="x")
    [last] = await journals.read()
    assert marked(last, Mark.ABORTED)
    await last.remove()
    assert await journals.read() == []


@pytest_twisted.ensureDeferred
async def test_only_this_user_can_read_it(tmp_path: Path) -> None:
    journals = FileJournals(tmp_path / "journal")
    await journals.begin("sender", "m-1").record(Mark.BEGUN)
    [path] = (tmp_path / "journal").iterdir()
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(cut=st.integers(0, 200), garbage=st.binary(max_size=20))
def test_any_cut_leaves_a_prefix_that_can_be_continued(tmp_path: Path, cut: int, garbage: bytes) -> None:
    folder = tmp_path / "journal"
    folder.mkdir(exist_ok=True)
    lines = [b'{"mark":"begun","data":{"n":1}}\n', b'{"mark":"done","data":{}}\n', b'{"mark":"committed","data":{}}\n']
    path = folder / "receiver-m.jsonl"
    path.write_bytes(b"".join(lines)[:cut] + garbage.replace(b"\n", b""))
    read = FileJournals(folder)._read()
    whole = 0
    while whole < 3 and cut >= sum(map(len, lines[: whole + 1])):
        whole += 1
    if whole == 0:
        assert read == []
        return
    [journal] = read
    assert [entry.mark for entry in journal.entries] == [Mark.BEGUN, Mark.DONE, Mark.COMMITTED][:whole]


@pytest_twisted.ensureDeferred
async def test_a_torn_line_is_overwritten_by_the_next_record(tmp_path: Path) -> None:
    journals = FileJournals(tmp_path / "journal")
    await journals.begin("receiver", "m").record(Mark.BEGUN, plan=1)
    path = tmp_path / "journal" / "receiver-m.jsonl"
    with path.open("r+b") as file:
        file.seek(len(path.read_bytes().rstrip(b"\0")))
        file.write(b'{"mark":"committed","da' + b" " * 100 + b'\n{"mark":"committed","data":{}}\n')
    [journal] = await journals.read()
    assert not marked(journal, Mark.COMMITTED)
    await journal.record(Mark.ABORTED, reason="restart")
    [again] = await journals.read()
    assert [entry.mark for entry in again.entries] == [Mark.BEGUN, Mark.ABORTED]


@pytest_twisted.ensureDeferred
async def test_a_failed_write_is_told_and_nothing_follows_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journals = FileJournals(tmp_path / "journal")
    journal = journals.begin("receiver", "m")
    await journal.record(Mark.BEGUN)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(JournalFailed, match="No space left"):
        await journal.record(Mark.COMMITTED)
    monkeypatch.undo()
    with pytest.raises(JournalFailed):
        await journal.record(Mark.ABORTED)
    assert not marked(journal, Mark.ABORTED)


@pytest_twisted.ensureDeferred
async def test_a_record_is_synced_before_it_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    opened: list[str] = []
    fsync, open_ = os.fsync, os.open
    monkeypatch.setattr(
        os, "fsync", lambda fd: (synced.append(str(Path(f"/proc/self/fd/{fd}").readlink())), fsync(fd))[1]
    )
    monkeypatch.setattr(os, "open", lambda path, *how: (opened.append(str(path)), open_(path, *how))[1])
    folder = tmp_path / "journal"
    journals, file = FileJournals(folder), f"{folder}/receiver-m.jsonl"
    assert await journals.read() == []
    assert synced == [str(tmp_path), str(folder)]  # the folder may be new
    synced.clear(), opened.clear()
    journal = journals.begin("receiver", "m")
    await journal.record(Mark.BEGUN)
    assert synced == [file, str(folder)]  # the file, and the folder that it is new in
    await journal.record(Mark.COMMITTED)
    assert synced[2:] == [file]
    assert opened == [file, str(folder)]  # no decision needs a descriptor that may not be to be had


@pytest_twisted.ensureDeferred
async def test_a_cancelled_write_is_whole_and_comes_before_what_is_recorded_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from xapi_migrate.migration import journal as module

    append, let_on = module._append, threading.Event()

    def slow(*args: Any) -> None:
        let_on.wait(5)
        append(*args)

    journals = FileJournals(tmp_path / "journal")
    journal = journals.begin("sender", "m")
    await journal.record(Mark.BEGUN)
    monkeypatch.setattr(module, "_append", slow)
    cancelled = defer.ensureDeferred(journal.record(Mark.DONE))
    cancelled.cancel()
    with pytest.raises(defer.CancelledError):
        await cancelled
    later = defer.ensureDeferred(journal.record(Mark.ABORTED))
    let_on.set()
    await later
    [again] = await journals.read()
    assert [entry.mark for entry in again.entries] == [Mark.BEGUN, Mark.DONE, Mark.ABORTED]


@pytest_twisted.ensureDeferred
async def test_a_journal_that_is_removed_while_it_is_written_stays_away(tmp_path: Path) -> None:
    journals = FileJournals(tmp_path / "journal")
    journal = journals.begin("sender", "m")
    cancelled = defer.ensureDeferred(journal.record(Mark.BEGUN))
    cancelled.cancel()
    cancelled.addErrback(lambda _: None)
    await journal.remove()
    assert await journals.read() == []


@pytest_twisted.ensureDeferred
async def test_a_beginning_that_could_not_be_made_durable_is_not_taken_up_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file was written, its folder could not be synced: the call has failed, so the VM is free to be started, and a
    restarted daemon must not go on moving it."""

    real = os.fsync

    def broken(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EIO, "I/O error")
        real(descriptor)

    journals = FileJournals(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", broken)
        with pytest.raises(JournalFailed):
            await journals.begin("sender", "m-1").record(Mark.BEGUN)
    assert await journals.read() == []
