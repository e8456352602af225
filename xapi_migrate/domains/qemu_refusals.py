"""Requests that a domain's disk has refused. QEMU stops the domain at one and keeps it (werror=stop), and nobody but us
lets it go on.

To everybody else such a domain runs: its guest waits for its disk. It is let go on once in a while, for as long as it
takes; QEMU makes the requests again then, and stops it again if they are refused again. Where QEMU says that it stopped
the domain for such a request, the domain had been let run here and its memory is still its own: nothing is resumed by
this that is not to run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from twisted.internet import defer, task
from twisted.logger import Logger

from xapi_migrate.processes.qmp import Event, QMPError
from xapi_migrate.together import started, together

if TYPE_CHECKING:
    from xapi_migrate.domains.qemu_domain import QEMUDomain

STOPPED = "io-error"
"""QEMU's run state of such a domain, and of one that was received from such a domain."""


class Refusals:
    """Of one domain."""

    log = Logger()

    def __init__(self, domain: QEMUDomain) -> None:
        self._domain = domain
        self.any = False
        """A disk refused a request since the domain was last let go on."""
        self._held = False
        self._retrying: defer.Deferred[None] | None = None

    def seen(self, data: Event) -> None:
        """QEMU has stopped the domain."""
        self.any = True
        if self._retrying is None and not self._held:
            self.log.warn("{what}; it waits and tries again", what=self._told(data))
            self._begin()

    def _told(self, data: Event) -> str:
        spec, device = self._domain.spec, str(data.get("node-name", "")).removeprefix("disk")
        vm = f"VM {spec.vm_uuid}" if spec is not None else f"domain {self._domain.domain_id}"
        socket = next((disk.socket_path for disk in spec.disks if disk.device == device), "") if spec else ""
        return (
            f"{vm} on host {self._domain.host}: its disk {device} ({socket}) refuses to {data.get('operation')}: "
            f"{data.get('reason')}"
        )

    async def stopped_here(self) -> bool:
        """Whether a domain in the state STOPPED had been running here. One that was received in that state had not."""
        blocks = await self._domain.ask("query-block", timeout=self._domain.config.timeouts.question)
        if all(block.get("io-status", "ok") == "ok" for block in blocks):
            return False
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
            if not self.any:
                self.log.info("domain {domain}: its disks take its requests again", domain=domain.domain_id)
                return
            try:
                if not await self._again():
                    return
            except (QMPError, TimeoutError, defer.TimeoutError, ConnectionError) as failure:
                self.log.info("domain {domain}: {failure}", domain=domain.domain_id, failure=failure)

    async def _again(self) -> bool:
        """False where it is not for us to let it go on. Nothing is awaited between QEMU's word and ours, and `hold`
        comes before the word that ends the domain here: QEMU takes words in their order."""
        domain = self._domain
        status = (await domain.ask("query-status"))["status"]
        if status not in (STOPPED, "running"):
            return False
        self.cleared()
        before = [domain.ask("stop")] if status == "running" else []  # see QEMUDomain.go_on
        await together(*before, domain.ask("cont"))
        return True
