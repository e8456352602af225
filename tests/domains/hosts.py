"""Two hosts' QEMU drivers and the disks that both see, for the tests in this folder."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import attrs
from twisted.internet import reactor, task

from tests.domains.exporter import EXPORT, Exporter
from xapi_migrate.domains.interfaces import DomainDisk, DomainSpec, DomainState, ISuspension
from xapi_migrate.domains.qemu import QEMUDriver
from xapi_migrate.domains.qemu_config import QEMUConfig
from xapi_migrate.domains.qemu_refusals import STOPPED
from xapi_migrate.testing.guests import ticker

MIB = 1 << 20


async def sleep(seconds: float) -> None:
    await task.deferLater(reactor, seconds)


async def until(condition: Any, what: str, seconds: float = 20.0) -> None:
    """Wait for a condition; AssertionError with `what` when it does not come."""
    end = reactor.seconds() + seconds
    while not condition():
        assert reactor.seconds() < end, f"{what}: not within {seconds:g} s"
        await sleep(0.01)


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        near = socket.create_connection(listener.getsockname())
        far, _ = listener.accept()
    return near, far


class Drain:
    """Reads a socket in a thread, as fast as it can, until told to rest."""

    def __init__(self, source: socket.socket) -> None:
        self.received = 0
        self._source = source
        self._rest = threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        self._source.settimeout(0.01)
        while not self._rest.is_set():
            try:
                data = self._source.recv(1 << 18)
            except TimeoutError:
                continue
            except OSError:
                return
            if not data:
                return
            self.received += len(data)

    def rest(self) -> None:
        self._rest.set()
        self._thread.join()


class Hosts:
    """`sender` and `receiver`: a driver each, in a folder each. Takes everything away when it is left."""

    def __init__(self, root: Path, config: QEMUConfig | None = None) -> None:
        self.root = root
        self.config = config or QEMUConfig()
        self.sender = self.driver("sender")
        self.receiver = self.driver("receiver")
        self._drivers = [self.sender, self.receiver]
        self._exporters: list[Exporter] = []
        self.told: list[tuple[str, DomainState]] = []
        """What the sender's driver said of domains that changed by themselves."""

    def driver(self, name: str) -> QEMUDriver:
        return QEMUDriver(reactor, self.root / name, self.config, host=lambda: name)

    async def __aenter__(self) -> Hosts:
        await self.sender.open()
        await self.receiver.open()
        self.sender.watch(lambda *change: self.told.append(change))
        return self

    async def restart_sender(self) -> None:
        """The sender's daemon ends and a new one begins."""
        await self.sender.close()
        self.sender = self._drivers[0] = self.driver("sender")
        await self.sender.open()

    async def __aexit__(self, *_: object) -> None:
        for driver in self._drivers:
            for domain_id in await driver.domains():
                await driver.destroy(domain_id)
            await driver.close()
        for exporter in self._exporters:
            await exporter.close()

    async def send_memory(
        self, here: DomainSpec, there: DomainSpec, pair: Callable[[], Any] = socket.socketpair
    ) -> ISuspension:
        """All of it, from the sender's domain to the receiver's, which is paused then; the suspension."""
        near, far = pair()
        with near, far:
            restoration = await self.receiver.restore(there, far.fileno())
            await restoration.accepting()
            suspension = await self.sender.suspend(here.domain_id, near.fileno())
            await suspension.suspended()
            await suspension.proceed()
            await suspension.finished()
            await restoration.finished()
        return suspension

    async def disk(self, guest: ticker.Ticker | None = None, size: int = 4 * MIB) -> Exporter:
        """A disk that boots the guest, exported."""
        folder = self.root / f"disk-{len(self._exporters)}"
        folder.mkdir()
        ticker.write_image(folder / "image", size, guest)
        return await self.export(folder / "image")

    async def export(self, image: Path) -> Exporter:
        """A raw file, exported."""
        folder = self.root / f"exporter-{len(self._exporters)}"
        exporter = Exporter(folder, image)
        self._exporters.append(exporter)
        return await exporter.open()

    def spec(self, *disks: Exporter, host: str = "sender", memory: int = 64 * MIB, vm_uuid: str = "") -> DomainSpec:
        domain_id = str(uuid4())
        return DomainSpec(
            domain_id=domain_id,
            vm_uuid=vm_uuid or str(uuid4()),
            name="ticker, on test",
            memory=memory,
            vcpus=1,
            disks=tuple(DomainDisk(str(n), str(disk.socket), EXPORT) for n, disk in enumerate(disks)),
            console_path=str(self.root / host / "consoles" / f"{domain_id}.log"),
        )

    def there(self, spec: DomainSpec) -> DomainSpec:
        """The same hardware, as the receiver builds it."""
        domain_id = str(uuid4())
        console = str(self.root / "receiver" / "consoles" / f"{domain_id}.log")
        return attrs.evolve(spec, domain_id=domain_id, console_path=console)

    @staticmethod
    def console(*specs: DomainSpec) -> ticker.Console:
        """What the guest said, on its way through several domains."""
        return ticker.read(*(Path(spec.console_path) for spec in specs))

    async def ticks(self, *specs: DomainSpec, more: int = 10) -> None:
        """Wait until the guest has printed so many more numbers."""
        now = len(self.console(*specs).counters)
        await until(lambda: len(self.console(*specs).counters) >= now + more, "the guest's ticks")

    async def refused(self, spec: DomainSpec) -> None:
        """Wait until a disk has refused a request of the sender's guest and QEMU has stopped it."""
        domain = self.sender._domains[spec.domain_id]
        end = reactor.seconds() + 20
        while (await domain.ask("query-status"))["status"] != STOPPED:
            assert reactor.seconds() < end, "no request is refused"
            await sleep(0.01)

    async def running(self, guest: ticker.Ticker | None = None, memory: int = 64 * MIB) -> tuple[DomainSpec, Exporter]:
        """A guest that runs at the sender and has ticked for a while."""
        disk = await self.disk(guest)
        spec = self.spec(disk, memory=memory)
        await self.sender.start(spec)
        await self.ticks(spec, more=60)
        return spec, disk
