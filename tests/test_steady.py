"""The daemon's time, when somebody sets the host's clock."""

from __future__ import annotations

import time

import pytest
from twisted.internet.epollreactor import EPollReactor

from xapi_migrate.steady import make_steady

HOUR = 3600.0


@pytest.mark.parametrize("steady", [True, False])
def test_a_clock_that_is_set_forward_fires_no_timer_too_early(monkeypatch: pytest.MonkeyPatch, steady: bool) -> None:
    reactor = _reactor(steady)
    fired: list[str] = []
    reactor.callLater(HOUR / 2, fired.append, "late")
    _set_clock(monkeypatch, HOUR)
    reactor.runUntilCurrent()
    assert fired == ([] if steady else ["late"]), "Twisted's own time follows the clock"


@pytest.mark.parametrize("steady", [True, False])
def test_a_clock_that_is_set_back_holds_no_timer_up(monkeypatch: pytest.MonkeyPatch, steady: bool) -> None:
    reactor = _reactor(steady)
    fired: list[str] = []
    reactor.callLater(0.01, fired.append, "soon")
    _set_clock(monkeypatch, -HOUR)
    time.sleep(0.02)
    reactor.runUntilCurrent()
    assert fired == (["soon"] if steady else [])


def test_it_begins_at_the_wall_clocks_time() -> None:
    assert abs(_reactor(True).seconds() - time.time()) < 1


def _reactor(steady: bool) -> EPollReactor:
    reactor = EPollReactor()
    # as twisted.python.runtime.seconds is, but looked up each time, so that a test can set the clock
    reactor.seconds = lambda: time.time()
    if steady:
        make_steady(reactor)
    return reactor


def _set_clock(monkeypatch: pytest.MonkeyPatch, by: float) -> None:
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + by)
