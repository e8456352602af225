"""Two hosts' storage in one process: what the real storage tests run on."""

from __future__ import annotations

import random
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
from sm_file.driver import FileDriver
from twisted.internet import defer, reactor, task
from twisted.internet.utils import getProcessOutputAndValue

from xapi_migrate.sm.interfaces import CopyState, CopyStatus, Purpose, SRConfig, TargetUrl
from xapi_migrate.sm.repository import Repository
from xapi_migrate.sm.services import SMServices
from xapi_migrate.sm.timeouts import SMTimeouts
from xapi_migrate.testing.nbd_guest import NBDClient, NBDError, connect
from xapi_migrate.testing.sr_hosts import QUICK as QUICK

MIB = 1 << 20


@attrs.define
class Host:
    """One host's services and its one SR."""

    services: SMServices
    sr: Repository
    folder: Path


def open_sr(services: SMServices, location: Path, kind: str, sr_uuid: str = "", limit: int = 0) -> Repository:
    config = {"location": str(location), "format": kind, **({"size_limit": str(limit)} if limit else {})}
    record = SRConfig(sr_uuid or str(uuid.uuid4()), "file", config)
    return Repository(record, FileDriver().open_sr(record), services)


async def make_host(folder: Path, kind: str, timeouts: SMTimeouts = QUICK) -> Host:
    (folder / "sr").mkdir(parents=True)
    services = SMServices(reactor, folder / "state", timeouts)
    sr = open_sr(services, folder / "sr", kind)
    await sr.attach()
    return Host(services, sr, folder)


@asynccontextmanager
async def two_hosts(
    folder: Path, sender: str = "raw", receiver: str = "raw", timeouts: SMTimeouts = QUICK
) -> AsyncIterator[tuple[Host, Host]]:
    """Ends everything, and insists that nothing of it is left."""
    hosts = [await make_host(folder / "T", sender, timeouts), await make_host(folder / "R", receiver, timeouts)]
    try:
        yield hosts[0], hosts[1]
    finally:
        for host in hosts:
            await host.services.stop()
        for host in hosts:
            assert host.services.alive().nothing, host.services.alive()


@attrs.define
class Guest:
    """A guest that writes at random places as long as it runs; `failed` counts writes that were refused."""

    client: NBDClient
    seed: int = 1
    written: int = 0
    failed: int = 0
    slowest: float = 0.0
    pause: float = 0.001
    _running: defer.Deferred[None] | None = None
    _stopped: bool = False

    def start(self) -> None:
        self._stopped = False
        self._running = defer.ensureDeferred(self._write())

    async def _write(self) -> None:
        dice = random.Random(self.seed)
        while not self._stopped:
            length = dice.choice((512, 4096, 65536, 200 * 1024))
            offset = dice.randrange((self.client.size - length) // 512) * 512
            what, began = dice.random(), reactor.seconds()
            try:
                if what < 0.8:
                    await self.client.write(offset, dice.randbytes(length))
                elif what < 0.9:
                    await self.client.zeroes(offset, length)
                else:
                    await self.client.trim(offset, length)
                self.written += 1
            except NBDError:
                self.failed += 1
            self.slowest = max(self.slowest, reactor.seconds() - began)
            await task.deferLater(reactor, self.pause)

    async def stop(self) -> None:
        """As a suspended domain: no write is under way, all are flushed."""
        self._stopped = True
        if self._running is not None:
            await self._running
            self._running = None
        await self.client.flush()


@asynccontextmanager
async def guest_on(host: Host, vdi: str, seed: int = 1) -> AsyncIterator[Guest]:
    """A guest with this VDI attached and active; writes when `start`ed."""
    attachment = await host.sr.vdi_attach(vdi, Purpose.DOMAIN)
    await host.sr.vdi_activate(vdi)
    client = await connect(reactor, attachment.socket_path, attachment.export)
    guest = Guest(client, seed)
    try:
        yield guest
    finally:
        guest._stopped = True
        if guest._running is not None:
            await guest._running
        client.close()


async def make_disk(host: Host, size: int, filled: int = 0) -> str:
    """A fresh VDI whose first `filled` bytes are random."""
    vdi = str(uuid.uuid4())
    await host.sr.vdi_create(vdi, size)
    if filled:
        async with guest_on(host, vdi) as guest:
            for offset in range(0, filled, MIB):
                await guest.client.write(offset, random.Random(offset).randbytes(MIB))
            await guest.client.flush()
        await host.sr.vdi_detach(vdi)
    return vdi


async def until(host: Host, ref: str, *states: CopyState, timeout: float = 60.0) -> CopyStatus:
    """Poll as the engine does."""
    deadline = reactor.seconds() + timeout
    while True:
        status = await host.sr.copy_state(ref)
        if status.state in states:
            return status
        assert reactor.seconds() < deadline, f"copy is {status}, wanted {states}"
        await task.deferLater(reactor, 0.02)


async def begin_copy(
    sender: Host, receiver: Host, vdi: str, size: int, ref: str = "copy-1", secure: bool = False
) -> tuple[str, TargetUrl]:
    """A fresh VDI at the receiver and a copy on its way into it."""
    fresh = str(uuid.uuid4())
    await receiver.sr.vdi_create(fresh, size)
    url = await receiver.sr.vdi_get_url(fresh, "migration-1", "127.0.0.1", secure)
    await sender.sr.vdi_copy(vdi, url, ref, None)
    return fresh, url


def image(host: Host, vdi: str) -> Path:
    return next(path for path in (host.folder / "sr").iterdir() if path.stem == vdi)


async def compare(one: Path, other: Path) -> str:
    """ "" when both images show the same disk, else what differs."""
    formats = {".raw": "raw", ".qcow2": "qcow2", ".vhd": "vpc"}
    argv = ["compare", "-f", formats[one.suffix], "-F", formats[other.suffix], str(one), str(other)]
    out, err, code = await getProcessOutputAndValue("qemu-img", argv)
    return "" if code == 0 else (out + err).decode()


def command_lines() -> str:
    """Of all processes of this machine."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                found.append(entry.joinpath("cmdline").read_bytes().decode("utf-8", "replace"))
            except OSError:
                continue
    return "\n".join(found)


def say(request: Any, text: str) -> None:
    """A measured figure, shown with -s."""
    print(f"[{request.node.name}] {text}")
