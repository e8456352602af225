"""A migration's log: each step of the sequence by its id, with its moment and what it was about."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from ..steps import Step
from .stops import nowhere


class Story:
    """Tells the steps of one migration, to the daemon's log and to a file of its own (one JSON object per line:
    t seconds since it began, at seconds by the host's clock, step, text, and fields). `last` is the latest step. Never
    given a capability or a password. An offer alone makes no file: clients ask for many and use one."""

    def __init__(
        self,
        clock: IReactorTime,
        role: str,
        migration: str,
        folder: Path | None,
        at: Callable[[str, str], None] = nowhere,
    ) -> None:
        self.role = role
        self.migration = migration
        self.last: Step | None = None
        self.listeners: list[Callable[[Step, str], None]] = []
        self._at = at
        self._clock = clock
        self._began = clock.seconds()
        self._log = Logger(namespace="xapi_migrate.migration")
        self._path = folder / f"{role}-{migration}.log" if folder else None
        self._held = ""

    def step(self, step: Step, text: str = "", **fields: Any) -> None:
        """A step of the sequence is taken."""
        self.last = step
        self._tell(step.id, text or step.text, fields)
        for listener in self.listeners:
            listener(step, text or step.text)
        self._at(self.role, step.id)

    def enters(self, state: str) -> None:
        """The machine is in another state."""
        self._at(self.role, state)

    def note(self, text: str, **fields: Any) -> None:
        """Something that is no step: a fault, a decision, a clean-up."""
        self._tell("", text, fields)

    def _tell(self, step: str, text: str, fields: dict[str, Any]) -> None:
        self._log.info(
            "{role} {migration} {step} {text}", role=self.role, migration=self.migration, step=step, text=text, **fields
        )
        if self._path is not None:
            now = self._clock.seconds()
            line = {"t": round(now - self._began, 4), "at": round(now, 4), "step": step, "text": text, **fields}
            text = self._held + json.dumps(line, default=str) + "\n"
            if step == Step.VM_RECEIVE.id:
                self._held = text
                return
            self._held = ""
            try:
                with self._path.open("a") as file:
                    file.write(text)
            except OSError as failure:
                # A story that cannot be written, for want of space say, must not end the migration that it tells of.
                self._log.warn(
                    "{role} {migration}: its log: {why}", role=self.role, migration=self.migration, why=failure
                )
