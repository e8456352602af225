"""A storage backend behind a guard: it is somebody else's code.

Each call has a time-out, whatever it does with its cancellation; what it raises becomes an error of the catalogue that
names the SR; what it answers is looked at before anybody relies on it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from twisted.internet import defer
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import Invalid
from zope.interface.verify import verifyObject

from xapi_migrate.errors import MigrateError, SrBackendFailure
from xapi_migrate.refusals import SrOperationNotSupported
from xapi_migrate.sm.interfaces import (
    CopyState,
    CopyStatus,
    IAttachesVDIs,
    ImageFormat,
    ImageLocation,
    ImageNode,
    ISRBackend,
    SameDiskProof,
    SRStat,
    TargetUrl,
    VDIInfo,
)
from xapi_migrate.sm.optional import ICopyTask
from xapi_migrate.together import started
from xapi_migrate.uuids import UUID

_T = TypeVar("_T")
SECTOR = 512
MOST = 1 << 63
COPY_CALLS = ("finish", "cancel", "replace")


class GuardedBackend:
    """ISRBackend's calls and the optional ones, for the repository. `features` and `formats` are the driver's; None:
    everything."""

    log = Logger()

    def __init__(
        self,
        sr: str,
        backend: Any,
        reactor: Any,
        timeout: float,
        features: Collection[str] | None = None,
        formats: Collection[str] | None = None,
    ) -> None:
        try:
            verifyObject(ISRBackend, backend)
        except Invalid as failure:
            raise SrBackendFailure(f"SR {sr}", f"its backend is incomplete: {' '.join(str(failure).split())}") from None
        self._sr = sr
        self._backend = backend
        self._reactor = reactor
        self._timeout = timeout
        self._features = features
        self._formats = formats

    # -- required calls

    async def attach(self) -> None:
        await self._ask(f"attaching SR {self._sr}", "attach")

    async def detach(self) -> None:
        await self._ask(f"detaching SR {self._sr}", "detach")

    async def stat(self) -> SRStat:
        what = f"the sizes of SR {self._sr}"
        stat = await self._ask(what, "stat")
        if not isinstance(stat, SRStat) or not _numbers(stat.total, stat.free, stat.used) or stat.free > stat.total:
            self._wrong(what, stat)
        return stat

    async def scan(self) -> list[VDIInfo]:
        """What cannot be a VDI is left out and logged."""
        what = f"scanning SR {self._sr}"
        found = await self._ask(what, "scan")
        if not isinstance(found, (list, tuple)):
            self._wrong(what, found)
        known: dict[str, VDIInfo] = {}
        for info in found:
            if _possible(info) and info.uuid not in known:
                known[info.uuid] = info
            else:
                self.log.warn(
                    "the scan of SR {sr} by {backend} shows what cannot be, and is left out: {info}",
                    sr=self._sr, backend=type(self._backend).__name__, info=_shown(info),
                )  # fmt: skip
        return list(known.values())

    async def vdi_create(self, uuid: str, virtual_size: int) -> VDIInfo:
        self._require("VDI_CREATE")
        what = f"creating VDI {uuid}"
        info = await self._ask(what, "vdi_create", uuid, virtual_size)
        return self._sized(what, info, uuid, virtual_size)

    async def vdi_destroy(self, uuid: str) -> None:
        self._require("VDI_DESTROY")
        await self._ask(f"destroying VDI {uuid}", "vdi_destroy", uuid)

    async def vdi_location(self, uuid: str) -> ImageLocation | ImageNode:
        what = f"finding VDI {uuid}"
        found = await self._ask(what, "vdi_location", uuid)
        if not isinstance(found, (ImageLocation, ImageNode)) or not _placed(found):
            self._wrong(what, found)
        if self._formats is not None and found.format.value not in self._formats:
            raise SrBackendFailure(what, f"its format {found.format.value} is none of the backend's")
        return found

    async def nonce_write(self, name: str, value: str) -> None:
        await self._ask(f"leaving a nonce in SR {self._sr}", "nonce_write", name, value)

    async def nonce_read(self, name: str) -> str:
        what = f"reading a nonce from SR {self._sr}"
        found = await self._ask(what, "nonce_read", name)
        if not isinstance(found, str) or not found.isascii():
            self._wrong(what, found)
        return found

    # -- optional calls

    @property
    def attaches(self) -> bool:
        """Whether its images are attached before they are opened."""
        return bool(IAttachesVDIs.providedBy(self._backend))

    async def vdi_attach(self, uuid: str) -> None:
        await self._ask(f"attaching VDI {uuid}", "vdi_attach", uuid)

    async def vdi_detach(self, uuid: str) -> None:
        await self._ask(f"detaching VDI {uuid}", "vdi_detach", uuid)

    async def vdi_keep(self, uuids: list[str]) -> None:
        """Nothing happens where images are not attached."""
        if self.attaches:
            await self._ask(f"attaching SR {self._sr}", "vdi_keep", uuids)

    async def vdi_resize(self, uuid: str, virtual_size: int) -> VDIInfo:
        """SrOperationNotSupported."""
        self._require("VDI_RESIZE")
        if not self._has("vdi_resize"):
            raise SrOperationNotSupported(self._sr, "VDI_RESIZE")
        what = f"resizing VDI {uuid}"
        return self._sized(what, await self._ask(what, "vdi_resize", uuid, virtual_size), uuid, virtual_size)

    async def vdi_get_url(self, uuid: str, migration: str, address: str, secure: bool) -> TargetUrl | None:
        """None: the shared services are to do it."""
        if not self._has("vdi_get_url"):
            return None
        what = f"exporting VDI {uuid}"
        url: TargetUrl | None = await self._ask(what, "vdi_get_url", uuid, migration, address, secure)
        if url is not None and not _usable(url):
            self._wrong(what, type(url))  # it may hold a secret
        if url is not None and secure and not url.url.startswith("nbds:"):
            await self.vdi_close_url(uuid, migration)
            raise SrBackendFailure(what, "its backend cannot encrypt what is copied into it, and this offer is https")
        return url

    async def vdi_close_url(self, uuid: str, migration: str) -> None:
        if self._has("vdi_close_url"):
            await self._ask(f"closing the URL of VDI {uuid}", "vdi_close_url", uuid, migration)

    async def vdi_copy(
        self, uuid: str, url: TargetUrl, ref: str, proof: SameDiskProof | None, force_copy: bool
    ) -> ICopyTask | None:
        """None: the shared copier is to do it."""
        if not self._has("vdi_copy"):
            return None
        what = f"copying VDI {uuid}"
        copy: ICopyTask | None = await self._ask(what, "vdi_copy", uuid, url, ref, proof, force_copy)
        if copy is not None and not all(
            callable(getattr(copy, call, None)) for call in ("finish", "cancel", "replace")
        ):
            self._wrong(what, type(copy))
        return copy

    def copy_status(self, uuid: str, copy: ICopyTask) -> CopyStatus:
        """Where a copy of the backend's own is."""
        what = f"copying VDI {uuid}"
        try:
            status: object = copy.status
        except MigrateError:
            raise
        except Exception as failure:
            raise _failure(what, failure) from failure
        if not isinstance(status, CopyStatus) or not isinstance(status.state, CopyState):
            self._wrong(what, status)
        return status

    # -- the guard

    async def within(self, what: str, call: Callable[..., Awaitable[_T]], *arguments: Any) -> _T:
        """The answer of a backend's call. SrBackendFailure for everything that is not in the catalogue, and when there
        is none in time: the call is cancelled then, and nobody waits for what it makes of that."""
        try:
            asked = started(call(*arguments))
        except MigrateError:
            raise
        except Exception as failure:
            raise _failure(what, failure) from failure
        cancelled = False

        def cancel(_: object) -> None:
            nonlocal cancelled
            cancelled = True
            asked.cancel()

        answer: defer.Deferred[_T] = defer.Deferred(cancel)

        def expire() -> None:
            answer.errback(SrBackendFailure(what, f"no answer for {self._timeout:g} s"))
            asked.cancel()

        timer = self._reactor.callLater(self._timeout, expire)

        def ended(outcome: Any) -> None:
            if answer.called:
                if isinstance(outcome, Failure) and not outcome.check(defer.CancelledError):
                    self.log.warn("{what} failed too late: {why}", what=what, why=outcome.getErrorMessage())
            elif isinstance(outcome, Failure) and not outcome.check(MigrateError) and not cancelled:
                answer.errback(_failure(what, outcome.value))
            else:
                answer.callback(outcome)

        asked.addBoth(ended)
        try:
            return await answer
        finally:
            if timer.active():
                timer.cancel()

    async def _ask(self, what: str, call: str, *arguments: Any) -> Any:
        return await self.within(what, getattr(self._backend, call), *arguments)

    def _has(self, call: str) -> bool:
        return callable(getattr(self._backend, call, None))

    def _require(self, feature: str) -> None:
        if self._features is not None and feature not in self._features:
            raise SrOperationNotSupported(self._sr, feature)

    def _sized(self, what: str, info: object, uuid: str, asked: int) -> VDIInfo:
        """Both images of a copy have to be equally large, so a size that is nearly right is of no use."""
        if not isinstance(info, VDIInfo) or not _possible(info) or info.uuid != uuid:
            self._wrong(what, info)
        if info.virtual_size != -(-asked // SECTOR) * SECTOR:
            raise SrBackendFailure(what, f"{asked} bytes were asked for, the backend made {info.virtual_size}")
        return info

    def _wrong(self, what: str, answer: object) -> NoReturn:
        raise SrBackendFailure(what, f"the backend's answer cannot be: {_shown(answer)}")


def _failure(what: str, failure: BaseException | None) -> SrBackendFailure:
    made = SrBackendFailure(what, f"{type(failure).__name__}: {_shown(failure, str)}")
    made.__cause__ = failure
    return made


def _shown(something: object, by: Callable[[object], str] = repr) -> str:
    """What it says of itself, which is a plug-in's code too and may fail."""
    try:
        return by(something)[:200] if by is repr else by(something)
    except Exception:
        return f"a {type(something).__name__} that cannot be shown"


def _numbers(*values: object) -> bool:
    """Sizes, which records and databases keep in 64 bits."""
    return all(isinstance(value, int) and 0 <= value < MOST for value in values)


def _placed(found: ImageLocation | ImageNode) -> bool:
    if not isinstance(found.format, ImageFormat) or not _numbers(found.size):
        return False
    if isinstance(found, ImageLocation):
        return isinstance(found.path, Path) and found.path.is_absolute() and "\0" not in str(found.path)
    return isinstance(found.options, Mapping) and isinstance(found.secrets, Mapping)


def _usable(url: object) -> bool:
    return isinstance(url, TargetUrl) and all(isinstance(part, str) for part in (url.url, url.username, url.password))


def _possible(info: object) -> bool:
    return (
        isinstance(info, VDIInfo)
        and isinstance(info.uuid, str)
        and bool(UUID.fullmatch(info.uuid))
        and _numbers(info.virtual_size, info.used)
        and info.virtual_size > 0
        and info.virtual_size % SECTOR == 0
    )
