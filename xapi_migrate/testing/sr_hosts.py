"""Backends under the contract suites: one by itself, or two on two hosts with everything between them real
(qemu-storage-daemon, tgtd, copiers).

    for_pytest(BACKEND_CHECKS, partial(one_sr, MyDriver(), scratch))
    for_pytest(SR_CHECKS, partial(two_srs, (MyDriver(), scratch), (FolderDriver(), FolderDriver().scratch)))

`scratch` makes the device_config of an empty SR in a folder; called again for the same folder it means the same SR.
"""

from __future__ import annotations

import uuid as uuids
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from twisted.internet import reactor, task

from xapi_migrate.sm.interfaces import Attachment, ISMDriver, ISRBackend, SRConfig
from xapi_migrate.sm.repository import Repository, open_repository
from xapi_migrate.sm.services import SMServices
from xapi_migrate.sm.timeouts import SMTimeouts
from xapi_migrate.testing.nbd_guest import NBDClient, NBDError, connect
from xapi_migrate.testing.sm_contract import BackendFactory, SRKit

Scratch = Callable[[Path], dict[str, str]]
QUICK = SMTimeouts(stall=1.0, guard=1.5, attach=1.5, identity=3.0, poll=0.1, replacements=2, stale_writes=2.0)
"""For tests: what does not answer is given up soon."""


@asynccontextmanager
async def one_sr(
    driver: ISMDriver, scratch: Scratch, folder: Path, keep: bool = False
) -> AsyncIterator[BackendFactory]:
    """What BACKEND_CHECKS take. VDIs that a check left are destroyed, unless `keep`."""
    record = SRConfig(str(uuids.uuid4()), driver.name, scratch(folder))

    def make() -> ISRBackend:
        return driver.open_sr(record)

    try:
        yield make
    finally:
        if not keep:
            last = make()
            await last.attach()
            for info in await last.scan():
                await last.vdi_destroy(info.uuid)


@asynccontextmanager
async def two_srs(
    ours: tuple[ISMDriver, Scratch],
    theirs: tuple[ISMDriver, Scratch],
    folder: Path,
    timeouts: SMTimeouts = QUICK,
    resizes: bool | None = None,
) -> AsyncIterator[SRKit]:
    """What SR_CHECKS take: an attached SR on each of two hosts, whose folders have short names (sockets are in them).
    Everything is ended afterwards; what lives on then is an AssertionError. `resizes` None: as the driver says."""
    hosts = [SMServices(reactor, folder / name, timeouts) for name in "TR"]
    srs = []
    guests = Guests()
    try:
        for host, name, (driver, scratch) in zip(hosts, "TR", (ours, theirs), strict=True):
            place = folder / f"sr-{name}"
            place.mkdir()
            srs.append(open_repository(driver, SRConfig(str(uuids.uuid4()), driver.name, scratch(place)), host))
            await srs[-1].attach()
        most = (await srs[0].stat()).total
        grows = "VDI_RESIZE" in ours[0].features if resizes is None else resizes
        yield SRKit(srs[0], srs[1], most, guests.write, guests.read, _wait, grows)
    finally:
        guests.close()
        for host in hosts:
            await host.stop()
        for sr in srs:
            await _empty(sr)
        for host in hosts:
            assert host.alive().nothing, host.alive()


class Guests:
    """A guest's I/O on any attachment; connections are kept."""

    def __init__(self) -> None:
        self._clients: dict[Attachment, NBDClient] = {}

    async def write(self, attachment: Attachment, offset: int, data: bytes) -> None:
        """OSError when it is refused."""
        client = await self._client(attachment)
        try:
            await client.write(offset, data)
        except NBDError as failure:
            raise OSError(failure.number, str(failure)) from failure

    async def read(self, attachment: Attachment, offset: int, length: int) -> bytes:
        client = await self._client(attachment)
        try:
            return await client.read(offset, length)
        except NBDError as failure:
            raise OSError(failure.number, str(failure)) from failure

    def close(self) -> None:
        for client in self._clients.values():
            client.close()

    async def _client(self, attachment: Attachment) -> NBDClient:
        known = self._clients.get(attachment)
        if known is None or known.lost:
            known = self._clients[attachment] = await connect(reactor, attachment.socket_path, attachment.export)
        return known


async def _wait(seconds: float) -> None:
    await task.deferLater(reactor, seconds)


async def _empty(sr: Repository) -> None:
    await sr.attach()
    for info in await sr.scan():
        await sr.vdi_destroy(info.uuid)
    await sr.detach()
