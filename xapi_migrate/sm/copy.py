"""VDI.copy: one disk on its way into one LUN.

    PENDING --(all copied once)--> READY --(the gate is shut, finish)--> FINISHED
       |                             |
       +----------- error, cancel, guard ---------> FAILED

A loop follows the mirror and replaces a copier that stands still. Whatever happens, killing the copier and
aborting the job always frees the datapath, so a copy can be given up at any moment without the guest noticing.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import attrs
from twisted.internet import defer
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.logger import Logger
from zope.interface import implementer

from xapi_migrate.errors import CopyFailed, MigrateError
from xapi_migrate.processes.qmp import QMPError
from xapi_migrate.sm.behind import Behind
from xapi_migrate.sm.convergence import Slowdown
from xapi_migrate.sm.copier import STARTS, Copier
from xapi_migrate.sm.copy_account import CopyOf, Kept, forget_copy, keep_copy
from xapi_migrate.sm.datapath import Datapath
from xapi_migrate.sm.interfaces import CopyState, CopyStatus, TargetUrl
from xapi_migrate.sm.mirror import JOB, Mirror
from xapi_migrate.sm.optional import ICopyTask
from xapi_migrate.sm.standstill import Standstill, Verdict
from xapi_migrate.sm.timeouts import SMTimeouts

CANCELLED = "cancelled"
"""Why a copy has failed that nobody waits for any more."""
_LAST_BREATH = 1.0
_TROUBLE = (QMPError, TimeoutError, defer.TimeoutError, ConnectionDone, ConnectionLost, ConnectionError, OSError)


@implementer(ICopyTask)
class Copy:
    """One VDI.copy. `status` is what Task.get_state answers. Begun by `begin`, or by `resume` after a restart."""

    log = Logger()

    def __init__(
        self,
        reactor: Any,
        folder: Path,
        of: CopyOf,
        timeouts: SMTimeouts,
        behind: Behind,
        release: Callable[[], Awaitable[None]],
    ) -> None:
        self._reactor = reactor
        self._timeouts = timeouts
        self._behind = behind
        self._release = release
        self.of = of
        self.folder = folder
        self.status = CopyStatus(CopyState.PENDING)
        self.copier = Copier(reactor, folder, of.vdi, timeouts)
        self._url: TargetUrl | None = None
        self._datapath: Datapath | None = None
        self._mirror: Mirror | None = None
        self._following: defer.Deferred[None] | None = None
        self._ended: list[defer.Deferred[None]] = []
        self._begun = False
        """The mirror runs, or has run."""
        self._finishing = False
        self._given_up = ""
        self._swapping = defer.DeferredLock()
        self._key = f"copy {of.ref}"
        self._slowdown: Slowdown | None = None

    @property
    def over(self) -> bool:
        return self.status.state in (CopyState.FINISHED, CopyState.FAILED)

    # -- beginning

    async def begin(self, datapath: Datapath, url: TargetUrl) -> None:
        """Steps 3.4 and 3.5: open the LUN, switch the datapath into log-dirty mode. Never raises: a copy that cannot
        begin is FAILED."""
        self._url, self._datapath = url, datapath
        self._slowdown = Slowdown(datapath, self._timeouts)
        try:
            self.save()
            await self._slowdown.begin()
            await self._begin_mirror(datapath, url)
        except (MigrateError, *_TROUBLE) as failure:
            self._mirror = None
            await self._conclude(reason(failure))
            return
        except BaseException:
            self._mirror = None
            await self._conclude(CANCELLED)
            raise
        self._begun = True
        self._save_if_possible()  # a restarted daemon looks for the job too
        self._follow()

    async def _begin_mirror(self, datapath: Datapath, url: TargetUrl) -> None:
        """A copier that dies or falls silent meanwhile gets a successor, as one does that dies later."""
        for more in reversed(range(STARTS)):
            await self.copier.start(url)
            mirror = self._mirror = Mirror(self._reactor, datapath.daemon, self._timeouts)
            # the datapath waits for it, and answers once it is gone
            timer = self._reactor.callLater(self._timeouts.attach, self._end_silent_copier)
            try:
                await mirror.start(datapath.gate.nodes.gate, self.copier.socket, datapath.of.virtual_size)
                return
            except _TROUBLE as failure:
                if not (datapath.daemon.alive and await self.copier.dies(_LAST_BREATH)):
                    raise
                if not more:
                    why = "died" if timer.active() else f"did not answer for {self._timeouts.attach:g} s"
                    raise CopyFailed(self.of.vdi, f"its copier {why}, and so did the one before") from failure
                self.log.warn("copy {ref}: its copier is gone, starting another", ref=self.of.ref)
            finally:
                if timer.active():
                    timer.cancel()

    def _end_silent_copier(self) -> None:
        self.log.warn("copy {ref}: its copier does not answer, and is ended", ref=self.of.ref)
        defer.ensureDeferred(self.copier.kill()).addErrback(lambda failure: self.log.failure("ending it", failure))

    async def has_begun(self, datapath: Datapath, kept: Kept) -> bool:
        """After a restart of the daemon: whether there is a mirror to go on with, or was one."""
        return kept.begun or await datapath.daemon.job(JOB) is not None

    async def resume(self, datapath: Datapath, url: TargetUrl) -> None:
        """After a restart of the daemon: go on with the job that runs in this datapath."""
        self._url, self._datapath, self._begun = url, datapath, True
        self._slowdown = Slowdown(datapath, self._timeouts)
        await self._slowdown.resume()
        self.status = attrs.evolve(self.status, slowed=0)
        await self.copier.recover()
        self._mirror = Mirror(self._reactor, datapath.daemon, self._timeouts)
        self._follow()

    def end_at_once(self, status: CopyStatus) -> None:
        """Nothing is to be done: the same disk, or not possible."""
        self.status = status
        self._save_if_possible()
        self._tell_ended()

    # -- ending

    async def finish(self) -> None:
        """The iteration ends now: nothing writes to the disk any more. READY becomes FINISHED; anything else, or
        a receiver that does not answer within the guard time, FAILED. Never raises, never hangs."""
        if self.over:
            return
        mirror = self._mirror
        if mirror is None:
            pass  # it has failed, and lets go of all that it holds
        elif self.status.state is CopyState.READY and not self._given_up:
            self._finishing = True
            try:
                await self._within_guard(mirror.complete())
            except _TROUBLE:
                if not await _concluded(mirror):
                    self.give_up("the datapath refused to finish it")
        else:
            self.give_up("the VDI was deactivated before all of it had been copied")
        await self._until_over(self._timeouts.guard, "the other host did not confirm the last writes")

    async def shielded(self, drain: Callable[[], Awaitable[None]]) -> None:
        """Run a drain of the datapath, which waits for what the copier has in flight: past the guard time the
        copier goes, the drain always ends."""
        if not self.over and self.status.state is not CopyState.READY:
            self.give_up("the VDI was deactivated before all of it had been copied")
            await self._until_over(None, "")
        await self._within_guard(drain())

    async def cancel(self) -> None:
        """End it whatever its state. The guest is not disturbed."""
        if not self.over:
            self.give_up(CANCELLED)
            await self._until_over(None, "")
        await self.tidied()
        if not self.copier.left:
            forget_copy(self.folder)

    async def tidied(self) -> None:
        """Fires when a copy that is over has let go of everything."""
        await self._behind.done(self._key)

    async def tidy(self, datapath: Datapath) -> None:
        """After a restart of the daemon: let go of what a copy that was over may still have held."""
        self._datapath, self._slowdown = datapath, Slowdown(datapath, self._timeouts)
        await self.copier.recover()
        self._mirror = mirror = Mirror(self._reactor, datapath.daemon, self._timeouts)
        try:
            await self._stopped(mirror)
        except _TROUBLE as failure:
            self.log.warn("copy {ref}: its job does not end: {why}", ref=self.of.ref, why=failure)
        await self._let_go_of_all("")

    async def _stopped(self, mirror: Mirror) -> None:
        """Of an earlier daemon, which ended while it gave the copy up: end its job, if it has not ended yet."""
        deadline = self._reactor.seconds() + self._timeouts.guard
        if (await mirror.progress()).concluded:
            return
        await self._take_over_in_order()
        while not (await mirror.progress()).concluded and self._reactor.seconds() < deadline:
            mirror.abort()
            await mirror.changed(0.2)

    def give_up(self, reason: str) -> None:
        """Begin to end it as failed; `_until_over` waits for that."""
        if not self.over and not self._given_up:
            self._given_up = reason
            self.log.info(
                "copy {ref} of VDI {vdi} is given up: {reason}", ref=self.of.ref, vdi=self.of.vdi, reason=reason
            )
            defer.ensureDeferred(self._abort()).addErrback(lambda failure: self.log.failure("giving up", failure))

    async def replace(self, url: TargetUrl) -> None:
        """Go on through another copier (fail-over to another URI). CopyFailed if it is over or the LUN cannot be
        opened; the job then waits for the next one."""
        if self.over or self._given_up:
            raise CopyFailed(self.of.vdi, self.status.error or "it has ended")
        self._url = url
        self._save_if_possible()
        await self._replace_copier()

    # -- following the job

    def _follow(self) -> None:
        self._following = defer.ensureDeferred(self._loop())
        self._following.addErrback(self._loop_failed)

    async def _loop(self) -> None:
        mirror = self._mirror
        assert mirror is not None
        standstill, said = Standstill(self._timeouts.stall, self._timeouts.replacements), ""
        while True:
            try:
                now = await mirror.progress()
            except _TROUBLE as failure:
                assert self._datapath is not None
                if self._datapath.daemon.alive and not isinstance(failure, (ConnectionDone, ConnectionLost)):
                    continue  # a drain holds the monitor up: its guard decides
                await self._conclude("its datapath died")
                return
            if now.concluded:
                await self._concluded(now.error)
                return
            ready = now.ready or self.status.state is CopyState.READY
            state = CopyState.READY if ready else CopyState.PENDING
            self.status = attrs.evolve(self.status, state=state, copied=now.done, total=now.total)
            if self._slowdown is not None and not self._given_up and not self._finishing:
                slowed = await self._slowdown.look(self._reactor.seconds(), now.done, now.total, ready)
                self.status = attrs.evolve(self.status, slowed=slowed)
                if self._slowdown.hopeless:
                    self.give_up(self._slowdown.hopeless)
            if not self._given_up:
                alive = self.copier.alive
                idle = ready and now.done >= now.total and alive
                verdict = standstill.look(self._reactor.seconds(), now.done, now.total, idle=idle, alive=alive)
                if verdict is Verdict.HOPELESS:
                    self.give_up(f"{standstill.why}, {standstill.replaced} new copiers did not help{said}")
                elif verdict is Verdict.REPLACE:
                    said = await self._try_replacing(standstill.why)
                    standstill.tried(self._reactor.seconds())
            await mirror.changed(self._timeouts.poll)

    async def _try_replacing(self, why: str) -> str:
        """Why it was in vain, as the end of a sentence, if it was."""
        self.log.info("copy {of.ref} of VDI {of.vdi}: {why}, starting another copier", of=self.of, why=why)
        try:
            await self._replace_copier()
        except CopyFailed as failure:
            self.log.info("copy {ref}: {reason}", ref=self.of.ref, reason=str(failure))
            return f": {' '.join(failure.reason.split())}"
        return ""

    async def _replace_copier(self) -> None:
        async with self._swapping:
            await self.copier.kill()
            if not self._given_up and self._url is not None:
                await self.copier.start(self._url)
        if self._given_up:
            await self.copier.kill()

    async def _concluded(self, error: str) -> None:
        if self._given_up:
            error = self._given_up
        elif not error and not self._finishing:
            error = "the mirror ended by itself"
        await self._conclude(error)

    def _loop_failed(self, failure: Any) -> None:
        if failure.check(defer.CancelledError):
            return
        self.log.failure("copy {ref} is no longer followed", failure, ref=self.of.ref)
        defer.ensureDeferred(self._conclude(str(failure.value)))

    # -- the end

    async def _abort(self) -> None:
        """Free the datapath: its writes are refused from now on, then the copier goes, then the job.

        In this order, because a datapath whose copier is gone waits for another one to answer on the socket, and
        when it drains it does so with its monitor and the guest's I/O held up.
        """
        if self._swapping.locked:
            await self.copier.kill()  # another one is just starting
        async with self._swapping:
            if self._mirror is not None:
                await self._take_over()
        while (mirror := self._mirror) is not None:
            mirror.abort()
            await mirror.changed(0.2)

    async def _take_over(self) -> None:
        assert self._datapath is not None
        try:
            await self.copier.refuse(self._datapath.of.virtual_size)
        except _TROUBLE:
            self.log.failure("refusing the writes of copy {ref}", ref=self.of.ref)
        await self.copier.kill()

    async def _take_over_in_order(self) -> None:
        async with self._swapping:
            await self._take_over()

    async def _dismiss(self, mirror: Mirror) -> None:
        """Closing the datapath's end of the socket flushes it: past the guard time nobody waits for that."""

        def enough() -> None:
            defer.ensureDeferred(self._take_over_in_order()).addErrback(
                lambda failure: self.log.failure("taking over", failure)
            )

        timer = self._reactor.callLater(self._timeouts.guard, enough)
        try:
            await mirror.dismiss()
        finally:
            if timer.active():
                timer.cancel()

    async def _conclude(self, error: str) -> None:
        """The state becomes final. A finished copy is told at once, for a suspended guest waits for it, and lets go of
        everything behind; a failed one first."""
        if error:
            error = await self._let_go_of_all(error)
            self._end(error)
            return
        self._behind.later(self._key, self._tidy)
        self._end("")

    async def _tidy(self) -> None:
        problem = await self._let_go_of_all("")
        if problem:
            self.log.warn("after copy {ref} of VDI {vdi}: {problem}", ref=self.of.ref, vdi=self.of.vdi, problem=problem)

    async def _let_go_of_all(self, error: str) -> str:
        """Job, socket, copier, datapath. `error`, or what went wrong here."""
        mirror, self._mirror = self._mirror, None
        if mirror is not None and self._datapath is not None and self._datapath.daemon.alive:
            try:
                if error or not self.copier.alive:  # else closing the socket waits for another copier
                    await self._take_over_in_order()
                await self._dismiss(mirror)
            except _TROUBLE as failure:
                error = error or str(failure)
        elif mirror is not None:
            mirror.forget()
        async with self._swapping:
            await self.copier.end()
        if self._slowdown is not None:
            await self._slowdown.release()
        try:
            await self._release()
        except MigrateError as failure:
            error = error or str(failure)
        return error

    def _end(self, error: str) -> None:
        """The last state, kept and told."""
        state = CopyState.FAILED if error else CopyState.FINISHED
        total = self.status.total
        self.status = CopyStatus(state, self.status.copied if error else total, total, error=error)
        self._url = None
        self._save_if_possible()  # who waits for the end is not to wait for room; a restarted daemon finds no job
        self._tell_ended()

    def _tell_ended(self) -> None:
        ended, self._ended = self._ended, []
        for one in ended:
            one.callback(None)

    async def _within_guard(self, work: defer.Deferred[None] | Awaitable[None]) -> None:
        running = work if isinstance(work, defer.Deferred) else defer.ensureDeferred(_coroutine(work))
        timer = self._reactor.callLater(
            self._timeouts.guard, self.give_up, f"the other host did not answer for {self._timeouts.guard:g} s"
        )
        try:
            await running
        finally:
            if timer.active():
                timer.cancel()

    async def _until_over(self, guard: float | None, reason: str) -> None:
        if self.over:
            return
        ended: defer.Deferred[None] = defer.Deferred(lambda d: self._ended.remove(d))
        self._ended.append(ended)
        timer = self._reactor.callLater(guard, self.give_up, reason) if guard is not None else None
        try:
            await ended
        finally:
            if timer is not None and timer.active():
                timer.cancel()

    # -- over a restart of the daemon

    def let_go(self) -> None:
        """Stop following; everything lives on."""
        if self._following is not None:
            self._following.cancel()
        self.copier.let_go()

    def _save_if_possible(self) -> None:
        """Where a full disk is to end nothing that is well without it."""
        try:
            self.save()
        except OSError as failure:
            state = self.status.state.value
            self.log.warn(
                "copy {ref} ({state}) cannot be written down: {why}", ref=self.of.ref, state=state, why=failure
            )

    def save(self) -> None:
        """For `read_copy`. OSError."""
        keep_copy(self.folder, Kept(self.of, None if self.over else self._url, self.status, self._begun))


def reason(failure: MigrateError | Exception) -> str:
    """Why a copy failed, without the copy's name: who tells it names it."""
    if isinstance(failure, (ConnectionDone, ConnectionLost)):
        return "its datapath died"
    return failure.reason if isinstance(failure, CopyFailed) else str(failure)


async def _concluded(mirror: Mirror) -> bool:
    """Whether the job has come to an end by itself, and will say why."""
    try:
        return (await mirror.progress()).concluded
    except _TROUBLE:
        return False


async def _coroutine(work: Awaitable[None]) -> None:
    await work
