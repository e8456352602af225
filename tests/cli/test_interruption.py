"""Ctrl-C while a command works, and while it cleans up."""

from __future__ import annotations

import os
import signal

import pytest

from xapi_migrate.cli.interruption import Interrupted, interruptible


def strike(number: int = signal.SIGINT) -> None:
    os.kill(os.getpid(), number)


def test_the_clean_up_is_whole_whenever_it_comes() -> None:
    before = signal.getsignal(signal.SIGINT)
    steps: list[str] = []

    def clean_up() -> None:
        for step in ("processes", "folder"):
            strike()
            strike(signal.SIGTERM)
            steps.append(step)

    with interruptible(clean_up):
        steps.append("work")
    assert steps == ["work", "processes", "folder"]

    steps.clear()
    with pytest.raises(Interrupted), interruptible(clean_up):
        try:
            strike()
            steps.append("more work")
        finally:
            strike()
            steps.append("a first try")
    assert steps == ["a first try", "processes", "folder"]
    assert signal.getsignal(signal.SIGINT) is before


def test_the_clean_up_takes_up_what_was_interrupted() -> None:
    steps: list[str] = []
    with pytest.raises(Interrupted), interruptible(lambda: steps.append("whole")):
        steps.append("begun")
        strike()
        steps.append("never")
    assert steps == ["begun", "whole"]
