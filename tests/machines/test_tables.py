"""The machines' tables, looked at as a whole: every state against every input, and the rule that they embody."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from automat import NoTransition
from hypothesis import given
from hypothesis import strategies as st

from xapi_migrate.errors import WrongMoment
from xapi_migrate.migration.machine_state import as_markdown, state_of, transitions
from xapi_migrate.migration.receiver import build_receiver
from xapi_migrate.migration.sender import build_sender

SENDER = transitions(build_sender)
RECEIVER = transitions(build_receiver)
WITH_REASON = {"failed", "cancel", "abort", "aborted", "undecidable", "recover_undone", "recover_undecided"}


class Recorder:
    """Work that only writes down what it was asked to do."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments: self.calls.append(name)


def feed(machine: Any, name: str) -> bool:
    """Give one input; whether the machine takes it in this state."""
    try:
        getattr(machine, name)(*([Exception("because")] if name in WITH_REASON else []))
    except NoTransition:
        return False
    except WrongMoment:
        return True
    return True


def reachable(table: list[tuple[str, str, str]], start: set[str], without: set[str] = frozenset()) -> set[str]:  # type: ignore[assignment]
    seen = set(start)
    while more := {end for begin, name, end in table if begin in seen and name not in without} - seen:
        seen |= more
    return seen


def test_a_sender_that_may_be_in_doubt_leaves_only_by_the_receivers_word() -> None:
    doubtful = {"WritingDone", "SayingDone", "InDoubt", "Withdrawing"}
    leaving = {(name, end) for begin, name, end in SENDER if begin in doubtful and end not in doubtful}
    assert leaving == {("committed", "CleaningUp"), ("aborted", "RollingBack")}


def test_a_sender_that_destroys_never_resumes_and_the_reverse() -> None:
    assert "RollingBack" not in reachable(SENDER, {"CleaningUp"})
    assert "CleaningUp" not in reachable(SENDER, {"RollingBack"})


def test_a_sender_says_done_only_after_it_has_written_it() -> None:
    assert not {"SayingDone", "InDoubt"} & reachable(SENDER, {"Idle"}, {"done_written", "recover_in_doubt"})
    assert ("Withdrawing", "undecided", "Withdrawing") in SENDER  # there it is not said again


def test_a_receiver_commits_only_through_the_written_decision() -> None:
    into = {(begin, name) for begin, name, end in RECEIVER if end == "Completing" and begin != "Completing"}
    assert into == {("WritingCommit", "commit_written"), ("Offered", "recover_committed")}


def test_a_decided_receiver_never_changes_its_mind() -> None:
    assert not {"Shutting", "Aborted", "CleaningUp"} & reachable(RECEIVER, {"Completing"})
    assert not {"Activating", "WritingCommit", "Completing", "Committed"} & reachable(RECEIVER, {"Shutting"})


def test_nothing_aborts_a_commit_that_is_being_written() -> None:
    leaving = {(name, end) for begin, name, end in RECEIVER if begin == "WritingCommit" and end != begin}
    assert leaving == {("commit_written", "Completing"), ("undecidable", "Undecided")}


def test_a_receiver_that_cannot_write_decides_nothing_more() -> None:
    assert reachable(RECEIVER, {"Undecided"}) == {"Undecided"}


@pytest.mark.parametrize("name", ["done", "abort", "acknowledged"])
def test_every_message_may_come_in_any_receiver_state_after_its_document(name: str) -> None:
    states = {begin for begin, _, _ in RECEIVER} | {end for _, _, end in RECEIVER}
    taken = {begin for begin, given, _ in RECEIVER if given == name}
    missing = states - taken - {"Gone"}
    if name == "acknowledged":  # only sent once the outcome has been told
        missing -= {"Offered", "Preparing", "AwaitingMemory", "ReceivingMemory", "AwaitingDone", "Activating"}
    assert missing == set()


@pytest.mark.parametrize(
    ("table", "build", "start"), [(SENDER, build_sender, "Idle"), (RECEIVER, build_receiver, "Offered")]
)
def test_every_state_can_be_reached_and_has_an_end(table: Any, build: Any, start: str) -> None:
    states = {begin for begin, _, _ in table} | {end for _, _, end in table}
    assert reachable(table, {start}) == states
    ends = {"Completed", "Failed", "Gone", "Undecided"}
    for state in states:
        assert reachable(table, {state}) & ends, state


@given(st.lists(st.sampled_from(sorted({name for _, name, _ in SENDER}))))
def test_random_walks_of_the_sender_follow_the_table(names: list[str]) -> None:
    walk(build_sender, SENDER, names, "Idle")


@given(st.lists(st.sampled_from(sorted({name for _, name, _ in RECEIVER}))))
def test_random_walks_of_the_receiver_follow_the_table(names: list[str]) -> None:
    walk(build_receiver, RECEIVER, names, "Offered")


def walk(build: Any, table: list[tuple[str, str, str]], names: list[str], state: str) -> None:
    machine = build(Recorder())
    expected = {(begin, name): end for begin, name, end in table}
    for name in names:
        assert feed(machine, name) is ((state, name) in expected)
        state = expected.get((state, name), state)
        assert state_of(machine) == state


def test_the_documented_tables_are_those_of_the_code() -> None:
    assert Path("docs/machines.md").read_text() == as_markdown(), "run: python -m xapi_migrate.migration.machine_state"
