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
from twisted.internet.task import Clock
from twisted.logger import LogEvent, globalLogPublisher
from twisted.python.failure import Failure

from tests.migration import test_crashes as enumeration
from tests.migration import test_going_on as going_on
from tests.migration import test_links as links
from tests.migration import test_partings as partings
from tests.migration import test_restarts as restarts
from tests.migration import test_settle as settling
from tests.migration import test_two_hosts as two_hosts
from tests.migration.findings import Finding, Found
from xapi_migrate.errors import MigrateError, MigrationAborted
from xapi_migrate.migration import (
    phase2_receiving,
    phase3_bulk_copy,
    phase4_memory,
    phase5_completion,
    phase5_receiving,
)
from xapi_migrate.migration.heartbeat import Listening, Pulse
from xapi_migrate.migration.interfaces import Answer, Outcome
from xapi_migrate.migration.journal import IJournal, Mark
from xapi_migrate.migration.receiver_work import ReceiverWork
from xapi_migrate.migration.receiving import Receiving
from xapi_migrate.migration.sending import Sending
from xapi_migrate.testing.direct_peer import DirectPeer, Fate
from xapi_migrate.testing.memory_journals import Crash, MemoryJournals
from xapi_migrate.testing.two_hosts import TwoHosts

Patch = pytest.MonkeyPatch


