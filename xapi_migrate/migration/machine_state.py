"""Looking at a machine from outside: its state's name, and all its transitions as a table."""

from __future__ import annotations

from typing import Any


def state_of(machine: Any) -> str:
    """The name of the state that a machine is in."""
    state = machine.__automat_transitioner__._state
    return str(getattr(state, "name", state))


def transitions(build: Any) -> list[tuple[str, str, str]]:
    """(state, input, next state), sorted: what docs/protocol shows and the tests compare with it."""
    automaton = build.__automat_automaton__
    return sorted((str(start.name), str(name), str(end.name)) for start, name, end, _ in automaton.allTransitions())
