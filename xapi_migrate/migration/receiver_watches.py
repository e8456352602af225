"""What ends a migration that is open at the receiver though its sender says nothing of the kind."""

from __future__ import annotations

from typing import Any

from twisted.internet import defer, task
from twisted.python.failure import Failure

from ..together import started
from . import phase2_receiving
from .heartbeat import Listening
from .incoming import Incoming
from .one_work import exception_of
from .receiver import Receiver


class ReceiverWatches:
    """The end of the offer's life, the sender's silence, the death of what it copies into: each is an input of
    `machine`."""

    def __init__(self, migration: Incoming, machine: Receiver) -> None:
        host = migration.host
        self._migration = migration
        self._machine = machine
        self._listening = Listening(
            host.clock, host.config.times.heartbeat_lost, migration.story, lambda reason: machine.abort(reason)
        )
        self._expiry: Any = None
        self._looking: defer.Deferred[None] | None = None

    def offered(self) -> None:
        """The offer's life begins (1.2)."""
        host = self._migration.host
        self._expiry = host.clock.callLater(host.config.times.offer, self._machine.expire)

    def taken(self) -> None:
        """The sender has come (2.1): from now on it must not be silent for too long."""
        self._stop_expiry()
        self._listening.start()

    def touch(self) -> None:
        """A request came."""
        self._listening.touch()
        if self._expiry is not None and self._expiry.active():
            # A sender that waits its own turn keeps its offer by HEAD.
            self._expiry.reset(self._migration.host.config.times.offer)

    def look_after_disks(self) -> None:
        """While the sender copies: what it copies into must live."""

        async def look() -> None:
            while True:
                await task.deferLater(self._migration.host.clock, self._migration.host.config.times.poll)
                await phase2_receiving.look_after(self._migration)

        def died(failure: Failure) -> None:
            if self._looking is looking and failure.check(defer.CancelledError) is None:
                self._looking = None
                self._machine.failed(exception_of(failure))

        looking = self._looking = started(look())
        looking.addErrback(died)

    def leave_disks(self) -> None:
        """They are closed on purpose now."""
        looking, self._looking = self._looking, None
        if looking is not None:
            looking.cancel()

    def stop(self) -> None:
        """All of them."""
        self._stop_expiry()
        self._listening.stop()
        self.leave_disks()

    def _stop_expiry(self) -> None:
        if self._expiry is not None and self._expiry.active():
            self._expiry.cancel()
