"""When a copier counts as dead, and when a copy is hopeless."""

from __future__ import annotations

from xapi_migrate.sm.standstill import Standstill, Verdict


def copying(still: Standstill, now: float, done: int, *, idle: bool = False, alive: bool = True) -> Verdict:
    return still.look(now, done, 100, idle=idle, alive=alive)


def test_one_that_moves_or_has_nothing_to_do_is_left_alone() -> None:
    still = Standstill(10, 1)
    for now in range(0, 90, 9):
        assert copying(still, now, now) is Verdict.MOVES
    for now in range(90, 200, 10):
        assert copying(still, now, 100, idle=True) is Verdict.MOVES


def test_one_that_stands_still_is_replaced_and_then_hopeless() -> None:
    still = Standstill(10, 2)
    assert copying(still, 0, 5) is Verdict.MOVES
    assert copying(still, 10, 5) is Verdict.MOVES
    assert copying(still, 10.1, 5) is Verdict.REPLACE
    still.tried(12)
    assert copying(still, 22, 5) is Verdict.MOVES
    assert copying(still, 22.1, 5) is Verdict.REPLACE
    still.tried(23)
    assert copying(still, 33.1, 5) is Verdict.HOPELESS
    assert (still.why, still.replaced) == ("no progress for 10 s", 2)


def test_one_that_died_is_replaced_at_once() -> None:
    still = Standstill(10, 1)
    assert copying(still, 0, 5, alive=False) is Verdict.REPLACE
    still.tried(1)
    assert copying(still, 1, 5, alive=False) is Verdict.HOPELESS
    assert still.why == "its copier died"


def test_progress_begins_the_count_anew_and_a_guests_writes_do_not() -> None:
    still = Standstill(10, 1)
    assert copying(still, 0, 5) is Verdict.MOVES
    assert copying(still, 11, 5) is Verdict.REPLACE
    still.tried(11)
    assert still.look(15, 5, 200, idle=False, alive=True) is Verdict.MOVES
    assert still.look(26, 5, 200, idle=False, alive=True) is Verdict.HOPELESS
    assert still.look(27, 6, 200, idle=False, alive=True) is Verdict.MOVES
    assert still.look(38, 6, 200, idle=False, alive=True) is Verdict.REPLACE
