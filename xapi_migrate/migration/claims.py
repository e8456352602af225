"""What VMs that come, or are started, will need of this host and have not taken up yet: two that fit one at a time but
not together must not both begin.

A claim lasts from the checks of PUT metadata until the VM is the host's own or gone. It is nowhere on disk: a receiver
that goes on after a restart of its daemon claims again, before the daemon listens, and one that has decided needs no
claim. Whoever came first is served first: a migration is measured against the claims that were there before its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from uuid import uuid4

import attrs

from ..errors import NotEnoughMemory
from ..sm.interfaces import ISR


@attrs.frozen
class DiskClaim:
    """A fresh VDI: it may grow to `size` bytes."""

    sr: str
    vdi_uuid: str
    size: int


@attrs.define
class _Claim:
    memory: int
    disks: tuple[DiskClaim, ...]


class Claims:
    """All claims on one host. `free_memory` and `untouched` in bytes: what the host has, and what its domains have been
    promised but not touched yet. `who` names a migration, or something else that makes VDIs."""

    def __init__(self, free_memory: Callable[[], int], untouched: Callable[[], int]) -> None:
        self._free_memory = free_memory
        self._untouched = untouched
        self._claims: dict[str, _Claim] = {}

    def take(self, who: str, memory: int, disks: Iterable[DiskClaim]) -> None:
        """From now on; see `release`."""
        self._claims[who] = _Claim(memory, tuple(disks))

    def has_domain(self, who: str) -> None:
        """Its domain is being built: the domain driver counts its memory from here on."""
        if who in self._claims:
            self._claims[who].memory = 0

    def release(self, who: str) -> None:
        """No claim, no harm."""
        self._claims.pop(who, None)

    @contextmanager
    def held(self, memory: int) -> Iterator[Callable[[], None]]:
        """A claim of memory alone, for a domain that is built inside; what it gives is to be called when the driver
        knows the domain, and counts its memory itself. NotEnoughMemory."""
        who = str(uuid4())
        self.take(who, memory, ())
        try:
            free = self.memory(before=who)
            if memory > free:
                raise NotEnoughMemory(memory, free)
            yield partial(self.has_domain, who)
        finally:
            self.release(who)

    def memory(self, before: str = "") -> int:
        """Bytes that a new domain may take; for `before`, who has a claim: besides those that came earlier."""
        claimed = sum(claim.memory for claim in self._earlier(before))
        return max(0, self._free_memory() - self._untouched() - claimed)

    async def space(self, ref: str, sr: ISR, before: str = "") -> int:
        """Bytes of an SR that new VDIs may grow to; `before` as above."""
        disks = [disk for claim in self._earlier(before) for disk in claim.disks if disk.sr == ref]
        # In this order: what is written meanwhile counts twice rather than not at all.
        taken = {info.uuid: info.used for info in await sr.scan()} if disks else {}
        stat = await sr.stat()
        still = 0
        for disk in disks:
            if disk.vdi_uuid not in taken:
                still += disk.size
            elif not stat.reserves:
                still += max(0, disk.size - taken[disk.vdi_uuid])
        return max(0, stat.free - still)

    def _earlier(self, before: str) -> Iterator[_Claim]:
        for who, claim in self._claims.items():
            if who == before:
                return
            yield claim
