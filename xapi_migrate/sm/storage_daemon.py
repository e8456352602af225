"""A qemu-storage-daemon and its monitor: what a datapath and a copier are made of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from twisted.internet import defer, task
from twisted.logger import Logger

from xapi_migrate.processes.child import Child, find, spawn
from xapi_migrate.processes.qmp import QMP, QMPError, connect
from xapi_migrate.sm.timeouts import SMTimeouts

MONITOR = "qmp.sock"
NBD = "nbd.sock"
UP = "up"
"""The file that says that it has done what its command line asks for."""
ARGV = (
    "qemu-storage-daemon",
    "--chardev",
    f"socket,id=monitor,path={MONITOR},server=on,wait=off",
    "--monitor",
    "chardev=monitor",
    "--pidfile",
    UP,
)


_STARTS = 3


class StorageDaemon:
    """One process. It outlives this object: `let_go` leaves it running, `find` meets it again."""

    log = Logger()

    def __init__(self, child: Child, qmp: QMP, timeouts: SMTimeouts) -> None:
        self.child = child
        self.qmp = qmp
        self._timeouts = timeouts
        self._names: set[str] | None = None
        """The nodes that are there, once they have been asked for: nobody else adds or drops any."""

    @property
    def folder(self) -> Path:
        return self.child.folder

    @property
    def alive(self) -> bool:
        return self.child.alive

    @classmethod
    async def start(cls, reactor: Any, folder: Path, timeouts: SMTimeouts) -> StorageDaemon:
        """Start one that does nothing yet. OSError, ConnectionError, TimeoutError, QMPError."""
        left = _STARTS
        while True:
            (folder / UP).unlink(missing_ok=True)
            child, left = await spawn(reactor, folder, ARGV), left - 1
            try:
                await _until_set_up(reactor, child, timeouts.start)
                return cls(child, await _monitor(reactor, child, timeouts), timeouts)
            except ConnectionError:  # it died; nobody has asked anything of it
                if not left:
                    raise
                cls.log.warn("a qemu-storage-daemon in {folder} died at its start, starting another", folder=folder)
            except BaseException:
                child.kill()
                raise

    @classmethod
    async def find(cls, reactor: Any, folder: Path, timeouts: SMTimeouts) -> StorageDaemon | None:
        """The one that lives in `folder`, if it does and answers."""
        child = find(reactor, folder)
        if child is None:
            return None
        try:
            return cls(child, await _monitor(reactor, child, timeouts), timeouts)
        except (ConnectionError, TimeoutError, QMPError):
            await child.kill()
            return None

    def execute(
        self, command: str, arguments: dict[str, Any] | None = None, timeout: float | None = None
    ) -> defer.Deferred[Any]:
        """One monitor command, with the layer's time-out."""
        return self.qmp.execute(command, arguments, timeout=timeout or self._timeouts.command)

    async def serve_nbd(self) -> None:
        """Listen on nbd.sock in its folder."""
        await self.execute("nbd-server-start", {"addr": {"type": "unix", "data": {"path": NBD}}})

    async def nodes(self) -> dict[str, dict[str, Any]]:
        """Block nodes by name."""
        found = await self.execute("query-named-block-nodes", {"flat": True})
        return {node["node-name"]: node for node in found}

    async def add_node(self, **options: Any) -> None:
        """blockdev-add, repeatable; underscores in names become dashes."""
        arguments = _dashed(options)
        name = arguments["node-name"]
        if await self.has_node(name):
            return
        await self._change("blockdev-add", arguments, there=True)

    async def reopen_node(self, **options: Any) -> None:
        """blockdev-reopen of one node, which drains it first; names as for `add_node`."""
        await self.execute("blockdev-reopen", {"options": [_dashed(options)]})

    async def drop_nodes(self, *names: str) -> None:
        """blockdev-del of those that exist, in this order."""
        for name in names:
            if await self.has_node(name):
                await self._change("blockdev-del", {"node-name": name}, there=False)

    async def has_node(self, name: str) -> bool:
        """Whether there is such a node; asks the process once only."""
        if self._names is None:
            self._names = set(await self.nodes())
        return name in self._names

    async def _change(self, command: str, arguments: dict[str, Any], there: bool) -> None:
        """Add or delete a node. What cannot be told is asked anew: it may have been done, with its answer lost."""
        names, self._names = self._names, None
        try:
            await self.execute(command, arguments)
        except QMPError:
            if await self.has_node(arguments["node-name"]) is not there:
                raise
            return
        if names is not None and self._names is None:
            (names.add if there else names.discard)(arguments["node-name"])
            self._names = names

    async def limit_writes(self, group: str, bytes_per_second: int, per_second: int) -> None:
        """The limits of a throttle group on what is written and how often, 0: none. The group is made if it is not
        there. What waits already waits as long as it was told to before."""
        limits = {"bps-write": bytes_per_second, "iops-write": per_second}
        arguments = {"path": f"/objects/{group}", "property": "limits", "value": limits}
        try:
            await self.execute("qom-set", arguments)
        except QMPError:
            await self.execute("object-add", {"qom-type": "throttle-group", "id": group})
            await self.execute("qom-set", arguments)

    async def virtual_size(self, node: str) -> int:
        """Bytes."""
        return int((await self.nodes())[node]["image"]["virtual-size"])

    async def exports(self) -> set[str]:
        """The ids of the block exports."""
        return {export["id"] for export in await self.execute("query-block-exports")}

    async def drop_export(self, name: str) -> None:
        """Remove an export whatever its clients do, and wait until it is gone."""
        if name not in await self.exports():
            return
        gone = self.qmp.event(lambda event, data: event == "BLOCK_EXPORT_DELETED" and data.get("id") == name)
        try:
            await self.execute("block-export-del", {"id": name, "mode": "hard"})
            await gone
        finally:
            gone.addErrback(lambda _: None)
            gone.cancel()

    async def job(self, name: str) -> dict[str, Any] | None:
        """What query-jobs says of one job."""
        return next((job for job in await self.execute("query-jobs") if job["id"] == name), None)

    async def end(self) -> None:
        """Kill it and wait until it is gone. Whoever wrote through it has flushed before."""
        self.qmp.close()
        await self.child.kill()

    def let_go(self) -> None:
        """Stop watching; the process lives on."""
        self.qmp.close()
        self.child.abandon()


