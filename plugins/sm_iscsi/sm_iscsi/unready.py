"""VDIs whose host died while it made them, by the time for which this host has seen them unready.

When they were begun stands in the table, but by the clock of another host, and clocks are set.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from sm_iscsi.catalogue import Catalogue

STALE = 3600.0
"""Seconds after which a VDI that did not get ready is given up."""


class Unready:
    """What this host has seen since its daemon started."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._first: dict[str, float] = {}

    def seen(self, plain: dict[str, Any]) -> Catalogue:
        """A table as it was read just now."""
        table, now = Catalogue.of_plain(plain), self._clock()
        unready = [uuid for uuid, entry in table.vdis.items() if not entry.ready]
        self._first = {uuid: self._first.get(uuid, now) for uuid in unready}
        return table

    def stale(self) -> list[str]:
        """Uuids that may be given up."""
        return [uuid for uuid, first in self._first.items() if self._clock() - first > STALE]
