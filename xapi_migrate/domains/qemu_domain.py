"""One domain: a QEMU process, its folder and its monitor.

In the folder: `process.json` (which process), `spec.json` (which hardware), the monitor's socket, one link per disk,
stdout and stderr. The folder is the domain: it is made first and removed last.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.internet import defer
from twisted.logger import Logger

from xapi_migrate.domains.folders import SPEC, spec_from_json, write_spec
from xapi_migrate.domains.interfaces import DomainDisk, DomainSpec, DomainState
from xapi_migrate.domains.qemu_arguments import MONITOR, arguments, disk_links
from xapi_migrate.domains.qemu_config import QEMUConfig
from xapi_migrate.domains.qemu_refusals import STOPPED, Refusals
from xapi_migrate.domains.taps import close_taps, open_taps
from xapi_migrate.errors import DomainError
from xapi_migrate.processes import child, qmp
from xapi_migrate.processes.in_thread import in_thread
from xapi_migrate.together import together

PAUSES = 10

ABANDONED = "abandoned"
"""The event that tells a domain's watchers that the driver lets go of it."""

STATES = {
    "running": DomainState.RUNNING,
    "suspended": DomainState.RUNNING,  # the guest's own sleep (S3)
    "paused": DomainState.PAUSED,
    "prelaunch": DomainState.PAUSED,
    STOPPED: DomainState.PAUSED,  # but see Refusals
    "watchdog": DomainState.PAUSED,
    "save-vm": DomainState.PAUSED,
    "restore-vm": DomainState.PAUSED,
    "debug": DomainState.PAUSED,
    "inmigrate": DomainState.INCOMING,
    "finish-migrate": DomainState.SUSPENDED,
    "postmigrate": DomainState.SUSPENDED,
    "shutdown": DomainState.SHUTDOWN,
    "guest-panicked": DomainState.CRASHED,
    "internal-error": DomainState.CRASHED,
}
"""QEMU's run states, as this project calls them."""


def _prepare(folder: Path, spec: DomainSpec) -> None:
    folder.mkdir(parents=True, mode=0o700)
    write_spec(folder, spec)
    for name, target in disk_links(spec).items():
        (folder / name).symlink_to(target)
    if spec.console_path:
        Path(spec.console_path).parent.mkdir(parents=True, exist_ok=True)


