"""Phase 1, connection: steps 1.1 to 1.4 are the client's calls; 1.5 is the sender's search for a URI that works."""

from __future__ import annotations

from ..steps import Step
from .outgoing import Outgoing


async def connect(migration: Outgoing) -> None:
    """Step 1.5. NoUriAnswered tells what each URI did."""
    migration.story.step(Step.HEAD, f"HEAD on {len(migration.uris)} URIs in order")
    await migration.peer.connect()
    migration.story.note(f"connected to {migration.peer.destination}")
    migration.task.set_other("destination", migration.peer.destination)
    migration.task.set_progress(0.02)
