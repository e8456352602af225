"""Looking at a machine from outside: its state's name, and all its transitions as a table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def state_of(machine: Any) -> str:
    """The name of the state that a machine is in."""
    state = machine.__automat_transitioner__._state
    return str(getattr(state, "name", state))


class Watched:
    """A machine whose inputs are passed on; `entered` is called with the name of each new state."""

    def __init__(self, machine: Any, entered: Callable[[str], None]) -> None:
        self._machine = machine
        self._entered = entered

    def __getattr__(self, name: str) -> Any:
        given = getattr(self._machine, name)
        if name.startswith("_"):
            return given

        def tell(*arguments: Any) -> None:
            before = state_of(self._machine)
            given(*arguments)
            after = state_of(self._machine)
            if after != before:
                self._entered(after)

        return tell


def transitions(build: Any) -> list[tuple[str, str, str]]:
    """(state, input, next state), sorted: what docs/protocol shows and the tests compare with it."""
    automaton = build.__automat_automaton__
    return sorted((str(start.name), str(name), str(end.name)) for start, name, end, _ in automaton.allTransitions())


def as_markdown() -> str:
    """docs/machines.md: both tables, written from the code."""
    from .receiver import build_receiver
    from .sender import build_sender

    parts = [
        "# The two machines\n\nWritten from the code by `python -m xapi_migrate.migration.machine_state`; "
        "the tests compare. What the states mean is said in `xapi_migrate/migration/sender.py` and `receiver.py`.\n"
    ]
    for title, build in (("Sender", build_sender), ("Receiver", build_receiver)):
        rows = [f"| {start} | {name} | {end} |" for start, name, end in transitions(build)]
        parts.append(f"## {title}\n\n| state | input | next |\n|---|---|---|\n" + "\n".join(rows) + "\n")
    return "\n".join(parts)


if __name__ == "__main__":
    print(as_markdown(), end="")
