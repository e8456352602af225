"""Which LUN is which VDI: the table that all hosts keep together on the SR's first LUN. No I/O here.

The LUN begins with two slots; each change is written to the one that does not have the newest table, so that a change
that is cut off leaves the one before. Only the standard library is used: a small child process loads this for each
change.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from dataclasses import asdict, dataclass, field
from typing import Any

MAGIC = b"XMISCSI1"
SLOT = 256 * 1024
SPAN = 2 * SLOT
"""Bytes at the beginning of the LUN that are read."""
MOST_NONCES = 256


class Foreign(Exception):
    """What lies there is no table of ours."""


class Full(Exception):
    """No free LUN is large enough; `available` bytes has the largest."""

    def __init__(self, available: int) -> None:
        super().__init__(str(available))
        self.available = available


class Taken(Exception):
    """There is a VDI of this uuid with another size, `size`."""

    def __init__(self, size: int) -> None:
        super().__init__(str(size))
        self.size = size


@dataclass
class Entry:
    """One VDI. `ready`: its zeroes have been written; before that it is nobody's disk. `since`: when it
    was begun, by the clock of its host; for people, for clocks are set and differ."""

    lun: int
    size: int
    ready: bool = False
    since: float = 0.0


@dataclass
class Catalogue:
    """`turn` counts the changes."""

    turn: int = 0
    vdis: dict[str, Entry] = field(default_factory=dict)
    nonces: dict[str, str] = field(default_factory=dict)

    def claim(self, uuid: str, size: int, luns: dict[int, int], now: float, stale: Collection[str] = ()) -> Entry:
        """Take the smallest free LUN of `luns` (number -> bytes) that holds it. A repeat finds its own. The `stale` are
        given up where they are not ready. Full, Taken."""
        known = self.vdis.get(uuid)
        if known is not None:
            if known.size != size:
                raise Taken(known.size)
            return known
        for other, entry in list(self.vdis.items()):
            if not entry.ready and other in stale:
                del self.vdis[other]
        free = self.free(luns)
        fitting = sorted((capacity, lun) for lun, capacity in free.items() if capacity >= size)
        if not fitting:
            raise Full(max(free.values(), default=0))
        made = self.vdis[uuid] = Entry(fitting[0][1], size, False, now)
        return made

    def finish(self, uuid: str, size: int) -> None:
        """It reads as zeroes, or has been filled up with them: from now on it is a VDI of this size."""
        if uuid in self.vdis:
            self.vdis[uuid].ready = True
            self.vdis[uuid].size = size

    def release(self, uuid: str) -> None:
        """Its LUN is free again."""
        self.vdis.pop(uuid, None)

    def leave(self, name: str, value: str) -> None:
        """A nonce; those that nobody removed go, the oldest first."""
        self.nonces.pop(name, None)
        if value:
            self.nonces[name] = value
        for old in list(self.nonces)[:-MOST_NONCES]:
            del self.nonces[old]

    def free(self, luns: dict[int, int]) -> dict[int, int]:
        """Those of `luns` that are nobody's."""
        taken = {entry.lun for entry in self.vdis.values()}
        return {lun: capacity for lun, capacity in luns.items() if lun not in taken}

    # -- on the LUN

    @property
    def offset(self) -> int:
        """Where this table is to be written."""
        return self.turn % 2 * SLOT

    def packed(self) -> bytes:
        """One slot. ValueError when it does not fit."""
        text = json.dumps(self.plain()).encode()
        slot = MAGIC + len(text).to_bytes(8, "big") + hashlib.sha256(text).digest() + text
        if len(slot) > SLOT:
            raise ValueError("there are too many VDIs for the catalogue")
        return slot.ljust(SLOT, b"\0")

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def of_plain(cls, plain: dict[str, Any]) -> Catalogue:
        return cls(plain["turn"], {uuid: Entry(**entry) for uuid, entry in plain["vdis"].items()}, plain["nonces"])

    @classmethod
    def read(cls, span: bytes) -> Catalogue:
        """The newest table of the LUN's beginning; an empty one if all of it is zero, or the very first was cut off.
        Foreign."""
        found = [table for table in (_unpack(span[:SLOT]), _unpack(span[SLOT:SPAN])) if table is not None]
        if found:
            return max(found, key=lambda table: table.turn)
        second = span[SLOT:SPAN]  # where the first is written
        if any(span[:SLOT]) or (any(second) and not second.startswith(MAGIC)):
            raise Foreign
        return cls()


def _unpack(slot: bytes) -> Catalogue | None:
    if not slot.startswith(MAGIC):
        return None
    length = int.from_bytes(slot[8:16], "big")
    text = slot[48 : 48 + length]
    if hashlib.sha256(text).digest() != slot[16:48]:
        return None  # cut off while it was written
    return Catalogue.of_plain(json.loads(text))
