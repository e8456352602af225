"""What the author of a backend may add to ISRBackend, and what is handed to him.

A backend that has none of these calls is complete. Each call says what happens without it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import Any

from zope.interface import Attribute, Interface

from xapi_migrate.sm.interfaces import CopyStatus, SameDiskProof, TargetUrl, VDIInfo


class ICopyTask(Interface):
    """A copy that has begun: what a backend's own `vdi_copy` answers, and the shared copier's."""

    status: CopyStatus = Attribute("where it is, at any moment")

    def finish() -> Awaitable[None]:
        """Nothing writes to the VDI any more: READY becomes FINISHED, anything else FAILED. Repeatable; in the dark
        window of a migration."""

    def cancel() -> Awaitable[None]:
        """End it, whatever its state; whoever uses the VDI is not disturbed. Repeatable."""

    def replace(url: TargetUrl) -> Awaitable[None]:
        """The other host is reached by another URL from now on. CopyFailed."""


class IOptionalCalls(Interface):
    """Calls that ISRBackend does not have; one that a backend has under this name is used. Never inherited from."""

    def vdi_resize(uuid: str, virtual_size: int) -> Awaitable[VDIInfo]:
        """VDI.resize: the VDI, which nobody has attached, grows to this size, a multiple of 512; what is new reads as
        zeroes. Repeatable. SrFull, VdiMissing, SrOperationNotSupported for this one VDI. Not there, or VDI_RESIZE
        not among the driver's features: SR_OPERATION_NOT_SUPPORTED."""

    def vdi_get_url(uuid: str, migration: str, address: str, secure: bool) -> Awaitable[TargetUrl | None]:
        """VDI.get_url, steps 2.3 and 2.5: where a sender writes the disk to. A repeat for the same migration answers
        the same. None, or not there: the shared services serve the VDI."""

    def vdi_close_url(uuid: str, migration: str) -> Awaitable[None]:
        """Nothing can be written through that URL any more when this fires, step 5.2. Repeatable; comes for URLs of the
        shared services too. Needed by whoever has `vdi_get_url`."""

    def vdi_copy(
        uuid: str, url: TargetUrl, ref: str, proof: SameDiskProof | None, force_copy: bool
    ) -> Awaitable[ICopyTask | None]:
        """VDI.copy, steps 3.1 to 3.5: begin to copy the VDI, which a domain may be writing to, into `url`. Not
        kept over a restart of the daemon. None, or not there: the shared copier copies it."""


class ISharedServices(Interface):
    """`SRConfig.services`: what this host shares between all backends. The calls are those that a backend without
    its own gets, for one that wants to do something before or after. Not to be used before `attach`."""

    reactor: Any = Attribute("Twisted's reactor")

    def run(argv: Sequence[str], stdin: bytes = b"") -> Awaitable[bytes]:
        """Run a program without a shell, its locale C; its stdout. SrBackendFailure with its stderr when its exit code
        is not 0. It is killed when the caller is cancelled, so time-outs leave nothing behind. What is secret goes to
        stdin, or into a file."""

    def vdi_get_url(uuid: str, migration: str, address: str, secure: bool = False) -> Awaitable[TargetUrl]:
        """Attach the VDI's datapath as target and serve it: iSCSI, or NBD over TLS where `secure`."""

    def vdi_close_url(uuid: str, migration: str) -> Awaitable[None]:
        """End that. Comes by itself after the backend's own `vdi_close_url`."""

    def vdi_copy(
        uuid: str, url: TargetUrl, ref: str, proof: SameDiskProof | None, force_copy: bool = False
    ) -> Awaitable[ICopyTask]:
        """Mirror the VDI's datapath into `url` through a copier."""
