"""Domains on Xen, in its dom0, driven by libxl."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.internet import defer, task
from zope.interface import implementer

from xapi_migrate.domains import xen_watch
from xapi_migrate.domains.announcement import announce
from xapi_migrate.domains.driver import Driver
from xapi_migrate.domains.folders import folders
from xapi_migrate.domains.interfaces import (
    GONE,
    DomainCapabilities,
    DomainDisk,
    DomainSpec,
    DomainState,
    HostMemory,
    IDomainDriver,
    IRestoration,
    ISuspension,
)
from xapi_migrate.domains.xen_config import XenConfig
from xapi_migrate.domains.xen_domain import XenDomain
from xapi_migrate.domains.xen_links import LinkDeaths
from xapi_migrate.domains.xen_processes import XenWatch
from xapi_migrate.domains.xen_streams import XenRestoration, XenSuspension
from xapi_migrate.errors import DomainError
from xapi_migrate.processes.in_thread import in_thread

STREAM = "libxl"
"""The name of the stream's format; it carries its version itself."""


@implementer(IDomainDriver)
class XenDriver(Driver[XenDomain]):
    """Keeps its domains in `<state_dir>/domains/<domain id>/`; Xen knows them by their ids. Others' domains on this
    host are none of its business. `host` is what errors call this host."""

    name = "xen"

    def __init__(
        self,
        reactor: Any,
        state_dir: Path,
        config: XenConfig | None = None,
        host: Callable[[], str] = socket.gethostname,
    ) -> None:
        super().__init__(host)
        self._reactor = reactor
        self._root = state_dir / "domains"
        self._config = config or XenConfig()
        self._suspensions: dict[str, XenSuspension] = {}
        self._restorations: dict[str, XenRestoration] = {}
        timeouts = self._config.timeouts
        self._xen = XenWatch(reactor, timeouts.question, timeouts.retry, self._changed)
        self._work: set[defer.Deferred[None]] = set()
        self._links: LinkDeaths | None = None
        self._deaths = 0
        """Of disks' connections, since all of them were well."""

    def capabilities(self) -> DomainCapabilities:
        return DomainCapabilities(stream=STREAM, takes_socket=True, live=True, machine=self._config.machine, cpu="")

    async def open(self) -> None:
        for folder in await in_thread(folders, self._root):
            await self._new(folder.name).find()
        try:
            await self._xen.ask()
            self._links = await in_thread(LinkDeaths, self._reactor, self._link_died)
            self._links.start()
        except OSError as failure:
            raise OSError(f"Xen's domains on host {self._host()} cannot be found: {failure}") from failure
        self._link_died()

    async def close(self) -> None:
        for suspension in list(self._suspensions.values()):
            await suspension.cancel()
        for restoration in list(self._restorations.values()):
            await restoration.cancel()
        for work in list(self._work):
            work.cancel()
        self._domains.clear()
        if self._links is not None:
            self._links.close()
        await self._xen.close()

    # -- life and death -----------------------------------------------------------------------

    async def start(self, spec: DomainSpec) -> None:
        known = self._domains.get(spec.domain_id)
        if known is not None:
            if known.spec == spec and await self.state(spec.domain_id) is DomainState.RUNNING:
                return
            raise self._error(spec.domain_id, "start", "there is a domain with this id already")
        domain = self._new(spec.domain_id)
        try:
            await domain.prepare(spec)
            await domain.call("start", "create")
            domain.building = False
        except BaseException as failure:
            error = domain.error("start", failure)
            await self.destroy(spec.domain_id)
            raise error from failure

    async def destroy(self, domain_id: str) -> None:
        domain = self._domains.get(domain_id)
        if domain is None:
            return
        suspension = self._suspensions.pop(domain_id, None)
        domain.gone = True
        if suspension is not None:
            await suspension.cancel()
        await domain.end()
        if self._domains.get(domain_id) is domain:
            del self._domains[domain_id]

    async def lose_disk(self, socket_path: str, reason: str) -> None:
        for domain in list(self._domains.values()):
            if domain.spec is not None and any(disk.socket_path == socket_path for disk in domain.spec.disks):
                await domain.crash(reason)

    async def shutdown(self, domain_id: str) -> None:
        await self._get(domain_id, "be shut down").call("be shut down", "shutdown")

    # -- stop and go --------------------------------------------------------------------------

    async def pause(self, domain_id: str) -> None:
        domain = self._get(domain_id, "pause")
        if await self._only(domain_id, "pause", DomainState.RUNNING, DomainState.PAUSED) is DomainState.RUNNING:
            await domain.call("pause", "pause")
            try:
                await domain.settle()
            except OSError as failure:
                await domain.call("run again", "unpause")
                raise domain.error("pause", failure) from failure

    async def unpause(self, domain_id: str) -> None:
        domain = self._get(domain_id, "run")
        if await self._only(domain_id, "run", DomainState.RUNNING, DomainState.PAUSED) is not DomainState.RUNNING:
            await domain.call("run", "unpause")
        if domain.spec is not None:
            self._background(announce(self._reactor, domain.spec.nics))

    async def resume(self, domain_id: str, paused: bool = False) -> None:
        domain = self._get(domain_id, "run again")
        suspension = self._suspensions.pop(domain_id, None)
        if suspension is not None:
            await suspension.cancel()
        state = await self.state(domain_id)
        if state in GONE:
            raise self._error(domain_id, "run again", f"it is {state.value}")
        await domain.call("run again", "resume")
        if paused:
            await self.pause(domain_id)
        elif await self.state(domain_id) is DomainState.PAUSED:
            await domain.call("run again", "unpause")

    # -- streams ------------------------------------------------------------------------------

    async def suspend(self, domain_id: str, fd: int, live: bool = True) -> ISuspension:
        domain = self._get(domain_id, "suspend")
        earlier = self._suspensions.get(domain_id)
        if earlier is not None and not earlier.over:
            raise self._error(domain_id, "suspend", "it is being suspended already")
        if await self._only(domain_id, "suspend", DomainState.RUNNING, DomainState.PAUSED) is DomainState.PAUSED:
            # a guest on Xen takes part in its suspend, and has to run for that
            await domain.call("suspend", "unpause")
        suspension = self._suspensions[domain_id] = XenSuspension(domain, fd, live)
        return suspension

    async def restore(self, spec: DomainSpec, fd: int) -> IRestoration:
        if spec.domain_id in self._domains:
            raise self._error(spec.domain_id, "take its memory in", "there is a domain with this id already")
        domain = self._new(spec.domain_id)

        async def destroy() -> None:
            self._restorations.pop(spec.domain_id, None)
            await self.destroy(spec.domain_id)

        restoration = self._restorations[spec.domain_id] = XenRestoration(domain, spec, fd, destroy)
        restoration.finished().addCallbacks(lambda _: self._restorations.pop(spec.domain_id, None), lambda _: None)
        return restoration

    # -- questions ----------------------------------------------------------------------------

    async def state(self, domain_id: str) -> DomainState:
        domain = self._domains.get(domain_id)
        if domain is None:
            return DomainState.ABSENT
        try:
            words = await self._xen.ask()
        except OSError as failure:
            raise domain.error("say what it is doing", failure) from failure
        return domain.state(words.get(domain_id)) if domain_id in self._domains else DomainState.ABSENT

    def memory(self) -> HostMemory:
        return self._xen.memory

    def untouched(self) -> int:
        built = [domain.spec for domain in self._domains.values() if not domain.counted and domain.spec is not None]
        return sum(spec.memory for spec in built)

    async def refuses(self, machine: str, cpu: str) -> str:
        if machine not in ("", self._config.machine):
            return f"domains of host {self._host()} are {self._config.machine}, not {machine}"
        return f"domains of host {self._host()} have no CPU model, so not {cpu}" if cpu else ""

    def watch_disks(self, callback: Callable[[str, DomainDisk, str], None]) -> None:
        """Nobody is ever called: on Xen a disk that refuses a request refuses it to the guest."""

    # -- inside -------------------------------------------------------------------------------

    def _make(self, domain_id: str) -> XenDomain:
        return XenDomain(self._reactor, self._root / domain_id, domain_id, self._config, self._host)

    def _background(self, work: Any) -> None:
        running = defer.Deferred.fromCoroutine(work)
        self._work.add(running)
        running.addErrback(lambda failure: failure.trap(defer.CancelledError) and None)
        running.addErrback(lambda failure: self.log.failure("work on domains failed", failure))
        running.addBoth(lambda _: self._work.discard(running))

    def _link_died(self) -> None:
        self._deaths += 1
        if self._deaths == 1:
            self._background(self._mend())

    async def _mend(self) -> None:
        """A disk whose datapath died gets the one that comes in its place, whenever that is. Until then its requests
        wait in the kernel."""
        try:
            while True:
                seen, well = self._deaths, True
                for domain in list(self._domains.values()):
                    if not (domain.gone or domain.building):
                        well = await domain.mend() and well
                if well and seen == self._deaths:
                    return
                await task.deferLater(self._reactor, self._config.timeouts.retry)
        finally:
            self._deaths = 0

    # -- what Xen says ------------------------------------------------------------------------

    def _changed(self, words: dict[str, str]) -> None:
        for domain in list(self._domains.values()):
            word = words.get(domain.domain_id)
            domain.counted = domain.counted or word is not None
            if domain.gone or domain.building or domain.rebooting or domain.spec is None:
                continue
            suspension = self._suspensions.get(domain.domain_id)
            if word == xen_watch.SUSPENDED and suspension is not None:
                suspension.stands_still()
            elif word == xen_watch.REBOOT:
                self._background(self._reboot(domain))
            else:
                self._tell_once(domain, domain.state(word))

    async def _reboot(self, domain: XenDomain) -> None:
        """The guest asked for a reset: on Xen that is a new domain in the place of the old one."""
        domain.rebooting = True
        try:
            await domain.call("be reset", "destroy")
            await domain.call("be reset", "create")
        except DomainError as failure:
            domain.why = str(failure)
            raise
        finally:
            domain.rebooting = False
            await self._xen.ask()  # where it could not be built again it is told of as crashed

    def _tell_once(self, domain: XenDomain, state: DomainState) -> None:
        if state not in (DomainState.SHUTDOWN, DomainState.CRASHED) or domain.told is state:
            return
        domain.told = state
        if state is DomainState.CRASHED and not domain.why and domain.of_this_boot:
            domain.why = "its guest crashed, or somebody destroyed it"
        self._tell(domain.domain_id, state)
