"""A suspend under way: QEMU writes a domain's memory and state to a descriptor.

QEMU sends the memory while the guest runs, stops it when little is left, and then waits (`pre-switchover`) until
it is told to go on; that is where disks are let go of. From `proceed` to the end of the stream its monitor answers
nothing. A stream that fails or is cancelled before its end makes QEMU let the guest run on by itself.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from twisted.internet import defer, task
from twisted.logger import Logger
from zope.interface import implementer

from xapi_migrate.domains.interfaces import DomainState, ISuspension
from xapi_migrate.domains.qemu_arguments import WHOLE
from xapi_migrate.domains.qemu_domain import ABANDONED, QEMUDomain
from xapi_migrate.errors import DomainError
from xapi_migrate.moment import Moment
from xapi_migrate.processes.qmp import Event

UNDER_WAY = frozenset({"setup", "active", "pre-switchover", "device", "wait-unplug", "cancelling"})
"""The states of QEMU's migration in which it is neither idle nor over."""

_FD = "memory"
_ACTION = "suspend"


async def hand_over(domain: QEMUDomain, fd: int) -> str:
    """Give QEMU a duplicate of `fd`; the uri under which its migration commands know it."""
    # Our own duplicate until QEMU has one: the caller may be cancelled, close its own, and the number be used again.
    own = os.dup(fd)
    try:
        await domain.ask("getfd", {"fdname": _FD}, fd=own)
    finally:
        os.close(own)
    return f"fd:{_FD}"


async def take_back(domain: QEMUDomain) -> None:
    """Make QEMU close a descriptor that it was given and did not use."""
    try:
        await domain.ask("closefd", {"fdname": _FD}, timeout=domain.config.timeouts.question)
    except Exception as failure:
        QEMUDomain.log.debug("domain {domain}: closefd: {failure}", domain=domain.domain_id, failure=failure)


def capabilities(**wanted: bool) -> dict[str, Any]:
    """Arguments of migrate-set-capabilities."""
    names = [(name.replace("_", "-"), state) for name, state in wanted.items()]
    return {"capabilities": [{"capability": name, "state": state} for name, state in names]}


async def loses_writes(domain: QEMUDomain) -> bool:
    """Whether a live suspend could miss what the guest writes to its memory. Domains that this driver starts are made
    so that none does; one that was started otherwise has to stand still."""
    if domain.config.exact_memory or (await domain.ask("query-kvm"))["enabled"]:
        return False
    memory = (await domain.ask("query-memory-size-summary"))["base-memory"]
    if memory % WHOLE:
        return False
    domain.log.warn(
        "domain {domain}: stopped for its suspend, which would lose writes to memory: it is emulated and has a multiple"
        " of 256 KiB of memory",
        domain=domain.domain_id,
    )
    return True


