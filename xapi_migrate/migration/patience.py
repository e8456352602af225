"""Asking a receiver that may be silent for a while, because its daemon is starting or the link is down."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

from twisted.internet import task

from ..errors import PeerSilent
from .outgoing import Outgoing

T = TypeVar("T")


async def patiently(migration: Outgoing, ask: Callable[[], Awaitable[T]]) -> T:
    """The answer to a request that may be repeated; PeerSilent after half of the time that a heartbeat may be lost."""
    times, clock = migration.host.config.times, migration.host.clock
    until = clock.seconds() + times.heartbeat_lost / 2
    while True:
        try:
            return await ask()
        except PeerSilent as silence:
            if clock.seconds() >= until:
                raise
            migration.story.note(f"asked again: {silence}")
        await task.deferLater(clock, times.ask)