async def _until_set_up(reactor: Any, child: Child, timeout: float) -> None:
    """Wait until nobody works on its monitor any more. QEMU 7.2 sets that up in a thread of its own; a client that is
    let in meanwhile makes two threads read of its socket: now and then it dies of that (in monitor_can_read), or a byte
    of a command is lost much later. ConnectionError when it has died, TimeoutError."""
    deadline = reactor.seconds() + timeout
    while not (child.folder / UP).exists() or _at_work(child.pid):
        if not child.alive:
            raise ConnectionError(f"{child.folder.name} ended before its monitor answered")
        if reactor.seconds() > deadline:
            raise TimeoutError(f"qemu-storage-daemon in {child.folder} was not set up within {timeout:g} seconds")
        await task.deferLater(reactor, 0.005)


def _at_work(pid: int) -> bool:
    """Whether a thread of the process is not asleep, its first one aside. False if it is gone."""
    for thread in Path(f"/proc/{pid}/task").glob("*"):
        try:
            state = (thread / "stat").read_text().rsplit(")", 1)[1].split()[0]
        except OSError:
            continue
        if int(thread.name) != pid and state != "S":
            return True
    return False


async def _monitor(reactor: Any, child: Child, timeouts: SMTimeouts) -> QMP:
    return await connect(reactor, child.folder / MONITOR, lambda: child.alive, timeouts.start)


def _dashed(options: dict[str, Any]) -> dict[str, Any]:
    return {key.replace("_", "-"): value for key, value in options.items()}
