"""Domains in QEMU, driven over QMP."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.internet import defer, threads
from zope.interface import implementer

from xapi_migrate.domains.driver import Driver
from xapi_migrate.domains.folders import folders
from xapi_migrate.domains.host_memory import linux_memory
from xapi_migrate.domains.interfaces import (
    DomainCapabilities,
    DomainDisk,
    DomainSpec,
    DomainState,
    HostMemory,
    IDomainDriver,
    IRestoration,
    ISuspension,
)
from xapi_migrate.domains.qemu_config import QEMUConfig
from xapi_migrate.domains.qemu_domain import QEMUDomain
from xapi_migrate.domains.qemu_models import QEMUModels
from xapi_migrate.domains.qemu_refusals import STOPPED
from xapi_migrate.domains.qemu_restoration import QEMURestoration
from xapi_migrate.domains.qemu_suspension import QEMUSuspension, give_up_stray, settle

STREAM = "qemu"
"""The name of the stream's format; the machine type that it is for travels in the VM's metadata."""


@implementer(IDomainDriver)
class QEMUDriver(Driver[QEMUDomain]):
    """Keeps its domains in `<state_dir>/domains/<domain id>/`. `host` is what errors call this host."""

    name = "qemu"

    def __init__(
        self,
        reactor: Any,
        state_dir: Path,
        config: QEMUConfig | None = None,
        host: Callable[[], str] = socket.gethostname,
    ) -> None:
        super().__init__(host)
        self._reactor = reactor
        self._root = state_dir / "domains"
        self._config = config or QEMUConfig()
        self._suspensions: dict[str, QEMUSuspension] = {}
        self._disk_watchers: list[Callable[[str, DomainDisk, str], None]] = []
        self._models = QEMUModels(self._config)

    def capabilities(self) -> DomainCapabilities:
        return DomainCapabilities(
            stream=STREAM, takes_socket=True, live=True, machine=self._config.machine, cpu=self._config.cpu
        )

    async def open(self) -> None:
        found = [self._new(folder.name) for folder in await threads.deferToThread(folders, self._root)]
        await defer.gatherResults([defer.Deferred.fromCoroutine(domain.find()) for domain in found], consumeErrors=True)

    async def close(self) -> None:
        domains, self._domains = self._domains, {}
        self._suspensions.clear()
        for domain in domains.values():
            await domain.abandon()

    # -- life and death -----------------------------------------------------------------------

    async def start(self, spec: DomainSpec) -> None:
        known = self._domains.get(spec.domain_id)
        if known is not None:
            if known.spec == spec and await known.state() is DomainState.RUNNING:
                return
            raise self._error(spec.domain_id, "start", "there is a domain with this id already")
        domain = self._new(spec.domain_id)
        try:
            await domain.launch(spec, incoming=False)
        except BaseException:
            self._domains.pop(spec.domain_id, None)
            raise

    async def destroy(self, domain_id: str) -> None:
        domain = self._domains.get(domain_id)
        if domain is None:
            return
        await domain.end()
        self._suspensions.pop(domain_id, None)
        if self._domains.get(domain_id) is domain:
            del self._domains[domain_id]

    async def lose_disk(self, socket_path: str, reason: str) -> None:
        for domain in list(self._domains.values()):
            if domain.spec is not None and any(disk.socket_path == socket_path for disk in domain.spec.disks):
                await domain.crash(reason)

    async def shutdown(self, domain_id: str) -> None:
        domain = self._get(domain_id, "be shut down")
        await self._ask(domain, "be shut down", "system_powerdown")

    # -- stop and go --------------------------------------------------------------------------

    async def pause(self, domain_id: str) -> None:
        domain = self._get(domain_id, "pause")
        await self._only(domain_id, "pause", DomainState.RUNNING, DomainState.PAUSED)
        try:
            await domain.pause()
        except Exception as failure:
            raise domain.error("pause", failure) from failure

    async def unpause(self, domain_id: str) -> None:
        domain = self._get(domain_id, "run")
        if await self._only(domain_id, "run", DomainState.RUNNING, DomainState.PAUSED) is not DomainState.RUNNING:
            try:
                await domain.go_on()
            except Exception as failure:
                raise domain.error("run", failure) from failure
        self._announce(domain)

    async def resume(self, domain_id: str, paused: bool = False) -> None:
        domain = self._get(domain_id, "run again")
        suspension = self._suspensions.pop(domain_id, None)
        if suspension is not None:
            await suspension.cancel()
        try:
            await give_up_stray(domain)
            if await domain.state() in (DomainState.SHUTDOWN, DomainState.CRASHED, DomainState.INCOMING):
                return
            status = await settle(domain)  # a suspend that failed is over before its last run state is
            if not paused:
                await domain.go_on()
            elif status in ("postmigrate", "running", STOPPED):
                await domain.go_on_paused()
        except Exception as failure:
            raise domain.error("run again", failure) from failure

    def _announce(self, domain: QEMUDomain) -> None:
        """Tell the network where the guest is now; nobody waits for it."""
        if domain.spec is None or not any(nic.bridge for nic in domain.spec.nics):
            return
        schedule = {"initial": 50, "max": 550, "rounds": 5, "step": 100}
        told = defer.Deferred.fromCoroutine(domain.ask("announce-self", schedule))
        told.addErrback(
            lambda failure: self.log.failure("domain {domain}: not announced", failure, domain=domain.domain_id)
        )

    # -- streams ------------------------------------------------------------------------------

    async def suspend(self, domain_id: str, fd: int, live: bool = True) -> ISuspension:
        domain = self._get(domain_id, "suspend")
        earlier = self._suspensions.get(domain_id)
        if earlier is not None and not earlier.over:
            raise self._error(domain_id, "suspend", "it is being suspended already")
        await self._only(domain_id, "suspend", DomainState.RUNNING, DomainState.PAUSED)
        suspension = self._suspensions[domain_id] = QEMUSuspension(domain)
        await suspension.begin(fd, live)
        return suspension

    async def restore(self, spec: DomainSpec, fd: int) -> IRestoration:
        if spec.domain_id in self._domains:
            raise self._error(spec.domain_id, "take its memory in", "there is a domain with this id already")
        domain = self._new(spec.domain_id)

        async def destroy() -> None:
            await domain.end()
            if self._domains.get(spec.domain_id) is domain:
                del self._domains[spec.domain_id]

        restoration = QEMURestoration(domain, destroy)
        restoration.begin(spec, fd)
        return restoration

    # -- questions ----------------------------------------------------------------------------

    async def state(self, domain_id: str) -> DomainState:
        domain = self._domains.get(domain_id)
        return DomainState.ABSENT if domain is None else await domain.state()

    def memory(self) -> HostMemory:
        return linux_memory()

    def untouched(self) -> int:
        return sum(domain.untouched() for domain in self._domains.values())

    async def refuses(self, machine: str, cpu: str) -> str:
        return await self._models.refuses(machine or self._config.machine, cpu or self._config.cpu)

    def watch_disks(self, callback: Callable[[str, DomainDisk, str], None]) -> None:
        self._disk_watchers.append(callback)

    # -- inside -------------------------------------------------------------------------------

    def _make(self, domain_id: str) -> QEMUDomain:
        return QEMUDomain(
            self._reactor, self._root / domain_id, domain_id, self._config, self._host, self._tell, self._tell_disk
        )

    async def _ask(self, domain: QEMUDomain, action: str, command: str) -> None:
        try:
            await domain.ask(command)
        except Exception as failure:
            raise domain.error(action, failure) from failure

    def _tell_disk(self, domain_id: str, disk: DomainDisk, why: str) -> None:
        for watcher in list(self._disk_watchers):
            try:
                watcher(domain_id, disk, why)
            except Exception:
                self.log.failure("a watcher of disks failed")
