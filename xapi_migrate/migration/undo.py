"""Clean-up that goes on: each part is tried, a failure is told and does not keep the others from being done."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any

from twisted.logger import Logger

from .story import Story

log = Logger()


async def attempt(story: Story, what: str, work: Awaitable[Any]) -> None:
    """Wait for `work`; tell its failure as "could not {what}: ...". Cancellation passes through."""
    try:
        await work
    except Exception as failure:
        log.failure("could not {what} for migration {migration}", what=what, migration=story.migration)
        story.note(f"could not {what}: {failure}")
