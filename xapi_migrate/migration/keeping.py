"""Who keeps the VMs that are received on a host: the host's own records, or another toolstack beside which it stands.

A host with a keeper makes records of its own for an incoming VM as ever, hidden; they go when the keeper has it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from .incoming import Incoming


class Keeper(Protocol):
    """Another toolstack, as the receiver's phases see it. MigrateError where nothing else is said."""

    async def look(self, migration: Incoming) -> None:
        """2.1, before anything is made: refuse what cannot be kept; know the SRs and networks that the VM's maps
        name."""

    async def make_disks(self, migration: Incoming) -> None:
        """2.1, before the plan is written down: each fresh disk of the plan is made, and takes the ref and uuid that
        its VDI has at the keeper."""

    async def rehearse(self, migration: Incoming) -> None:
        """2.1, when the hidden VM is there: whether it could be taken over."""

    async def take_over(self, migration: Incoming) -> None:
        """5.1, before COMMIT: the VM is the keeper's, whole, and nobody can start it there."""

    async def complete(self, migration: Incoming) -> None:
        """5.2, after COMMIT: the VM is its owner's. Repeatable, from any point; what cannot be done at once is done
        later."""

    async def undo(self, migration: Incoming) -> None:
        """After ABORT: nothing of it stays at the keeper. Repeatable; what cannot be done at once is done later."""