@implementer(ISuspension)
class QEMUSuspension:
    """See the module; made by `begin`."""

    log = Logger()

    def __init__(self, domain: QEMUDomain) -> None:
        self._domain = domain
        self._suspended: Moment[None] = Moment()
        self._finished: Moment[None] = Moment()
        self._progress = (0, (domain.spec.memory if domain.spec else 0))
        self._reason = ""
        self._measures = ""
        self._proceeded = False
        self._stop_watching: Callable[[], None] = lambda: None
        self._following: defer.Deferred[None] | None = None

    @property
    def over(self) -> bool:
        return self._finished.happened

    async def begin(self, fd: int, live: bool) -> None:
        """Hand the descriptor over and start. DomainError when QEMU refuses; the domain is then as it was, except
        that it is paused when it was not to be `live`, or could not be (`loses_writes`)."""
        domain, config = self._domain, self._domain.config
        try:
            await domain.ask("migrate-set-capabilities", capabilities(events=True, pause_before_switchover=True))
            limits = {"max-bandwidth": config.bandwidth, "downtime-limit": config.downtime_limits[0][1]}
            await domain.ask("migrate-set-parameters", limits)
            if not live or await loses_writes(domain):
                await domain.stop()
            uri = await hand_over(domain, fd)
            try:
                self._stop_watching = domain.watch(self._seen)
                await domain.ask("migrate", {"uri": uri})
            except BaseException:
                await take_back(domain)
                raise
        except BaseException as failure:
            error = domain.error(_ACTION, failure)
            self._fail(error if isinstance(error, DomainError) else "it was given up")
            raise error from failure
        if not self.over and not self._suspended.happened:
            self._following = defer.Deferred.fromCoroutine(self._follow())
            self._following.addErrback(self._stopped_following)

    # -- ISuspension --------------------------------------------------------------------------

    def suspended(self) -> defer.Deferred[None]:
        return self._suspended.wait()

    async def proceed(self) -> None:
        if self.over:
            return
        self._proceeded = True
        self._domain.refusals.hold()
        try:
            await self._domain.ask("migrate-continue", {"state": "pre-switchover"})
        except Exception as failure:
            # the end of the stream may be quicker than the answer, and cancel quicker than both
            if not self._finished.happened:
                raise self._domain.error(_ACTION, failure) from failure

    def finished(self) -> defer.Deferred[None]:
        return self._finished.wait()

    def progress(self) -> tuple[int, int]:
        return self._progress

    def measures(self) -> str:
        return self._measures

    async def cancel(self) -> None:
        if self.over:
            return
        domain, limit = self._domain, self._domain.config.timeouts.cancel
        self._reason = self._reason or "it was cancelled"
        if self._proceeded:
            await tear_out(domain)
        else:
            try:
                await domain.ask("migrate_cancel", timeout=limit / 3)
            except Exception as failure:
                self.log.info("domain {domain}: not cancelled yet: {failure}", domain=domain.domain_id, failure=failure)
                await tear_out(domain)
        try:
            await self._finished.wait().addTimeout(limit, domain.reactor)
        except Exception as failure:
            self.log.debug("domain {domain}: its suspend ended: {failure}", domain=domain.domain_id, failure=failure)
        self._fail(self._reason)  # QEMU may still be busy with it: `resume` waits for that

    # -- what QEMU says -----------------------------------------------------------------------

    def _seen(self, name: str, data: Event) -> None:
        if name == "":
            self._fail(f"QEMU ended: {self._domain.last_words()}")
        elif name == ABANDONED:
            self._fail("this daemon let go of the domain")
        if name != "MIGRATION":
            return
        status = data.get("status")
        if status == "pre-switchover":
            self._stop_following()
            self._domain.known = DomainState.SUSPENDED
            self._suspended.happen(None)
        elif status == "completed":
            self._detached(self._complete())
        elif status in ("failed", "cancelled"):
            self._detached(self._explain(status))

    def _detached(self, work: Any) -> None:
        done = defer.Deferred.fromCoroutine(work)
        done.addErrback(lambda failure: self._fail(str(failure.value)))  # QEMU ended meanwhile

    async def _complete(self) -> None:
        """The stream's last byte is written; QEMU is about to close the descriptor."""
        await settle(self._domain)
        self._domain.known = DomainState.SUSPENDED
        self._suspended.happen(None)
        self._progress = (self._progress[1], self._progress[1])
        self._end()
        self._finished.happen(None)

    async def _explain(self, status: str) -> None:
        answer = await self._domain.ask("query-migrate", timeout=self._domain.config.timeouts.question)
        self._fail(self._reason or answer.get("error-desc") or f"the stream {status} and QEMU does not say why")

    def _fail(self, reason: str | DomainError) -> None:
        self._end()
        error = self._domain.error(_ACTION, self._reason or reason)
        self._suspended.fail(error)
        self._finished.fail(error)

    def _end(self) -> None:
        self._stop_watching()
        self._stop_following()

    # -- until the domain stops ---------------------------------------------------------------

    def _stop_following(self) -> None:
        following, self._following = self._following, None
        if following is not None:
            following.cancel()

    def _stopped_following(self, failure: Any) -> None:
        if failure.check(defer.CancelledError) is None:
            self.log.failure(
                "domain {domain}: its suspend is not followed any more", failure, domain=self._domain.domain_id
            )

    async def _follow(self) -> None:
        """Look at the progress, and see to it that there is an end."""
        domain, config = self._domain, self._domain.config
        began = domain.reactor.seconds()
        ladder = [*config.downtime_limits[1:]]
        urged = False
        while not self._suspended.happened:
            await task.deferLater(domain.reactor, config.timeouts.poll)
            elapsed = domain.reactor.seconds() - began
            try:
                ram = (await domain.ask("query-migrate", timeout=config.timeouts.question)).get("ram")
                if ram:
                    self._progress = (ram["transferred"], ram["transferred"] + ram["remaining"])
                if elapsed > config.timeouts.final_suspend and not urged:
                    urged = True
                    await self._insist(elapsed)
                elif ladder and elapsed > ladder[0][0] and not urged:
                    limit = ladder.pop(0)[1]
                    await domain.ask("migrate-set-parameters", {"downtime-limit": limit})
                    self._measures = f"it may stand still for {limit} ms at the end"
            except TimeoutError:
                continue

    async def _insist(self, elapsed: float) -> None:
        config = self._domain.config
        if config.beyond == "stop":
            self.log.info("domain {domain}: stopped, to send what it dirties faster", domain=self._domain.domain_id)
            await self._domain.ask("migrate-set-parameters", {"downtime-limit": config.beyond_limit})
            self._measures = "it is stopped for as long as the rest of its memory takes"
            return
        self._reason = f"the guest dirtied its memory faster than the stream took it away, for {elapsed:.0f} seconds"
        await self._domain.ask("migrate_cancel", timeout=config.timeouts.question)


async def settle(domain: QEMUDomain) -> str:
    """Wait until QEMU's migration is over in every respect; its run state then."""
    while True:
        status = str((await domain.ask("query-status"))["status"])
        if status not in ("finish-migrate", "inmigrate"):
            return status
        await task.deferLater(domain.reactor, 0.002)


async def tear_out(domain: QEMUDomain) -> None:
    """Shut the stream's socket down from within QEMU, past its main loop: the stream fails, if it is not whole yet.

    After `proceed` nothing else will do: QEMU gives its disks away with the last of the memory, and a migrate_cancel
    that meets that moment makes it let the guest run on without them, which ends in an assertion of its own.
    """
    instances = {"instances": [{"type": "migration"}]}
    try:
        await domain.ask("yank", instances, timeout=domain.config.timeouts.cancel / 3, oob=True)
    except Exception as failure:
        QEMUDomain.log.info("domain {domain}: yank: {failure}", domain=domain.domain_id, failure=failure)


async def give_up_stray(domain: QEMUDomain) -> None:
    """Cancel a suspend that is under way and nobody's: an earlier daemon began it, or it did not end in time."""
    limit = domain.config.timeouts.cancel
    for _ in range(200):
        status = (await domain.ask("query-migrate", timeout=limit)).get("status", "none")
        if status not in UNDER_WAY:
            return
        if status == "device":
            await tear_out(domain)
        elif status != "cancelling":
            await domain.ask("migrate_cancel", timeout=limit)
        await task.deferLater(domain.reactor, 0.02)
    raise TimeoutError("its suspend does not end: the descriptor that it writes to must be closed")
