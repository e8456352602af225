"""The shared services as one SR's backend sees them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from zope.interface import implementer

from xapi_migrate.errors import SrBackendFailure
from xapi_migrate.processes.program import run
from xapi_migrate.sm.interfaces import SameDiskProof, SRConfig, TargetUrl
from xapi_migrate.sm.optional import ICopyTask, ISharedServices

if TYPE_CHECKING:
    from xapi_migrate.sm.repository import Repository


@implementer(ISharedServices)
class SharedServices:
    """Made before the backend, bound to the repository that is made of it."""

    def __init__(self, reactor: Any) -> None:
        self.reactor = reactor
        self._bound: Repository | None = None

    def bind(self, repository: Repository) -> None:
        self._bound = repository

    async def run(self, argv: Sequence[str], stdin: bytes = b"") -> bytes:
        ended = await run(self.reactor, argv, stdin)
        if ended.code:
            raise SrBackendFailure(argv[0], ended.complaint)
        return ended.stdout

    async def vdi_get_url(self, uuid: str, migration: str, address: str, secure: bool = False) -> TargetUrl:
        return await self._repository.serve(uuid, migration, address, secure)

    async def vdi_close_url(self, uuid: str, migration: str) -> None:
        await self._repository.end_serving(uuid, migration)

    async def vdi_copy(
        self, uuid: str, url: TargetUrl, ref: str, proof: SameDiskProof | None, force_copy: bool = False
    ) -> ICopyTask:
        return await self._repository.begin_copy(uuid, url, ref, proof, force_copy)

    @property
    def _repository(self) -> Repository:
        if self._bound is None:
            raise SrBackendFailure("the shared services", "they cannot be used before the SR is attached")
        return self._bound


def services_of(config: SRConfig) -> ISharedServices:
    """What was handed to the driver; where the backend is tried by itself, services that can only `run`."""
    if config.services is not None:
        return config.services  # type: ignore[no-any-return]
    from twisted.internet import reactor

    return ISharedServices(SharedServices(reactor))
