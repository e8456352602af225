"""Hears from the kernel of each NBD connection that breaks."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.interfaces import IReactorFDSet, IReadDescriptor
from zope.interface import implementer

from xapi_migrate.domains.xen_netlink import KernelNBD


@implementer(IReadDescriptor)
class LinkDeaths:
    """`died` is called at each, whosever it is. OSError when the kernel has no NBD. Made in a thread, for it asks the
    kernel; closed by `close`."""

    def __init__(self, reactor: IReactorFDSet, died: Callable[[], None]) -> None:
        self._kernel = KernelNBD()
        self._socket = self._kernel.listen()
        self._reactor = reactor
        self._died = died

    def start(self) -> None:
        """In the reactor's thread."""
        self._reactor.addReader(self)

    def close(self) -> None:
        self._reactor.removeReader(self)
        self._socket.close()

    def fileno(self) -> int:
        return self._socket.fileno()

    def logPrefix(self) -> str:
        return "NBD connections"

    def doRead(self) -> None:
        """What broke is not told apart: all disks are looked at."""
        try:
            while self._socket.recv(1 << 16):
                pass
        except BlockingIOError:
            pass
        except OSError:
            pass  # more than fits was told: all are looked at anyway
        self._died()

    def connectionLost(self, reason: object) -> None:
        self._socket.close()
