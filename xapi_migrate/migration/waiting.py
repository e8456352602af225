"""A sender that waits its turn on this host: the VM is left alone, the receiver keeps its offer, the client may cancel.
Nothing is in the journal yet: if the daemon ends meanwhile nothing has been done, and the task says so."""

from __future__ import annotations

from collections.abc import Awaitable

from ..errors import TaskCancelled
from ..moment import Moment
from ..together import unless
from .heartbeat import Pulse
from .host import Host, TaskHandle
from .interfaces import IPeer
from .queue import Turn
from .story import Story

WAITING = "waiting"
"""The key of a task's other_config that says what it waits for; BEHIND how many migrations come before it."""
BEHIND = "behind"


def tell_place(task: TaskHandle, what: str, behind: int) -> None:
    """In a task's other_config: it waits, `what` for, behind so many; 0: no longer."""
    task.set_other(WAITING, what if behind else "")
    task.set_other(BEHIND, str(behind) if behind else "")


async def wait_for_turn(
    host: Host, turn: Turn, task: TaskHandle, peer: IPeer, story: Story, over: Moment[None]
) -> None:
    """Fires when the turn has come, at once if it has; fails with what `over` fails with. NoUriAnswered if the receiver
    is not there to begin with, HeartbeatLost if it is silent for too long, MigrationAborted; TaskCancelled."""
    if turn.has_come:
        return
    pulse = Pulse(host.clock, host.config.times, peer, story, _nothing, over.fail)
    try:
        story.note(f"waits behind {turn.behind} other migrations from this host")
        await _unless_over(_reached(peer, pulse, turn), task, over)
    finally:
        pulse.stop()
    story.note("its turn has come")


async def wait_alone(turn: Turn, task: TaskHandle, over: Moment[None]) -> None:
    """The same where there is no receiver that has to keep an offer."""
    if not turn.has_come:
        await _unless_over(turn.wait(), task, over)


async def _unless_over(waiting: Awaitable[None], task: TaskHandle, over: Moment[None]) -> None:
    task.on_cancel(lambda: over.fail(TaskCancelled(task.ref)))
    spoiler = over.wait()
    try:
        await unless(waiting, spoiler)
    finally:
        task.on_cancel(None)
        spoiler.addErrback(lambda _: None)
        spoiler.cancel()
        tell_place(task, "", 0)


async def _reached(peer: IPeer, pulse: Pulse, turn: Turn) -> None:
    await peer.connect()
    pulse.start()
    await turn.wait()


async def _nothing() -> None:
    """Another URI answers now: there is no copy to be led there yet."""
