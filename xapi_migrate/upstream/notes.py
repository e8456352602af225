"""What a daemon beside an upstream must not forget: small files, one for each thing, on disk before anything is done
that they tell of. They hold sessions, so they are for their owner only."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import attrs
from twisted.logger import Logger

from ..processes.in_thread import in_thread
from ..toolstack.leftovers import Leftover
from ..whole_file import DRAFT, write_whole


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
        self.unreadable: list[Path] = []
        """Files of which it is not known what they tell of."""

    async def load(self) -> None:
        """What an earlier daemon left. OSError."""
        await in_thread(self._folder.mkdir, parents=True, exist_ok=True, mode=0o700)
        notes, self.unreadable = await in_thread(read_notes, self._folder, self._kind)
        for path in self.unreadable:
            self.log.error("{path} cannot be read: a VM of the toolstack may stay locked", path=path)
        self.known.update((note.id, note) for note in notes)

    def leftovers(self) -> list[Leftover]:
        """The files that cannot be read, as what is left behind."""
        return [
            Leftover("note", f"{path.parent.name}/{path.name}",
                     "it cannot be read, so it is not known what waits at the toolstack",
                     "the file goes, and nothing else: what it told of stays at the toolstack, under this id",
                     partial(self._drop, path))
            for path in self.unreadable
        ]  # fmt: skip

    async def _drop(self, path: Path) -> None:
        await in_thread(path.unlink, missing_ok=True)
        self.unreadable.remove(path)

    async def save(self, note: N) -> None:
        """It is on disk when this fires. OSError."""
        self.known[note.id] = note
        await in_thread(write_whole, self._path(note), json.dumps(attrs.asdict(note)))

    async def forget(self, note: N) -> None:
        """OSError."""
        await in_thread(self._path(note).unlink, missing_ok=True)
        self.known.pop(note.id, None)

    def _path(self, note: N) -> Path:
        return self._folder / f"{note.id}.json"


def read_notes(folder: Path, kind: type[N]) -> tuple[list[N], list[Path]]:
    """Those of a folder, and the files that hold none. Drafts that were never finished go. OSError."""
    notes: list[N] = []
    unreadable: list[Path] = []
    for draft in folder.glob(f"*{DRAFT}"):
        draft.unlink(missing_ok=True)
    for path in sorted(folder.glob("*.json")):
        try:
            notes.append(kind(**json.loads(path.read_text())))
        except (ValueError, TypeError, RecursionError):
            unreadable.append(path)
    return notes, unreadable