class QEMUDomain:
    """Starts, finds, asks and ends one QEMU; knows nothing of streams."""

    log = Logger()

    def __init__(
        self,
        reactor: Any,
        folder: Path,
        domain_id: str,
        config: QEMUConfig,
        host: Callable[[], str],
        tell: Callable[[str, DomainState], None],
        tell_disk: Callable[[str, DomainDisk, str], None] = lambda domain_id, disk, why: None,
    ) -> None:
        self.reactor = reactor
        self.folder = folder
        self.domain_id = domain_id
        self.config = config
        self.spec: DomainSpec | None = None
        self.child: child.Child | None = None
        self.known = DomainState.ABSENT
        """The state as far as it is known without asking."""
        self.why = ""
        """See IDomainDriver.why."""
        self._ended_for = ""
        self.refusals = Refusals(self, tell_disk)
        self._host = host
        self._tell = tell
        self._qmp: qmp.QMP | None = None
        self._connecting = defer.DeferredLock()
        self._watchers: list[Callable[[str, qmp.Event], None]] = []
        self._let_go = False
        self._abandoned = False

    @property
    def host(self) -> str:
        """What errors call this host."""
        return self._host()

    def untouched(self) -> int:
        """Bytes of its memory that it has not touched yet."""
        if self.spec is None:
            return 0
        resident = child.resident(self.child.name.pid) if self.child is not None else 0
        return max(0, self.spec.memory - resident)

    # -- its beginning ------------------------------------------------------------------------

    async def launch(self, spec: DomainSpec, *, incoming: bool) -> None:
        """Make the folder, start QEMU, wait for its monitor. Whatever it raises, nothing is left then."""
        action = "wait for its memory" if incoming else "start"
        self.spec = spec
        self.known = DomainState.INCOMING if incoming else DomainState.PAUSED
        try:
            await self._spawn(spec, incoming)
            await self._monitor()
            if self._let_go:
                raise ConnectionError("it was destroyed meanwhile")
        except BaseException as failure:
            error = self.error(action, failure)
            await self.end()
            raise error from failure
        if not incoming and self.known is DomainState.PAUSED:
            self.known = DomainState.RUNNING

    async def _spawn(self, spec: DomainSpec, incoming: bool) -> None:
        arguments(spec, self.config, incoming=incoming)  # what it refuses is refused before anything is made
        taps: dict[str, int] = {}
        try:
            await in_thread(_prepare, self.folder, spec)
            await in_thread(open_taps, self.domain_id, spec.nics, taps)
            argv = arguments(spec, self.config, incoming=incoming, taps=taps)
            self._adopt(await child.spawn(self.reactor, self.folder, argv, pass_fds=tuple(taps.values())))
        finally:
            close_taps(taps)

    async def find(self) -> None:
        """Take over a domain of an earlier daemon. One that does not answer now is asked again when it is needed."""
        self.known = DomainState.CRASHED
        try:
            self.spec = spec_from_json(await in_thread((self.folder / SPEC).read_text))
        except (OSError, ValueError, TypeError, KeyError) as failure:
            self.log.warn(
                "domain {domain}: its description cannot be read: {reason}", domain=self.domain_id, reason=failure
            )
        found = child.find(self.reactor, self.folder)
        if found is None:
            if await in_thread(child.of_this_boot, self.folder):
                self.why = "QEMU ended while this host's daemon was down"
            return
        self.known = DomainState.RUNNING
        self._adopt(found)
        try:
            await self.state()
        except DomainError as failure:
            self.log.warn("{failure}", failure=failure)

    def _adopt(self, found: child.Child) -> None:
        self.child = found
        found.ended().addCallback(lambda _: self._ended())

    # -- its end ------------------------------------------------------------------------------

    async def end(self) -> None:
        """Kill it and remove its folder; repeatable. Nothing happens when it was abandoned."""
        if self._abandoned:
            return
        self._let_go = True
        self.refusals.end()
        self._seen("", {})
        await self._hang_up()
        if self.child is not None:
            await self.child.kill()
        self.known = DomainState.ABSENT
        await in_thread(shutil.rmtree, self.folder, ignore_errors=True)

    async def crash(self, reason: str) -> None:
        """End it as if its machine had lost its power. It stays known, `crashed` for this reason."""
        self.log.error(
            "domain {domain} of VM {vm} on host {host} is ended: {reason}",
            domain=self.domain_id, vm=self.spec.vm_uuid if self.spec else "?", host=self.host, reason=reason,
        )  # fmt: skip
        self.why = self._ended_for = reason
        if self.child is not None:
            await self.child.kill()

    async def abandon(self) -> None:
        """Let go of it; it lives on."""
        self._let_go = self._abandoned = True
        self.refusals.end()
        self._seen(ABANDONED, {})
        if self.child is not None:
            self.child.abandon()
        await self._hang_up()

    async def _hang_up(self) -> None:
        monitor, self._qmp = self._qmp, None
        if monitor is not None:
            monitor.close()
            await monitor.closed

    def _ended(self) -> None:
        if self._let_go:
            return
        self.log.warn("domain {domain}: QEMU is gone: {reason}", domain=self.domain_id, reason=self.last_words())
        self.known = DomainState.CRASHED
        self.why = self.why or f"QEMU is gone: {self.last_words()}"
        self._seen("", {})
        self._tell(self.domain_id, self.known)

    @property
    def alive(self) -> bool:
        return self.child is not None and self.child.alive

    def last_words(self) -> str:
        """Why it was ended, or what QEMU said before it ended by itself."""
        if self._ended_for:
            return self._ended_for
        said = self.child.errors() if self.child is not None else ""
        return said or "it left no message"

    def error(self, action: str, cause: BaseException | str) -> BaseException:
        """The error to raise when the domain could not do something: a DomainError, unless it was cancelled."""
        if isinstance(cause, DomainError | defer.CancelledError | GeneratorExit):
            return cause
        if isinstance(cause, str):
            reason = cause
        elif isinstance(cause, qmp.QMPError | TimeoutError | ValueError):
            reason = str(cause)
        elif self.child is not None and not self.child.alive:
            reason = f"QEMU ended: {self.last_words()}"
        else:
            reason = str(cause) or type(cause).__name__
        return DomainError(domain=self.domain_id, host=self.host, action=action, reason=reason)

    # -- its monitor --------------------------------------------------------------------------

    async def _monitor(self) -> qmp.QMP:
        """The connection to the monitor; made when there is none."""
        await self._connecting.acquire()
        try:
            if self._qmp is not None and not self._qmp.closed.called:
                return self._qmp
            if self._let_go or not self.alive:
                raise ConnectionError("QEMU is gone")
            timeout = self.config.timeouts.monitor
            self._qmp = await qmp.connect(self.reactor, self.folder / MONITOR, lambda: self.alive, timeout)
            self._qmp.watch(self._seen)
            return self._qmp
        finally:
            self._connecting.release()

    async def ask(
        self,
        command: str,
        arguments: dict[str, Any] | None = None,
        *,
        fd: int = -1,
        timeout: float = 0,
        oob: bool = False,
    ) -> Any:
        """Run a monitor command. Raises what QMP.execute raises, ConnectionError when QEMU is gone."""
        monitor = await self._monitor()
        limit = timeout or self.config.timeouts.command
        return await monitor.execute(command, arguments, fd=fd, timeout=limit, oob=oob)

    def watch(self, callback: Callable[[str, qmp.Event], None]) -> Callable[[], None]:
        """`callback(name, data)` at each event of QEMU's, with "" when it is gone and ABANDONED when it is let go of.

        The returned function ends it.
        """
        self._watchers.append(callback)
        return lambda: self._watchers.remove(callback) if callback in self._watchers else None

    def _seen(self, name: str, data: qmp.Event) -> None:
        if name == "" and self.alive and not self._let_go:
            return  # only the connection ended; it is made again when it is needed
        if name == "BLOCK_IO_ERROR" and data.get("action") == "stop":
            self.refusals.seen(data)
        elif name == "SHUTDOWN" and data.get("guest"):
            self._by_itself(DomainState.SHUTDOWN)
        elif name == "GUEST_PANICKED":
            self.why = "its guest panicked"
            self._by_itself(DomainState.CRASHED)
        elif name == "RESUME":
            self.known = DomainState.RUNNING
        for watcher in list(self._watchers):
            watcher(name, data)

    def _by_itself(self, state: DomainState) -> None:
        self.known = state
        self._tell(self.domain_id, state)

    async def state(self) -> DomainState:
        """What it is doing; when it does not answer, what is known. Never raises for a domain that is gone."""
        if not self.alive:
            return DomainState.ABSENT if self.known is DomainState.ABSENT else DomainState.CRASHED
        try:
            answer = await self.ask("query-status", timeout=self.config.timeouts.question)
            waits = answer["status"] == STOPPED and await self.refusals.stopped_here()
        except TimeoutError:
            return self.known
        except Exception as failure:
            if not self.alive:
                return DomainState.CRASHED
            raise self.error("say what it is doing", failure) from failure
        self.known = DomainState.RUNNING if waits else STATES.get(answer["status"], DomainState.PAUSED)
        return self.known

    async def stop(self) -> None:
        """Stop the processors; all I/O is complete and flushed then, but for what a disk has refused."""
        self.refusals.hold()
        await self.ask("stop")
        self.known = DomainState.PAUSED

    async def pause(self) -> None:
        """As `stop`, so that a later daemon knows it too. DomainError while a disk refuses requests as fast as they are
        made: QEMU does not take the domain for paused then."""
        try:
            await self.stop()
            for _ in range(PAUSES):
                if (await self.ask("query-status"))["status"] != STOPPED:
                    return
                await self.go_on_paused()
            await self.go_on()  # else it may be paused by now, with nobody who asked for that
            raise self.error("pause", "one of its disks refuses requests, and its guest waits for that")
        except BaseException:
            self.refusals.release()
            raise

    async def go_on(self) -> None:
        """Let the processors run; requests that a disk had refused are made again."""
        running = (await self.ask("query-status"))["running"]
        if running and not self.refusals.any:
            self.refusals.cleared()
            return
        if running:
            # A request failed in the moment in which the domain was let go on: QEMU takes the two for one
            # and would not make it again.
            await self.ask("stop")
        self.refusals.cleared()
        await self.ask("cont")
        self.known = DomainState.RUNNING

    async def go_on_paused(self) -> None:
        """Take back a stream that was sent: only `cont` gives QEMU its disks back, so that what follows at once stops
        it."""
        await together(self.ask("cont"), self.ask("stop"))
        self.known = DomainState.PAUSED
