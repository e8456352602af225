"""A restore under way: a new QEMU reads a domain's memory and state from a descriptor.

QEMU reads until the stream's own end mark, ends as a process when the stream is bad or breaks off, and otherwise
leaves the domain paused. It opens its disks at the start but neither reads nor writes them before it runs.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from twisted.internet import defer
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from xapi_migrate.domains.interfaces import DomainSpec, DomainState, IRestoration
from xapi_migrate.domains.qemu_domain import ABANDONED, QEMUDomain
from xapi_migrate.domains.qemu_suspension import capabilities, hand_over, settle
from xapi_migrate.moment import Moment
from xapi_migrate.processes.qmp import Event

_ACTION = "take its memory in"


@implementer(IRestoration)
class QEMURestoration:
    """See the module; made by `begin`. `destroy` ends the domain for good."""

    log = Logger()

    def __init__(self, domain: QEMUDomain, destroy: Any) -> None:
        self._domain = domain
        self._destroy = destroy
        self._accepting: Moment[None] = Moment()
        self._finished: Moment[None] = Moment()
        self._stop_watching: Callable[[], None] = lambda: None
        self._work: defer.Deferred[None] | None = None
        self._worked: Moment[None] = Moment()
        self._reason = ""

    def begin(self, spec: DomainSpec, fd: int) -> None:
        """Start in the background: what goes wrong is told by `accepting` and `finished`."""
        own = os.dup(fd)
        self._work = defer.Deferred.fromCoroutine(self._run(spec, own))
        self._work.addBoth(lambda _: self._worked.happen(None))

    # -- IRestoration -------------------------------------------------------------------------

    def accepting(self) -> defer.Deferred[None]:
        return self._accepting.wait()

    def finished(self) -> defer.Deferred[None]:
        return self._finished.wait()

    async def cancel(self) -> None:
        self._reason = self._reason or "it was cancelled"
        work, self._work = self._work, None
        if work is not None and not self._accepting.happened:
            work.cancel()
        await self._worked.wait()  # it lets go of its descriptor last
        if not self._finished.happened or self._finished.failed:
            await self._fail(self._reason)
        else:
            await self._destroy()

    # -- the work -----------------------------------------------------------------------------

    async def _run(self, spec: DomainSpec, fd: int) -> None:
        domain = self._domain
        try:
            try:
                await domain.launch(spec, incoming=True)
                self._stop_watching = domain.watch(self._seen)
                # late-block-activate: a disk is not written to, nor locked, before the domain runs
                await domain.ask("migrate-set-capabilities", capabilities(events=True, late_block_activate=True))
                uri = await hand_over(domain, fd)
                await domain.ask("migrate-incoming", {"uri": uri})
            finally:
                # QEMU has its own now, or never will: with ours open the sender would not notice its end
                os.close(fd)
        except defer.CancelledError:
            await self._fail("it was given up")
        except Exception as failure:
            await self._fail(domain.error(_ACTION, failure))
        else:
            self._accepting.happen(None)

    def _seen(self, name: str, data: Event) -> None:
        status = data.get("status") if name == "MIGRATION" else None
        if status == "completed":
            self._detached(self._complete())
        elif status == "failed" or name == "":
            self._detached(self._explain())
        elif name == ABANDONED:
            self._detached(self._fail("this daemon let go of the domain"))

    def _detached(self, work: Any) -> None:
        done: defer.Deferred[Any] = defer.Deferred.fromCoroutine(work)
        done.addErrback(self._lost)

    def _lost(self, failure: Failure) -> defer.Deferred[None]:
        return defer.Deferred.fromCoroutine(self._fail(self._domain.error(_ACTION, failure.value or "it failed")))

    async def _complete(self) -> None:
        await settle(self._domain)
        self._stop_watching()
        self._domain.known = DomainState.PAUSED
        self._accepting.happen(None)
        self._finished.happen(None)

    async def _explain(self) -> None:
        """QEMU reports the failure on stderr and ends; its words are complete when it has."""
        self._stop_watching()
        process = self._domain.child
        if process is not None and process.alive:
            try:
                await process.ended().addTimeout(1.0, self._domain.reactor)
            except Exception as failure:
                self.log.debug("killed in a moment: {failure}", failure=failure)
        await self._fail(f"QEMU ended: {self._domain.last_words()}")

    async def _fail(self, cause: Any) -> None:
        self._stop_watching()
        if self._finished.happened:
            return
        error = self._domain.error(_ACTION, self._reason or cause)
        await self._destroy()
        self._accepting.fail(error)
        self._finished.fail(error)
