"""Storage motion in memory, with what a loss of power takes: each image has what a guest would read from it, and what
is on its disk. A guest's write goes to both images of a mirror that is ready; its flush reaches the one in use
alone."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import attrs
from twisted.internet import reactor
from zope.interface import implementer

from tests.toolstack.small_host import SmallHost, World
from xapi_migrate.domains.interfaces import DomainDisk, DomainSpec, DomainState
from xapi_migrate.errors import CopyFailed, SrBackendFailure, SrNotAttached
from xapi_migrate.migration.claims import Claims
from xapi_migrate.migration.journal import FileJournals
from xapi_migrate.sm.interfaces import IMovesImages, MoveState, MoveStatus, Purpose
from xapi_migrate.testing.fake_sm import FakeSR
from xapi_migrate.toolstack.motion import StorageMotion
from xapi_migrate.toolstack.sender_checks import SenderChecks

SIZE = 512


@attrs.define
class Path:
    """A storage process: `images` the one in use and, from READY on, the mirror's target; each `(SR, VDI)`."""

    images: list[tuple[MovingSR, str]]
    state: MoveState = MoveState.NONE
    to: str = ""
    error: str = ""


class Paths:
    """Those of the host; `on_disk` is what images would have after a loss of power."""

    def __init__(self) -> None:
        self.by_export: dict[str, Path] = {}
        self.on_disk: dict[str, bytes] = {}

    def of(self, vdi: str) -> Path | None:
        return next((path for path in self.by_export.values() if path.images[0][1] == vdi), None)

    def write(self, spec: DomainSpec, disk: DomainDisk, counter: int) -> None:
        """What the guest does before it prints a number: write it, flush it."""
        path = self.by_export.get(disk.export)
        if path is None:
            raise OSError(5, "its storage process is gone")
        for sr, vdi in path.images:
            sr.storage.disks[vdi][:8] = counter.to_bytes(8, "little")
        self.flush(*path.images[0])

    def flush(self, sr: MovingSR, vdi: str) -> None:
        self.on_disk[vdi] = bytes(sr.storage.disks[vdi])

    def lose(self, world: World) -> None:
        """The processes are gone, and so is what was not flushed. Of the SRs nothing is attached any more."""
        self.by_export.clear()
        for sr in world.srs.values():
            for vdi, disk in sr.storage.disks.items():
                disk[:] = self.on_disk.get(vdi, bytes(len(disk)))
            sr._users.clear()
            sr.storage.writers.clear()

    def lose_power(self, world: World) -> None:
        """As `lose`, and the guests are gone too."""
        for guest in world.hypervisor.guests.values():
            world.hypervisor.halt(guest, DomainState.ABSENT)
        world.hypervisor.guests.clear()
        self.lose(world)


PATHS = Paths()


@implementer(IMovesImages)
class MovingSR(FakeSR):
    """As `Repository` with `sm/move.py`."""

    async def vdi_activate(self, uuid: str, purpose: Purpose = Purpose.DOMAIN) -> None:
        await super().vdi_activate(uuid, purpose)
        PATHS.by_export.setdefault(uuid, Path([(self, uuid)]))

    async def vdi_detach(self, uuid: str, purpose: Purpose = Purpose.DOMAIN) -> None:
        await super().vdi_detach(uuid, purpose)
        self._unused(uuid)

    def _unused(self, uuid: str) -> None:
        path = PATHS.of(uuid)
        if path is not None and uuid not in self._users and path.state is MoveState.NONE:
            PATHS.flush(self, uuid)
            PATHS.by_export = {export: one for export, one in PATHS.by_export.items() if one is not path}

    async def move_begin(self, uuid: str, other: Any, to: str) -> None:
        path = PATHS.of(uuid) or PATHS.by_export.setdefault(uuid, Path([(self, uuid)]))
        other.storage.disks[to][:] = self.storage.disks[uuid]
        path.images, path.state, path.to = [(self, uuid), (other, to)], MoveState.READY, to

    async def move_status(self, uuid: str, other: Any, to: str) -> MoveStatus:
        path = PATHS.of(uuid)
        if path is None:
            raise CopyFailed(uuid, "its datapath is gone")
        return MoveStatus(path.state, 1, 1, path.error)

    async def move_settle(self, uuid: str, other: Any, to: str) -> None:
        PATHS.flush(other, to)

    async def move_pivot(self, uuid: str, other: Any, to: str) -> None:
        self._here()
        path = PATHS.of(uuid)
        if path is not None and path.to == to:
            if other is None:
                raise SrBackendFailure(f"VDI {to}", "its SR is not attached")
            if path.state is not MoveState.READY:
                path.images = path.images[:1]
                raise CopyFailed(uuid, path.error or "its mirror is gone")
            PATHS.flush(other, to)  # as the mirror does at its end
            path.images, path.state, path.to = [(other, to)], MoveState.NONE, ""
            if uuid in self._users:
                other._users[to] = self._users.pop(uuid)
                other.storage.writers[to] = other
                self.storage.writers.pop(uuid, None)
            other._unused(to)

    async def move_cancel(self, uuid: str, other: Any, to: str) -> None:
        self._here()
        path = PATHS.of(uuid)
        if path is not None and path.to == to:
            path.images, path.state, path.to = path.images[:1], MoveState.NONE, ""
            self._unused(uuid)

    def _here(self) -> None:
        if not self._is_attached:
            raise SrNotAttached(self.uuid)


def moving_world() -> World:
    """A world without anything in it."""
    PATHS.__init__()  # type: ignore[misc]
    world = World(kind=MovingSR)
    world.hypervisor.write = PATHS.write
    world.hypervisor.interval = 0.002
    return world


class Motions:
    """The storage motion of a SmallHost: `begin` is for `small_host`. `before` is awaited with its name before each
    thing that a motion does, and with `after NAME` when that is done."""

    def __init__(self, folder: Any, before: Callable[[str], Awaitable[None]] | None = None) -> None:
        self._folder = folder
        self._before = before

    async def begin(self, here: SmallHost) -> None:
        records, stack = here.server.records, here.toolstack
        domains: Any = stack.machines._domains

        @asynccontextmanager
        async def turn(task: Any) -> Any:
            yield

        self.motion = StorageMotion(
            records, stack.storage, stack.operations, stack.machines, domains,
            SenderChecks(records, here.host, lambda: "fake"), FileJournals(self._folder / "motions"),
            Claims(lambda: 1 << 40, domains.untouched), reactor, turn, here.server.tasks, stack.unsettled, here.host,
        )  # fmt: skip
        if self._before is None:
            await self.motion.recover()
            return
        for owner, names in (
            (self.motion._work, ("finish", "clear", "undo", "_hold", "_release")),
            (stack.storage, ("create_vdi", "destroy_vdi")), (records, ("flush",)),
            (domains, ("pause", "unpause")),
            *((sr, ("move_begin", "move_settle", "move_status", "move_pivot", "move_cancel"))
              for sr in here.world.srs.values()),
        ):  # fmt: skip
            for name in names:
                self._watch(owner, name)
        journals = self.motion._undertakings._journals
        begin = journals.begin

        def begun(role: str, migration: str) -> Any:
            journal = begin(role, migration)
            self._watch(journal, "record")
            self._watch(journal, "remove")
            return journal

        journals.begin = begun  # type: ignore[method-assign]

    def _watch(self, owner: Any, name: str) -> None:
        done, before = getattr(owner, name), self._before
        assert before is not None

        async def watched(*given: Any, **more: Any) -> Any:
            await before(name)
            value = await done(*given, **more)
            await before(f"after {name}")
            return value

        setattr(owner, name, watched)