def cases() -> Iterator[tuple[str, Callable[[], None]]]:
    """Everything that the enumeration tries, what is quick to find something first."""
    yield "nothing is disturbed", enumeration.test_a_quiet_migration
    for side in ("source", "destination"):
        for fate in (Fate.ANSWER_LOST, Fate.REQUEST_LOST):
            yield (
                f"done: {fate.value}, {side} crashes",
                partial(enumeration.test_done_is_lost_and_then_a_daemon_crashes, side, fate),
            )
    for step in links.STEPS:
        yield f"{step}: storage is away", partial(links.test_the_storage_network_is_away, step)
    for storage in (False, True):
        yield f"the first URI is cut ({storage=})", partial(links.test_the_first_uri_is_cut, storage)
    yield "a long copy", links.test_a_copy_takes_longer_than_a_heartbeat_may_be_lost
    yield "the receiver is gone for good", links.test_the_receiver_is_gone_for_good_while_disks_are_copied
    yield "no targets after a restart", links.test_a_receiver_comes_back_without_its_targets_and_copies_do_not_tell
    yield "a shared disk cannot be shut", going_on.test_a_receiver_says_aborted_only_when_a_disk_that_both_see_is_shut
    for step in going_on.BEFORE_MEMORY:
        for side in ("source", "destination"):
            name = f"{step}: {side} restarts"
            yield name, in_a_world(going_on.test_a_daemon_restarted_before_phase_4_goes_on, step, side)
    for side in ("source", "destination"):
        yield f"cancelled: {side}", in_a_world(going_on.test_what_was_cancelled_does_not_go_on_after_a_restart, side)
    yield "it came back", in_a_world(restarts.test_a_restarted_sender_leaves_a_vm_alone_that_came_back)
    for outcome in (Outcome.ABORTED, Outcome.COMMITTED):
        name = f"an administrator's word: {outcome.value}"
        yield name, in_a_world(settling.test_a_restart_after_the_word_goes_on_with_it, outcome)
    for told in (True, False):
        name = f"the new domain dies, {told=}"
        yield name, in_a_world(two_hosts.test_a_domain_that_dies_after_its_memory_came_is_not_committed_to, told)
    for number in reversed(range(len(enumeration.QUIET))):
        for fate in enumeration.FATES:
            name = f"{number} {enumeration.QUIET[number]}: {fate.value}"
            yield name, partial(enumeration.test_the_fate_of_each_message, number, fate)
    for fate in enumeration.FATES:
        yield f"GET control: {fate.value}", partial(enumeration.test_the_fate_of_a_question, "GET control", fate)
    for side, mark in enumeration.ALL_WRITES:
        for when in ("before", "after"):
            for victims in ("the writer", "the other", "both"):
                yield (
                    f"at {mark.value} of the {side}, {when}: {victims} crash",
                    partial(enumeration.test_a_crash_at_a_journal_write, side, mark, when, victims),
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
    for seed in range(24):
        yield f"two blows, seed {seed}", partial(enumeration.test_two_blows_at_any_moment_on_a_bad_wire, seed)


def in_a_world(test: Callable[..., None], *arguments: object) -> Callable[[], None]:
    return lambda: test(TwoHosts(Clock()), *arguments)


def not_durable(role: str, *marks: Mark) -> Callable[[Patch], None]:
    """Of such marks a restarted daemon finds nothing."""

    def remove(patch: Patch) -> None:
        real = MemoryJournals.read

        async def read(self: MemoryJournals) -> list[IJournal]:
            for journal in self.all.values():
                if journal.role == role:
                    journal.entries = [entry for entry in journal.entries if entry.mark not in marks]
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


def its_answer_is_its_acknowledgement(patch: Patch) -> None:
    real = Receiving.put_done

    async def put_done(self: Receiving) -> Answer:
        answer = await real(self)
        self._decision.acknowledged = True
        self._machine.acknowledged()
        return answer

    patch.setattr(Receiving, "put_done", put_done)


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


def disks_stay_active(patch: Patch) -> None:
    async def deactivate(migration: Any, disk: Any) -> None:
        await disk.sr.copy_finish(disk.copy)

    patch.setattr(phase4_memory, "_deactivate", deactivate)


def no_copy_is_looked_at_when_it_ends(patch: Patch) -> None:
    async def deactivate(migration: Any, disk: Any) -> None:
        await disk.sr.vdi_deactivate(disk.vdi_uuid)

    patch.setattr(phase4_memory, "_deactivate", deactivate)


def memory_does_not_wait_for_the_copies(patch: Patch) -> None:
    async def all_ready(migration: Any) -> bool:
        return True

    patch.setattr(phase3_bulk_copy, "_all_ready", all_ready)


def done_does_not_wait_for_the_memory(patch: Patch) -> None:
    async def end_stream(migration: Any) -> None:
        if migration.memory_put is not None:
            await migration.suspension.proceed()

    patch.setattr(phase4_memory, "_end_stream", end_stream)


def a_404_is_a_no(patch: Patch) -> None:
    real = DirectPeer._answer

    async def answer(self: DirectPeer, *asked: Any) -> Answer:
        found = await real(self, *asked)
        return Answer(Outcome.ABORTED, "404") if found.outcome is Outcome.UNKNOWN else found

    patch.setattr(DirectPeer, "_answer", answer)


def done_is_said_once(patch: Patch) -> None:
    real = DirectPeer.put_done

    async def put_done(self: DirectPeer) -> Answer:
        if "GET control" in self._wire.messages:
            return Answer(Outcome.OPEN)
        return await real(self)

    patch.setattr(DirectPeer, "put_done", put_done)


def nothing(owner: object, name: str, answer: object = None) -> Callable[[Patch], None]:
    """In the place of something asynchronous."""

    async def instead(*_: object) -> object:
        return answer

    return lambda patch: patch.setattr(owner, name, instead)


def no_pulse(patch: Patch) -> None:
    patch.setattr(Pulse, "start", lambda self: None)


GUARDS: dict[str, tuple[Finding, Callable[[Patch], None]]] = {
    "DONE is durable before it is said": (Finding.TWO, not_durable("sender", Mark.DONE)),
    "COMMIT is durable before the domain runs": (Finding.BACK, not_durable("receiver", Mark.COMMITTED)),
    "what the receiver said is durable before it forgets": (Finding.ENDLESS, its_answer_is_its_acknowledgement),
    "no answer decides nothing": (Finding.TWO, silence_is_a_no),
    "a 404 decides nothing": (Finding.TWO, a_404_is_a_no),
    "a restarted sender asks before it resumes": (Finding.TWO, a_restarted_sender_does_not_ask),
    "while nothing is decided `done` is said again": (Finding.NONE, done_is_said_once),
    "the domain is paused until COMMIT": (Finding.BACK, it_runs_before_commit),
    "COMMIT is written only of a domain that is there": (Finding.NONE, nothing(phase5_receiving, "check_domain")),
    "DELETE acknowledges only what it names": (Finding.NONE, a_delete_without_a_name_acknowledges),
    "ABORT is durable before it is said": (Finding.LEFT, aborted_is_said_before_it_is_written),
    "ABORT is written only when all is shut": (Finding.NONE, what_cannot_be_shut_stays_open),
    "a receiver that hears nothing gives up": (Finding.LEFT, a_receiver_waits_for_ever),
    "the sender's disks are deactivated before `done`": (Finding.OPEN_TWICE, disks_stay_active),
    "every copy is finished before `done`": (Finding.LOST, no_copy_is_looked_at_when_it_ends),
    "every copy is ready before memory is sent": (Finding.STAYED, memory_does_not_wait_for_the_copies),
    "the receiver has the memory before `done`": (Finding.DETOUR, done_does_not_wait_for_the_memory),
    "the sender shows that it lives": (Finding.STAYED, no_pulse),
    "the other URIs are tried": (Finding.STAYED, nothing(DirectPeer, "fail_over", False)),
    "copies follow to the other URI": (Finding.ENDLESS, nothing(Sending, "_moved")),
    "a receiver looks after its targets": (Finding.ENDLESS, nothing(phase2_receiving, "look_after")),
    "which targets there are is known after a restart": (Finding.ENDLESS, not_durable("receiver", Mark.OFFERED)),
    "what was prepared is known after a restart": (Finding.STAYED, not_durable("receiver", Mark.PREPARED)),
    "that memory came is known after a restart": (Finding.NONE, not_durable("receiver", Mark.MEMORY)),
    "a sender's cancel is known after a restart": (Finding.MOVED, not_durable("sender", Mark.UNDONE)),
    "a receiver's cancel is known after a restart": (Finding.MOVED, not_durable("receiver", Mark.UNDONE)),
    "an administrator's word is known after a restart": (Finding.ENDLESS, not_durable("sender", Mark.ABORTED)),
    "what has ended is not ended again": (Finding.NONE, not_durable("sender", Mark.ENDED)),
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
