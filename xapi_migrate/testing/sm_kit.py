"""What the checks of the storage contract are given, and what they have in common."""

from __future__ import annotations

import uuid as uuids
from collections.abc import Awaitable, Callable
from typing import TypeVar

import attrs

from xapi_migrate.sm.interfaces import (
    ISR,
    Attachment,
    CopyState,
    CopyStatus,
    ISRBackend,
    Purpose,
)

MIB = 1 << 20
SIZE = 8 * MIB
_E = TypeVar("_E", bound=Exception)


@attrs.frozen
class SRKit:
    """`ours` and `theirs`: attached SRs of two hosts, at least 64 MiB free in each. `ours` has at most `most` bytes
    free. `write` and `read` are a guest's I/O on an attachment of `ours` or `theirs` (write raises OSError when it is
    refused); `wait` lets that many seconds pass for the copies. `resizes`: whether VDIs of `ours` can grow."""

    ours: ISR
    theirs: ISR
    most: int
    write: Callable[[Attachment, int, bytes], Awaitable[None]]
    read: Callable[[Attachment, int, int], Awaitable[bytes]]
    wait: Callable[[float], Awaitable[None]]
    resizes: bool = True


def new_uuid() -> str:
    return str(uuids.uuid4())


async def raises(error: type[_E], call: Awaitable[object]) -> _E:
    """The error that the call must end with."""
    try:
        await call
    except error as raised:
        return raised
    raise AssertionError(f"{error.__name__} was not raised")


async def state_of(kit: SRKit, ref: str, wanted: CopyState) -> CopyStatus:
    """Wait, a minute at most, until a copy of `ours` is there."""
    for _ in range(1200):
        status = await kit.ours.copy_state(ref)
        if status.state is wanted:
            return status
        if status.state in (CopyState.FAILED, CopyState.FINISHED):
            break
        await kit.wait(0.05)
    raise AssertionError(f"copy {ref} is {status}, not {wanted.value}")


async def new_source(kit: SRKit, content: bytes) -> tuple[str, Attachment]:
    vdi = new_uuid()
    await kit.ours.vdi_create(vdi, SIZE)
    attachment = await kit.ours.vdi_attach(vdi, Purpose.DOMAIN)
    await kit.ours.vdi_activate(vdi)
    for offset in range(0, SIZE, MIB):
        await kit.write(attachment, offset, content * (4096 // len(content)))
    return vdi, attachment


BackendFactory = Callable[[], ISRBackend]
"""Gives the backend object of one empty SR with 64 MiB free at least; called twice for the same SR it stands for a
second host or a restarted daemon."""
