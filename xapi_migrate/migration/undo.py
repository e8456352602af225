"""Clean-up that goes on: each part is tried, a failure is told and does not keep the others from being done."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from twisted.internet import defer, task
from twisted.logger import Logger

from .host import Host
from .story import Story

log = Logger()


async def attempt(story: Story, what: str, work: Awaitable[Any]) -> bool:
    """Wait for `work`; whether it was done. Its failure is told as "could not {what}: ...". Cancellation passes
    through."""
    try:
        await work
    except defer.CancelledError:
        raise
    except Exception as failure:
        log.failure("could not {what} for migration {migration}", what=what, migration=story.migration)
        story.note(f"could not {what}: {failure}")
        return False
    return True


async def surely(host: Host, story: Story, what: str, work: Callable[[], Awaitable[bool]]) -> None:
    """Do `work` again and again until it says that it is done."""
    while True:
        try:
            if await work():
                return
        except defer.CancelledError:
            raise
        except Exception as failure:
            log.failure("could not {what} for migration {migration}", what=what, migration=story.migration)
            story.note(f"could not {what}, will try again: {failure}")
        await task.deferLater(host.clock, host.config.times.ask)
