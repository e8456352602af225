"""One domain on Xen: its folder, its block devices, and what Xen says of it.

In the folder: `spec.json` (which hardware), `config.json` (the same in libxl's words), `boot` (the host's, in which it
was built), `lock` (see xen_call). The folder is the domain: it is made first and removed last. Xen knows the domain by
its id, as its name.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.internet import defer, threads
from twisted.logger import Logger

from xapi_migrate.domains import xen_disks, xen_watch
from xapi_migrate.domains.folders import SPEC, spec_from_json, write_spec
from xapi_migrate.domains.interfaces import DomainSpec, DomainState
from xapi_migrate.domains.taps import is_bridge
from xapi_migrate.domains.xen_call import CONFIG
from xapi_migrate.domains.xen_config import XenConfig
from xapi_migrate.domains.xen_hardware import config
from xapi_migrate.domains.xen_processes import call
from xapi_migrate.errors import DomainError
from xapi_migrate.processes.child import boot_id
from xapi_migrate.processes.in_thread import in_thread

BOOT = "boot"
STATES = {
    xen_watch.RUNNING: DomainState.RUNNING,
    xen_watch.PAUSED: DomainState.PAUSED,
    xen_watch.SUSPENDED: DomainState.SUSPENDED,
    xen_watch.SHUTDOWN: DomainState.SHUTDOWN,
    xen_watch.REBOOT: DomainState.RUNNING,  # it is about to
    xen_watch.CRASHED: DomainState.CRASHED,
}
"""xen_watch's words, as this project calls them."""


def _prepare(folder: Path, spec: DomainSpec, xen: XenConfig) -> None:
    """The folder, and the domain's block devices."""
    for nic in spec.nics:
        if nic.bridge and not is_bridge(nic.bridge):
            raise ValueError(f"there is no bridge {nic.bridge} on this host")
    folder.mkdir(parents=True, mode=0o700)
    (folder / BOOT).write_text(boot_id())
    write_spec(folder, spec)
    devices = {}
    for disk in spec.disks:
        try:
            devices[disk.device] = f"/dev/nbd{xen_disks.attach(spec.domain_id, disk)}"
        except OSError as failure:
            raise OSError(f"its disk {disk.device} cannot be attached: {failure.strerror or failure}") from failure
    (folder / CONFIG).write_text(config(spec, xen, devices))


def _detach(spec: DomainSpec | None) -> None:
    if spec is not None:
        for disk in spec.disks:
            xen_disks.detach(spec.domain_id, disk)


def _remove(folder: Path, spec: DomainSpec | None) -> None:
    _detach(spec)
    shutil.rmtree(folder, ignore_errors=True)


class XenDomain:
    """Builds, finds and ends one domain; knows nothing of streams."""

    log = Logger()

    def __init__(self, reactor: Any, folder: Path, domain_id: str, xen: XenConfig, host: Callable[[], str]) -> None:
        self.reactor = reactor
        self.folder = folder
        self.domain_id = domain_id
        self.xen = xen
        self.spec: DomainSpec | None = None
        self.incoming = False
        """Whether it waits for, or reads, a memory stream."""
        self.why = ""
        """See IDomainDriver.why."""
        self.gone = False
        """Ended, or let go of: what Xen says of it does not matter any more."""
        self.building = False
        """It is not there as a whole yet."""
        self.counted = False
        """Xen knows it, and counts its memory."""
        self.of_this_boot = True
        """Whether this host has not been started anew since it was built."""
        self.rebooting = False
        """A new domain is built in its place."""
        self.told: DomainState | None = None
        """What its watchers were told last."""
        self._host = host

    # -- its beginning and its end ------------------------------------------------------------

    async def prepare(self, spec: DomainSpec) -> None:
        """Make all that the domain stands on, but not the domain. `end` takes it away, also when this fails."""
        self.spec, self.building = spec, True
        try:
            await in_thread(_prepare, self.folder, spec, self.xen)
        except FileExistsError as failure:
            raise self.error("be made", "there is a domain with this id already") from failure

    async def find(self) -> None:
        """Take over a domain of an earlier daemon."""
        self.counted = True
        try:
            self.of_this_boot = await in_thread((self.folder / BOOT).read_text) == boot_id()
            self.spec = spec_from_json(await in_thread((self.folder / SPEC).read_text))
        except (OSError, ValueError, TypeError, KeyError) as failure:
            self.log.warn(
                "domain {domain}: its description cannot be read: {reason}", domain=self.domain_id, reason=failure
            )

    async def end(self) -> None:
        """Destroy it, and remove its devices and its folder; repeatable."""
        self.gone = True
        await self._destroy()
        await in_thread(_remove, self.folder, self.spec)

    async def crash(self, reason: str) -> None:
        """End it as if its machine had lost its power. It stays known, `crashed` for this reason."""
        self.log.error(
            "domain {domain} of VM {vm} on host {host} is ended: {reason}",
            domain=self.domain_id, vm=self.spec.vm_uuid if self.spec else "?", host=self._host(), reason=reason,
        )  # fmt: skip
        self.why = reason
        # Requests that wait for the datapath would be made again at the disk's next one. They fail now, with a guest
        # that does not see that any more.
        if await call(self.reactor, "pause", self.domain_id, self.folder, self.xen.timeouts.call) == "":
            await in_thread(_detach, self.spec)
        await self._destroy()
        await in_thread(_detach, self.spec)

    async def _destroy(self) -> None:
        if await in_thread(self.folder.is_dir):
            await self.call("be destroyed", "destroy")

    # -- what it is asked ---------------------------------------------------------------------

    async def call(self, action: str, verb: str) -> None:
        """One call of libxl. DomainError if it fails."""
        failure = await call(self.reactor, verb, self.domain_id, self.folder, self.xen.timeouts.call)
        if failure:
            raise self.error(action, failure)

    async def settle(self) -> None:
        """It stands still: wait until its I/O is complete and flushed. OSError."""
        limit = self.xen.timeouts.settle
        for disk in self.spec.disks if self.spec is not None else ():
            # A flush that nobody answers ends with the domain, and nobody waits for it.
            settled = threads.deferToThread(xen_disks.settle, self.domain_id, disk, limit)
            try:
                await settled.addTimeout(2 * limit, self.reactor)
            except defer.TimeoutError:
                raise OSError(5, f"its disk {disk.device} does not take what was written to it") from None

    async def mend(self) -> bool:
        """Give each of its disks that lost its datapath the one that is there now; whether all have one."""
        well = True
        for disk in self.spec.disks if self.spec is not None else ():
            try:
                await in_thread(xen_disks.mend, self.domain_id, disk)
            except OSError:
                well = False
        return well

    def state(self, word: str | None) -> DomainState:
        """What it does, by xen_watch's word; None: Xen does not know it."""
        if self.incoming:
            return DomainState.INCOMING
        if self.rebooting:
            return DomainState.RUNNING
        return STATES[word] if word else DomainState.CRASHED

    def error(self, action: str, cause: BaseException | str) -> BaseException:
        """The error to raise when the domain could not do something: a DomainError, unless it was cancelled."""
        if isinstance(cause, DomainError | defer.CancelledError | GeneratorExit):
            return cause
        reason = cause if isinstance(cause, str) else str(cause) or type(cause).__name__
        return DomainError(domain=self.domain_id, host=self._host(), action=action, reason=reason)
