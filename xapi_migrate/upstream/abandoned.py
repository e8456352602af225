"""What a daemon still remembers of a toolstack beside which it stands no more.

Its own notes say what waits there, and only that toolstack can do something about it. So all that is possible here is
to say so, and to forget it.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from ..migration.interfaces import Outcome
from ..processes.in_thread import in_thread
from ..toolstack.leftovers import Leftover
from .arrival import Arrival
from .lease import Lease
from .notes import read_notes
from .reading import MARK, OURS

ARRIVALS, LEASES = "arrivals", "upstream"
"""Their folders in the state folder."""
_ONLY = "only what is noted here goes, for nothing can be done at that toolstack without it"


class Abandoned:
    """Of a daemon without an upstream, in its `state_dir`."""

    receiving = True

    def __init__(self, state_dir: Path) -> None:
        self._state_dir = state_dir

    async def left(self, session: str) -> list[Leftover]:
        """OSError."""
        return await in_thread(self._read)

    def _read(self) -> list[Leftover]:
        arrivals, unread = read_notes(self._state_dir / ARRIVALS, Arrival)
        leases, unread_too = read_notes(self._state_dir / LEASES, Lease)
        found = [
            self._leftover(
                "arrival", one.id, self._state_dir / ARRIVALS / f"{one.id}.json",
                f"VM {one.uuid} was being received ({one.state}) for a toolstack beside which this daemon stood",
                f"{_ONLY}: there, this VM may be a locked template, and VDIs of it have {MARK}={one.id} in their "
                "other_config",
            )
            for one in arrivals
        ]  # fmt: skip
        found += [
            self._leftover(
                "lock", one.name, self._state_dir / LEASES / f"{one.id}.json",
                f"it was being sent ({one.state}) for a toolstack beside which this daemon stood",
                f"{_ONLY}: there, blocked_operations that begin with {OURS} stay",
            )
            for one in leases
        ]  # fmt: skip
        return found + [
            self._leftover(
                "note", f"{path.parent.name}/{path.name}", path,
                "it cannot be read, and tells of a toolstack beside which this daemon stood", _ONLY,
            )
            for path in unread + unread_too
        ]  # fmt: skip

    def _leftover(self, kind: str, name: str, path: Path, why: str, remedy: str) -> Leftover:
        return Leftover(kind, name, why, remedy, partial(in_thread, path.unlink, missing_ok=True))

    def in_doubt(self) -> list[str]:
        """None: nothing here could be settled."""
        return []

    async def settle(self, vm: str, outcome: Outcome, session: str) -> bool:
        """False: as `in_doubt`."""
        return False
