"""The way from one host to another: its migration URIs and its iSCSI target, cut and stalled together."""

from __future__ import annotations

from contextlib import ExitStack
from types import TracebackType
from typing import Self

from tests.system.proxy import Proxy
from xapi_migrate.lab.host import LabHost


class Link:
    """Both relays of one receiving host. `requests` is the one for its URIs."""

    def __init__(self, host: LabHost) -> None:
        self.requests = Proxy(("127.0.0.1", host.port))
        self.disks = Proxy(("127.0.0.1", host.iscsi_port))
        # The receiver names its target's port; the sender is sent to the relay.
        self.requests.replace = {b":%d/iqn" % host.iscsi_port: b":%d/iqn" % self.disks.port}
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self._stack.enter_context(self.requests)
        self._stack.enter_context(self.disks)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def take_down(self) -> None:
        """Break all connections, and new ones until `mend`."""
        for relay in (self.requests, self.disks):
            relay.take_down()

    def stall(self) -> None:
        """Nothing passes until `mend`, and nothing breaks."""
        for relay in (self.requests, self.disks):
            relay.stall()

    def mend(self) -> None:
        """As before."""
        for relay in (self.requests, self.disks):
            relay.mend()
