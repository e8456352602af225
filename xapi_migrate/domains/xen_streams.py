"""Streams of domains on Xen under way: a process (xen_call) writes or reads each, and libxl in it decides how.

libxl cannot hold a stream back at its suspend point: `suspended` comes from Xen itself, and the end when it comes.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable

from twisted.internet import defer
from zope.interface import implementer

from xapi_migrate.domains.interfaces import DomainSpec, IRestoration, ISuspension
from xapi_migrate.domains.xen_domain import XenDomain
from xapi_migrate.domains.xen_processes import XenProcess
from xapi_migrate.errors import DomainError
from xapi_migrate.moment import Moment

_SUSPEND, _RESTORE = "suspend", "take its memory in"


async def _end(domain: XenDomain, process: XenProcess) -> str:
    """Give a stream up and wait for the end of its process; its words."""
    process.give_up()
    try:
        return await process.ended.wait().addTimeout(domain.xen.timeouts.cancel, domain.reactor)
    except defer.TimeoutError:
        process.kill()
        return await process.ended.wait()


@implementer(ISuspension)
class XenSuspension:
    """Made by XenDriver.suspend. `stands_still` is to be called when Xen says so."""

    def __init__(self, domain: XenDomain, fd: int, live: bool) -> None:
        self._domain = domain
        self._suspended: Moment[None] = Moment()
        self._finished: Moment[None] = Moment()
        self._reason = ""
        self._sent = 0
        self._settling: defer.Deferred[None] | None = None
        verb = "suspend-live" if live else "suspend"
        self._process = XenProcess(
            domain.reactor, "xen_call", verb, domain.domain_id, str(domain.folder), lines=self._line, fd=fd
        )
        defer.Deferred.fromCoroutine(self._follow())

    @property
    def over(self) -> bool:
        return self._finished.happened

    def suspended(self) -> defer.Deferred[None]:
        return self._suspended.wait()

    async def proceed(self) -> None:
        """libxl cannot hold its stream back."""

    def finished(self) -> defer.Deferred[None]:
        return self._finished.wait()

    def progress(self) -> tuple[int, int]:
        memory = self._domain.spec.memory if self._domain.spec is not None else 0
        return self._sent, self._sent if self.over else max(memory, self._sent)

    def measures(self) -> str:
        return ""  # libxl ends its rounds by itself, after five of them

    async def cancel(self) -> None:
        if self.over:
            return
        self._reason = self._reason or "it was cancelled"
        await _end(self._domain, self._process)
        await self._over()

    async def _over(self) -> None:
        try:
            await self._finished.wait()
        except DomainError:
            pass

    def stands_still(self) -> None:
        """Xen says that its processors have stopped for good."""
        if self._settling is None and not self.over:
            self._settling = defer.Deferred.fromCoroutine(self._settle())

    async def _settle(self) -> None:
        try:
            await self._domain.settle()
        except Exception as failure:
            self._reason = f"one of its disks does not take what it wrote: {failure}"
            await _end(self._domain, self._process)
            return
        self._suspended.happen(None)

    def _line(self, line: str) -> None:
        self._sent = int(line)

    async def _follow(self) -> None:
        failure = await self._process.ended.wait()
        if not failure and not self._reason:
            # Its own end may be quicker than what Xen says of the domain.
            self.stands_still()
            if self._settling is not None:
                await self._settling
        if self._reason or failure:
            error = self._domain.error(_SUSPEND, self._reason or failure)
            self._suspended.fail(error)
            self._finished.fail(error)
        else:
            self._finished.happen(None)


@implementer(IRestoration)
class XenRestoration:
    """Made by XenDriver.restore; `destroy` ends the domain for good."""

    def __init__(self, domain: XenDomain, spec: DomainSpec, fd: int, destroy: Callable[[], Awaitable[None]]) -> None:
        self._domain = domain
        self._destroy = destroy
        self._accepting: Moment[None] = Moment()
        self._finished: Moment[None] = Moment()
        self._reason = ""
        self._process: XenProcess | None = None
        domain.incoming = True
        self._work = defer.Deferred.fromCoroutine(self._run(spec, os.dup(fd)))

    def accepting(self) -> defer.Deferred[None]:
        return self._accepting.wait()

    def finished(self) -> defer.Deferred[None]:
        return self._finished.wait()

    async def cancel(self) -> None:
        self._reason = self._reason or "it was cancelled"
        if self._process is not None:
            await _end(self._domain, self._process)
        try:
            await self._finished.wait()
        except DomainError:
            return
        await self._destroy()

    async def _run(self, spec: DomainSpec, fd: int) -> None:
        domain = self._domain
        try:
            try:
                await domain.prepare(spec)
                if self._reason:
                    raise ValueError(self._reason)
                names = domain.domain_id, str(domain.folder)
                self._process = XenProcess(
                    domain.reactor, "xen_call", "restore", *names, lines=lambda line: None, fd=fd
                )
            finally:
                os.close(fd)  # with ours open the sender would not notice the end of its own
            self._accepting.happen(None)
            failure = await self._process.ended.wait()
            if self._reason or failure:
                raise ValueError(self._reason or failure)
        except Exception as failure:
            error = domain.error(_RESTORE, self._reason or failure)
            await self._destroy()
            self._accepting.fail(error)
            self._finished.fail(error)
        else:
            domain.incoming = domain.building = False
            self._finished.happen(None)
