"""Two Xen drivers on one host, each in a folder of its own, and the disks that both see."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import attrs
from twisted.internet import reactor

from tests.domains.bridges import announcements, new_name, ports
from tests.domains.exporter import EXPORT, Exporter
from tests.domains.hosts import MIB, sleep, until
from xapi_migrate.domains.interfaces import DomainDisk, DomainNic, DomainSpec
from xapi_migrate.domains.taps import ip
from xapi_migrate.domains.xen import XenDriver
from xapi_migrate.domains.xen_config import XenConfig

CONFIG = XenConfig(
    kernel="/project/guest-vmlinuz", ramdisk="/project/guest-initrd", arguments="console=hvc0 quiet", tsc_mode="native"
)
MAC = "00:16:3e:00:0a:01"
SLOW = 6.0
"""Emulated hosts on an emulated host take so many times as long as the contract thinks."""


class Bridge:
    """A bridge with a cable in it, whose other end listens: what is sent by the bridge itself is heard there."""

    def __enter__(self) -> Bridge:
        self.name, self._cable, self._ear = new_name(), new_name(), new_name()
        ip("link", "add", "name", self.name, "type", "bridge")
        ip("link", "add", "name", self._cable, "type", "veth", "peer", "name", self._ear)
        for name in (self.name, self._cable, self._ear):
            ip("link", "set", "dev", name, "up")
        ip("link", "set", "dev", self._cable, "master", self.name)
        self._listening = announcements(self._ear)
        self.announced = self._listening.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._listening.__exit__(None, None, None)
        ip("link", "del", "dev", self._cable)
        ip("link", "del", "dev", self.name)

    def ports(self) -> list[str]:
        """What is on it but for the cable."""
        return [port for port in ports(self.name) if port != self._cable]


def numbers(*consoles: Path) -> list[int]:
    """All that the guest has said on these, one after the other."""
    texts = [path.read_text(errors="replace") if path.exists() else "" for path in consoles]
    return [int(number) for text in texts for number in re.findall(r"^TICK (\d+)\r?$", text, re.MULTILINE)]


class XenBench:
    """See DomainBench."""

    def __init__(self, root: Path, here: Bridge, far: Bridge) -> None:
        self.root = root
        self.here, self.far = here, far
        self.sender, self.receiver = self._driver("sender"), self._driver("receiver")
        self._exporters: list[Exporter] = []

    def _driver(self, name: str) -> XenDriver:
        return XenDriver(reactor, self.root / name, CONFIG, host=lambda: name)

    async def __aenter__(self) -> XenBench:
        await self.sender.open()
        await self.receiver.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        for driver in (self.sender, self.receiver):
            for domain_id in await driver.domains():
                await driver.destroy(domain_id)
            await driver.close()
        for exporter in self._exporters:
            await exporter.close()

    async def spec(self) -> DomainSpec:
        number = len(self._exporters)
        image = self.root / f"disk-{number}.raw"
        with image.open("wb") as file:
            file.truncate(4 * MIB)
        exporter = Exporter(self.root / f"exporter-{number}", image)
        self._exporters.append(exporter)
        await exporter.open()
        return self._named(
            DomainSpec("", str(uuid4()), "ticker", 96 * MIB, 1, (DomainDisk("0", str(exporter.socket), EXPORT),)),
            "sender",
        )

    def _named(self, spec: DomainSpec, host: str) -> DomainSpec:
        domain_id = str(uuid4())
        return attrs.evolve(spec, domain_id=domain_id, console_path=str(self.root / host / f"{domain_id}.console"))

    def there(self, spec: DomainSpec) -> DomainSpec:
        nics = tuple(
            attrs.evolve(nic, bridge=self.far.name if nic.bridge == self.here.name else nic.bridge) for nic in spec.nics
        )
        return attrs.evolve(self._named(spec, "receiver"), nics=nics)

    def on_a_bridge(self, spec: DomainSpec) -> DomainSpec:
        return attrs.evolve(spec, nics=(DomainNic("0", MAC, self.here.name),))

    def connected(self) -> tuple[int, int]:
        return len(self.here.ports()), len(self.far.ports())

    def announced(self) -> tuple[list[str], list[str]]:
        return self.here.announced(), self.far.announced()

    def impossible(self, spec: DomainSpec) -> DomainSpec:
        return attrs.evolve(spec, disks=(attrs.evolve(spec.disks[0], export="missing"),))

    def printed(self, *specs: DomainSpec) -> list[int]:
        return numbers(*(Path(spec.console_path) for spec in specs))

    def wire(self) -> tuple[int, int]:
        near, far = socket.socketpair()
        return near.detach(), far.detach()

    async def sleep(self, seconds: float) -> None:
        await sleep(seconds * SLOW)

    async def restart(self) -> None:
        await self.sender.close()
        self.sender = self._driver("sender")
        await self.sender.open()

    async def crash(self, domain_id: str) -> None:
        subprocess.run(["xl", "destroy", domain_id], check=True, stdin=subprocess.DEVNULL, timeout=60)

    # -- beyond the contract ------------------------------------------------------------------

    async def until(self, condition: Callable[[], bool], what: str) -> None:
        await until(condition, what, 60)

    async def running(self) -> DomainSpec:
        """A guest that runs at the sender and has counted for a while."""
        spec = await self.spec()
        await self.sender.start(spec)
        await self.until(lambda: len(self.printed(spec)) > 10, "that the guest counts")
        return spec

    async def datapath_dies(self) -> None:
        await self._exporters[-1].close()

    async def datapath_comes_back(self) -> None:
        self._exporters[-1].socket.unlink()
        await self._exporters[-1].open()

    def image(self) -> Path:
        """Of the last disk."""
        return self._exporters[-1].image

    def kill_call(self, spec: DomainSpec) -> None:
        """SIGKILL to the process that calls libxl for the domain."""
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                argv = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if b"xapi_migrate.domains.xen_call" in argv and spec.domain_id.encode() in argv:
                os.kill(int(entry.name), signal.SIGKILL)
