"""Requests that a domain's disk has refused. QEMU stops the domain at one and keeps it (werror=stop), and nobody but us
lets it go on.

To everybody else such a domain runs: its guest waits for its disk. It is let go on once in a while, for as long as it
takes; QEMU makes the requests again then, and stops it again if they are refused again. Where QEMU says that it stopped
the domain for such a request, the domain had been let run here and its memory is still its own: nothing is resumed by
this that is not to run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from twisted.internet import defer, task
from twisted.logger import Logger

from xapi_migrate.domains.interfaces import DomainDisk
from xapi_migrate.processes.qmp import Event, QMPError
from xapi_migrate.together import started, together

if TYPE_CHECKING:
    from xapi_migrate.domains.qemu_domain import QEMUDomain

STOPPED = "io-error"
"""QEMU's run state of such a domain, and of one that was received from such a domain."""


READS, WRITES = ("rd_operations",), ("wr_operations", "flush_operations", "unmap_operations")
"""What QEMU counts of a device's requests when they have succeeded, by kind."""


class Refusals:
    """Of one domain. `tell`: see IDomainDriver.watch_disks."""

    log = Logger()

    def __init__(self, domain: QEMUDomain, tell: Callable[[str, DomainDisk, str], None]) -> None:
        self._domain = domain
        self._tell = tell
        self.any = False
        """A disk refused a request since the domain was last let go on."""
        self._held = False
        self._retrying: defer.Deferred[None] | None = None
        self._refused: dict[str, set[str]] = {}
        """The disks for which the guest waits, by device, and what of each has to succeed before it does not."""
        self._before: dict[str, int] = {}
        """How much of that had succeeded when the domain was let go on after the latest refusal."""
        self._lately: set[str] = set()
        """The disks that refused something since it was last let go on."""

    def seen(self, data: Event) -> None:
        """QEMU has stopped the domain."""
        self.any = True
        device, operation = str(data.get("node-name", "")).removeprefix("disk"), str(data.get("operation"))
        self._refused.setdefault(device, set()).update(READS if operation == "read" else WRITES)
        why = f"refuses to {operation}: {data.get('reason')}"
        self._lately.add(device)
        disk = self._disk(device)
        if self._retrying is None and not self._held:
            spec = self._domain.spec
            self.log.warn(
                "{vm} on host {host}: its disk {device} ({socket}) {why}; it waits and tries again",
                vm=f"VM {spec.vm_uuid}" if spec else f"domain {self._domain.domain_id}", host=self._domain.host,
                device=device, socket=disk.socket_path if disk else "", why=why,
            )  # fmt: skip
            self._begin()
        if disk is not None:
            self._tell(self._domain.domain_id, disk, why)

    def _disk(self, device: str) -> DomainDisk | None:
        disks = self._domain.spec.disks if self._domain.spec is not None else ()
        return next((disk for disk in disks if disk.device == device), None)

    async def stopped_here(self) -> bool:
        """Whether a domain in the state STOPPED had been running here. One that was received in that state had not."""
        blocks = await self._domain.ask("query-block", timeout=self._domain.config.timeouts.question)
        failed = [block for block in blocks if block.get("io-status", "ok") != "ok"]
        if not failed:
            return False
        for block in failed:
            device = str(block.get("inserted", {}).get("node-name", "")).removeprefix("disk")
            self._refused.setdefault(device, {*READS, *WRITES})
            self._lately.add(device)
        self.any = True
        if self._retrying is None and not self._held:  # an earlier daemon has told of it
            self._begin()
        return not self._held

    def hold(self) -> None:
        """It is not let go on by itself any more: it is to stand still, or the last of its memory is sent."""
        self._held = True
        self.end()

    def release(self) -> None:
        """It is not to stand still after all."""
        self._held = False
        if self.any and self._retrying is None:
            self._begin()

    def cleared(self) -> None:
        """It is let go on, by us or by somebody who may."""
        self.any = self._held = False
        if self._refused and self._retrying is None:  # by an administrator, and somebody has been told that it waits
            self._begin()

    def end(self) -> None:
        """Stop trying."""
        retrying, self._retrying = self._retrying, None
        if retrying is not None:
            retrying.cancel()

    def _begin(self) -> None:
        retrying = self._retrying = started(self._retry())

        def over(_: Any) -> None:
            if self._retrying is retrying:
                self._retrying = None

        retrying.addErrback(lambda failure: failure.trap(defer.CancelledError) and None)
        retrying.addErrback(
            lambda failure: self.log.failure("domain {domain} waits", failure, domain=self._domain.domain_id)
        )
        retrying.addBoth(over)

    async def _retry(self) -> None:
        domain = self._domain
        while domain.alive:
            await task.deferLater(domain.reactor, domain.config.timeouts.retry)
            try:
                if self.any:
                    if not await self._again():
                        return
                elif await self._served():
                    return
            except (QMPError, TimeoutError, defer.TimeoutError, ConnectionError) as failure:
                self.log.info("domain {domain}: {failure}", domain=domain.domain_id, failure=failure)

    async def _again(self) -> bool:
        """False where it is not for us to let it go on. Nothing is awaited between QEMU's word and ours, and `hold`
        comes before the word that ends the domain here: QEMU takes words in their order."""
        domain = self._domain
        so_far = await self._succeeded()
        self._before.update({device: so_far.get(device, 0) for device in self._lately})
        status = (await domain.ask("query-status"))["status"]
        if status not in (STOPPED, "running"):
            return False
        self.cleared()
        self._lately.clear()
        before = [domain.ask("stop")] if status == "running" else []  # see QEMUDomain.go_on
        await together(*before, domain.ask("cont"))
        return True

    async def _succeeded(self) -> dict[str, int]:
        """How many requests have, of the disks and kinds that were refused."""
        devices = {
            str(block.get("node-name", "")).removeprefix("disk"): block["stats"]
            for block in await self._domain.ask("query-blockstats")
        }
        return {
            device: sum(devices[device].get(kind, 0) for kind in kinds)
            for device, kinds in self._refused.items()
            if device in devices
        }

    async def _served(self) -> bool:
        """Nothing was refused for a while. That may be because the disk takes long to refuse, so something of each kind
        has to have succeeded as well: then the guest does not wait any more."""
        now = await self._succeeded()
        if self.any or any(count <= self._before.get(device, -1) for device, count in now.items()):
            return False
        self.log.info("domain {domain}: its disks take its requests again", domain=self._domain.domain_id)
        refused, self._refused = self._refused, {}
        for disk in filter(None, map(self._disk, refused)):
            self._tell(self._domain.domain_id, disk, "")
        return True
