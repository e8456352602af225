"""Negative controls: each guard of the rule is taken out, and the enumeration must find a case that goes wrong, and in
the way that this guard is there to prevent.

A guard whose loss nobody notices is either not needed or not tested. A case that breaks down, or a daemon in which
something unforeseen happens, has found nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
from twisted.logger import LogEvent, globalLogPublisher
from twisted.python.failure import Failure

from tests.migration import test_crashes as enumeration
from tests.migration import test_going_on as going_on
from tests.migration import test_partings as partings
from tests.migration.findings import Finding, Found
from xapi_migrate.errors import MigrateError, MigrationAborted
from xapi_migrate.migration import phase5_completion, phase5_receiving
from xapi_migrate.migration.heartbeat import Listening
from xapi_migrate.migration.interfaces import Answer, Outcome
from xapi_migrate.migration.journal import IJournal, Mark
from xapi_migrate.migration.receiver_work import ReceiverWork
from xapi_migrate.migration.receiving import Receiving
from xapi_migrate.migration.sending import Sending
from xapi_migrate.testing.direct_peer import Fate
from xapi_migrate.testing.memory_journals import Crash, MemoryJournals

Patch = pytest.MonkeyPatch


def cases() -> Iterator[tuple[str, Callable[[], None]]]:
    """Everything that the enumeration tries, what is told of the decision first."""
    yield "nothing is disturbed", enumeration.test_a_quiet_migration
    for side in ("source", "destination"):
        for fate in (Fate.ANSWER_LOST, Fate.REQUEST_LOST):
            yield (
                f"done: {fate.value}, {side} crashes",
                partial(enumeration.test_done_is_lost_and_then_a_daemon_crashes, side, fate),
            )
    for number in reversed(range(len(enumeration.QUIET))):
        for fate in enumeration.FATES:
            name = f"{number} {enumeration.QUIET[number]}: {fate.value}"
            yield name, partial(enumeration.test_the_fate_of_each_message, number, fate)
    for fate in enumeration.FATES:
        yield f"GET control: {fate.value}", partial(enumeration.test_the_fate_of_a_question, "GET control", fate)
    for side, mark in enumeration.ALL_WRITES:
        for when in ("before", "after"):
            yield (
                f"{side} crashes {when} {mark.value}",
                partial(enumeration.test_a_crash_at_a_journal_write, side, mark, when, "the writer"),
            )
    for message in enumeration.MESSAGES:
        for side in ("source", "destination"):
            for delay in (0.0, 0.0005, 0.0015, 0.0025):
                yield (
                    f"{side} crashes {delay} s after {message}",
                    partial(enumeration.test_a_crash_around_a_message, side, message, delay),
                )
    for fate in Fate:
        yield f"cancelled in doubt, DELETE: {fate.value}", partial(partings.test_cancelled_in_doubt, fate)
    for message in partings.BEFORE_DONE:
        yield f"the sender vanishes at {message}", partial(partings.test_a_sender_that_never_comes_back, message)
    yield "a shared disk cannot be shut", going_on.test_a_receiver_says_aborted_only_when_a_disk_that_both_see_is_shut
    for seed in range(24):
        yield f"two blows, seed {seed}", partial(enumeration.test_two_blows_at_any_moment_on_a_bad_wire, seed)


def not_durable(mark: Mark, role: str) -> Callable[[Patch], None]:
    """Of such marks a restarted daemon finds nothing."""

    def remove(patch: Patch) -> None:
        real = MemoryJournals.read

        async def read(self: MemoryJournals) -> list[IJournal]:
            for journal in self.all.values():
                if journal.role == role:
                    journal.entries = [entry for entry in journal.entries if entry.mark is not mark]
            return await real(self)

        patch.setattr(MemoryJournals, "read", read)

    return remove


def silence_is_a_no(patch: Patch) -> None:
    real = phase5_completion.say_done

    async def say_done(migration: Any) -> Answer:
        answer = await real(migration)
        return Answer(Outcome.ABORTED, "silence") if answer.outcome is Outcome.OPEN else answer

    patch.setattr(phase5_completion, "say_done", say_done)


def a_restarted_sender_does_not_ask(patch: Patch) -> None:
    def recover(self: Sending) -> None:
        self._machine.recover_undone(MigrationAborted("restarted"))

    patch.setattr(Sending, "recover", recover)


def it_runs_before_commit(patch: Patch) -> None:
    real = phase5_receiving.activate

    async def activate(migration: Any) -> None:
        await real(migration)
        await migration.host.domains.unpause(migration.plan.domain)

    patch.setattr(phase5_receiving, "activate", activate)


def a_delete_without_a_name_acknowledges(patch: Patch) -> None:
    real = Receiving.delete

    async def delete(self: Receiving, reason: str, acknowledge: Outcome | None = None) -> Answer:
        answer = await real(self, reason, acknowledge)
        self._decision.acknowledged = True
        self._machine.acknowledged()
        return answer

    patch.setattr(Receiving, "delete", delete)


def aborted_is_said_before_it_is_written(patch: Patch) -> None:
    real = ReceiverWork.shut

    def shut(self: ReceiverWork, reason: Exception) -> None:
        self.decision.is_durable(Answer(Outcome.ABORTED, str(reason)))
        self.decision.tell()
        real(self, reason)

    patch.setattr(ReceiverWork, "shut", shut)


def what_cannot_be_shut_stays_open(patch: Patch) -> None:
    real = phase5_receiving.shut

    async def shut(migration: Any) -> bool:
        await real(migration)
        return True

    patch.setattr(phase5_receiving, "shut", shut)


def a_receiver_waits_for_ever(patch: Patch) -> None:
    patch.setattr(Listening, "__init__", lambda self, *arguments: setattr(self, "touch", lambda: None))
    for name in ("start", "stop", "touch"):
        patch.setattr(Listening, name, lambda self: None, raising=False)


GUARDS: dict[str, tuple[Finding, Callable[[Patch], None]]] = {
    "DONE is durable before it is said": (Finding.TWO, not_durable(Mark.DONE, "sender")),
    "COMMIT is durable before the domain runs": (Finding.BACK, not_durable(Mark.COMMITTED, "receiver")),
    "what the receiver said is durable before it may forget": (Finding.LEFT, not_durable(Mark.COMMITTED, "sender")),
    "no answer decides nothing": (Finding.TWO, silence_is_a_no),
    "a restarted sender asks before it resumes": (Finding.TWO, a_restarted_sender_does_not_ask),
    "the domain is paused until COMMIT": (Finding.BACK, it_runs_before_commit),
    "DELETE acknowledges only what it names": (Finding.NONE, a_delete_without_a_name_acknowledges),
    "ABORT is durable before it is said": (Finding.LEFT, aborted_is_said_before_it_is_written),
    "ABORT is written only when all is shut": (Finding.NONE, what_cannot_be_shut_stays_open),
    "a receiver that hears nothing gives up": (Finding.LEFT, a_receiver_waits_for_ever),
}
"""By what the guard is: what must be found without it, and how it is taken out."""


@contextmanager
def nothing_unforeseen() -> Iterator[None]:
    """AssertionError if a daemon logs a failure inside that is not one of the project's own errors."""
    failures: list[Failure] = []

    def look(event: LogEvent) -> None:
        failure = event.get("log_failure")
        if failure is not None and not failure.check(MigrateError, Crash):
            failures.append(failure)

    globalLogPublisher.addObserver(look)
    try:
        yield
    finally:
        globalLogPublisher.removeObserver(look)
        assert not failures, f"the daemon itself breaks down: {failures[0].getTraceback()}"


@pytest.mark.parametrize("guard", GUARDS)
def test_without_this_guard_something_goes_wrong(guard: str, monkeypatch: Patch) -> None:
    expected, remove = GUARDS[guard]
    remove(monkeypatch)
    for tried, (name, case) in enumerate(cases(), 1):
        try:
            with nothing_unforeseen():
                case()
        except Found as found:
            print(f"without {guard!r}: {name}: {found} (case {tried})")
            assert found.finding is expected, f"without {guard!r}, {name}: {found}"
            return
    pytest.fail(f"{tried} cases went well without {guard!r}")
