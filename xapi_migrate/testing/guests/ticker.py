"""The ticker guest: its boot sector with parameters, and what its console and disks should say.

The guest is the first sector of its disk (`ticker.asm` says what it does), so a disk that boots has
arrived. Every function here is pure or works on a path, and may block: call it in a thread where the path is
not known to be fast.
"""

from __future__ import annotations

import re
import struct
from importlib import resources
from pathlib import Path

import attrs

SECTOR = 512
_PARAMETERS = struct.Struct("<HIIIIIIB")
_OFFSET = 0x1E0
_PIT = 1193182
_PAGE = 4096


@attrs.frozen
class Ticker:
    """Parameters of the guest.

    `ticks` per second (19 to 1000). `span` sectors are written in turn, from LBA 1 on, the counter's at
    1 + counter % span; 0 writes nothing. Memory: from `begin` to `fill_end` (byte addresses, pages of
    4096) once, `fill_pages` at each tick, then from `begin` to `end` again and again, `pages` at each tick; what
    was written is checked on the next pass. `disks`: at most so many are written.
    """

    ticks: int = 100
    span: int = 2000
    begin: int = 2 << 20
    fill_end: int = 16 << 20
    fill_pages: int = 0
    end: int = 4 << 20
    pages: int = 0
    disks: int = 2

    def boot_sector(self) -> bytes:
        """The 512 bytes that make a disk boot into this guest."""
        sector = bytearray(resources.files(__package__).joinpath("ticker.bin").read_bytes())
        _PARAMETERS.pack_into(
            sector, _OFFSET, round(_PIT / self.ticks), self.span, self.begin, self.fill_end, self.fill_pages,
            self.end, self.pages, self.disks,
        )  # fmt: skip
        return bytes(sector)

    def lost(self, image: Path, printed: list[int], first: int = 1) -> list[int]:
        """Of the counters that were printed, those that should still be on the disk (a raw image) and are not.
        `first`: the sector at which the area for them begins."""
        last = max(printed, default=0)
        lost = []
        with image.open("rb") as file:
            for counter in sorted(set(printed)):
                if counter <= last - self.span + 1:
                    continue  # a later one may be in its place, or on its way there
                file.seek((first + counter % self.span) * SECTOR)
                if file.read(8) != b"TICK" + struct.pack("<I", counter):
                    lost.append(counter)
        return lost


def ram(memory: int, megabytes_per_second: float, working_set: int, ticks: int = 100) -> Ticker:
    """A ticker that fills almost all of `memory` (bytes) in its first seconds and then dirties
    `working_set` bytes at a rate of its own."""
    begin, top = 2 << 20, memory - (1 << 20)
    return Ticker(
        ticks=ticks, fill_end=top, fill_pages=max(1, (top - begin) // _PAGE // 50),
        end=min(top, begin + working_set), pages=round(megabytes_per_second * (1 << 20) / _PAGE / ticks),
    )  # fmt: skip


def write_image(path: Path, size: int, ticker: Ticker | None = None) -> None:
    """A raw disk of `size` bytes (sparse) that boots into the guest."""
    with path.open("wb") as file:
        file.write((ticker or Ticker()).boot_sector())
        file.truncate(size)


@attrs.frozen
class Console:
    """What a console log says. `counters` in the order printed; `anomalies` are lines that tell of damaged
    memory (X) or a refused write (E) or that no guest prints; `powered_off`: OFF was the last line."""

    counters: list[int]
    anomalies: list[str]
    powered_off: bool

    @property
    def breaks(self) -> list[tuple[int, int]]:
        """Neighbours that do not follow each other: (before, after). None: no time was lost or repeated."""
        return [(a, b) for a, b in zip(self.counters, self.counters[1:]) if b != a + 1]


def parse(log: bytes) -> Console:
    """Read a console log; a last line without its end is left out, for more of it may come."""
    counters: list[int] = []
    anomalies: list[str] = []
    off = False
    for line in log.decode("ascii", "replace").split("\n")[:-1]:
        text = line.strip()
        off = text == "OFF"
        if re.fullmatch(r"[0-9]+", text):
            counters.append(int(text))
        elif text and not off:
            anomalies.append(text)
    return Console(counters, anomalies, off)


def read(*logs: Path) -> Console:
    """Read several console logs as one, in the order in which the guest moved. A log that is missing is empty."""
    return parse(b"".join(log.read_bytes() if log.exists() else b"" for log in logs))
