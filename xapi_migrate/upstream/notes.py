"""What a daemon beside an upstream must not forget: small files, one for each thing, on disk before anything is done
that they tell of. They hold sessions, so they are for their owner only."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import attrs
from twisted.logger import Logger

from ..processes.in_thread import in_thread


class Note(attrs.AttrsInstance, Protocol):
    """An attrs class of what JSON knows."""

    id: str


N = TypeVar("N", bound=Note)


class Notes(Generic[N]):
    """Those of one `kind`, in `folder`."""

    log = Logger()

    def __init__(self, folder: Path, kind: type[N]) -> None:
        self._folder = folder
        self._kind = kind
        self.known: dict[str, N] = {}

    async def load(self) -> None:
        """What an earlier daemon left. OSError."""
        await in_thread(self._folder.mkdir, parents=True, exist_ok=True, mode=0o700)
        for path, text in await in_thread(lambda: [(one, one.read_text()) for one in self._folder.glob("*.json")]):
            try:
                note = self._kind(**json.loads(text))
            except (ValueError, TypeError):
                self.log.error("{path} cannot be read: a VM of the toolstack may stay locked", path=path)
                continue
            self.known[note.id] = note

    async def save(self, note: N) -> None:
        """It is on disk when this fires. OSError."""
        self.known[note.id] = note
        await in_thread(_write, self._path(note), json.dumps(attrs.asdict(note)))

    async def forget(self, note: N) -> None:
        """OSError."""
        await in_thread(self._path(note).unlink, missing_ok=True)
        self.known.pop(note.id, None)

    def _path(self, note: N) -> Path:
        return self._folder / f"{note.id}.json"


def _write(path: Path, text: str) -> None:
    draft = path.with_suffix(".new")
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
