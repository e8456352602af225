"""The other members of this host's pool: how they are reached, which of them are alive."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from twisted.internet import defer, task
from twisted.logger import Logger

from xapi_migrate.pool.member_client import MemberClient, MemberSilent
from xapi_migrate.pool.wire import Address
from xapi_migrate.refusals import HostOffline
from xapi_migrate.store.interfaces import NULL
from xapi_migrate.store.records import Records
from xapi_migrate.together import started

log = Logger()
HELLO_SECONDS = 5.0


class Members:
    """`host` is this host's ref. Every `interval` seconds, and when something was committed here, the others are told
    to look into the database; a member that has not answered for `lost` seconds is taken for dead, and what was asked
    of it fails. `free_memory` is in bytes."""

    def __init__(self, records: Records, reactor: Any, host: str, interval: float, lost: float,
        free_memory: Callable[[], int],
    ) -> None:  # fmt: skip
        self.host = host
        self._records = records
        self._reactor = reactor
        self._lost = lost
        self._free_memory = free_memory
        self._clients: dict[str, MemberClient] = {}
        self._heard: dict[str, float] = {}
        self._telling: set[str] = set()
        self._again: set[str] = set()
        self._looking = task.LoopingCall(self._look)
        self._looking.clock = reactor
        self._interval = interval
        self._stopped = False

    # -- life -----------------------------------------------------------------------------------

    def start(self, address: Address | None) -> None:
        """This host listens at `address` for the others; None: they cannot reach it."""
        told = [address.host, address.port, address.fingerprint] if address else None
        self._records.update("host", self.host, _member=told)
        self._records.after_write(self._tell_all)
        self._looking.start(self._interval)

    async def stop(self) -> None:
        self._stopped = True
        if self._looking.running:
            self._looking.stop()
        for client in self._clients.values():
            await client.close()

    def _others(self) -> list[str]:
        return [ref for ref in self._records.refs("host") if ref != self.host]

    # -- who is alive ----------------------------------------------------------------------------

    def is_live(self, host: str) -> bool:
        metrics = self._records.get("host", host)["metrics"]
        return metrics != NULL and bool(self._records.get("host_metrics", metrics)["live"])

    def _look(self) -> None:
        started(self._records.refresh()).addErrback(lambda failure: None)
        self._tell_all()
        self._say_live(self.host, True)
        self._say_memory()
        now = self._reactor.seconds()
        for host in self._others():
            if now - self._heard.setdefault(host, now) > self._lost:
                if self.is_live(host):
                    log.warn("Host {host} has not answered for {seconds} s: it is taken for dead", host=host,
                             seconds=self._lost)  # fmt: skip
                self._say_live(host, False)
                if host in self._clients:
                    self._clients[host].give_up()
        self._take_mastership()

    def _say_live(self, host: str, live: bool) -> None:
        metrics = self._records.get("host", host)["metrics"]
        if metrics != NULL:
            self._records.update("host_metrics", metrics, live=live)

    def _say_memory(self) -> None:
        """How much is free, when that has changed by a sixteenth: others place VMs by it."""
        metrics, free = self._records.get("host", self.host)["metrics"], self._free_memory()
        if metrics != NULL:
            told = self._records.get("host_metrics", metrics)["memory_free"]
            if abs(told - free) > told // 16:
                now = datetime.fromtimestamp(self._reactor.seconds(), UTC)
                self._records.update("host_metrics", metrics, memory_free=free, last_updated=now)

    def _take_mastership(self) -> None:
        """The first host that is alive is master in the place of a dead one. It is a name for clients: nothing depends
        on who it is."""
        for pool in self._records.refs("pool"):
            master = self._records.get("pool", pool)["master"]
            if self._records.has("host", master) and self.is_live(master):
                continue
            if next((host for host in self._records.refs("host") if self.is_live(host)), "") == self.host:
                self._records.update("pool", pool, master=self.host)

    # -- waking each other ------------------------------------------------------------------------

    def _tell_all(self) -> None:
        for host in self._others():
            if host in self._telling:
                self._again.add(host)
            elif not self._stopped:
                self._telling.add(host)
                started(self._tell(host)).addErrback(lambda failure: log.failure("telling a member", failure))

    async def _tell(self, host: str) -> None:
        try:
            while True:
                self._again.discard(host)
                try:
                    client = self._client(host)
                    hello = started(client.ask("hello", {"from": self.host}))
                    await hello.addTimeout(HELLO_SECONDS, self._reactor)
                except (MemberSilent, HostOffline, defer.TimeoutError, defer.CancelledError):
                    return
                self._heard[host] = self._reactor.seconds()
                self._say_live(host, True)
                if host not in self._again or self._stopped:
                    return
        finally:
            self._telling.discard(host)

    def hello(self, told: Mapping[str, Any]) -> None:
        """Another member has committed something, or is alive."""
        host = str(told.get("from", ""))
        if self._records.has("host", host):
            self._heard[host] = self._reactor.seconds()
        started(self._records.refresh()).addErrback(lambda failure: None)

    # -- asking -----------------------------------------------------------------------------------

    async def ask(self, host: str, what: str, told: Mapping[str, Any]) -> Any:
        """What another member answers. HostOffline; RemoteError with what it refuses it for."""
        if not self.is_live(host):
            raise HostOffline(host)
        try:
            return await self._client(host).ask(what, told)
        except MemberSilent as silence:
            log.warn("Host {host} does not answer: {reason}", host=host, reason=str(silence))
            raise HostOffline(host) from None

    def _client(self, host: str) -> MemberClient:
        told = self._records.get("host", host).get("_member")
        if not told:
            raise HostOffline(host)
        address = Address(*told)
        known = self._clients.get(host)
        if known is None or known.address != address:
            if known is not None:
                started(known.close()).addErrback(lambda failure: log.failure("closing a member's client", failure))
            known = self._clients[host] = MemberClient(self._reactor, address, self._records.member_secret)
        return known
