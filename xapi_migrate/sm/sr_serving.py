"""An SR at the receiver: its VDIs are copied into (steps 2.3, 2.5, until 5.2), and it proves which storage it is."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

from twisted.internet import threads

from xapi_migrate.sm.datapath_state import DOMAIN, TARGET
from xapi_migrate.sm.interfaces import ISMDriver, SameDiskProof, SRConfig, TargetUrl, seen_name
from xapi_migrate.sm.iscsi_target import migration_id
from xapi_migrate.sm.services import SMServices
from xapi_migrate.sm.sr_images import SRImages


class ServesImages(SRImages):
    """The part of ISR that is about URLs (`vdi_get_url` and what belongs to it) and proofs."""

    def __init__(self, config: SRConfig, backend: Any, services: SMServices, driver: ISMDriver | None = None) -> None:
        super().__init__(config, backend, services, driver)
        self._own_urls: set[tuple[str, str]] = set()
        """(migration, VDI) that the backend serves itself. Not kept over a restart: the migration is then aborted."""

    async def vdi_get_url(self, uuid: str, migration: str, address: str, secure: bool = False) -> TargetUrl:
        own = await self._backend.vdi_get_url(uuid, migration, address, secure)
        if own is None:
            return await self.serve(uuid, migration, address, secure)
        self._own_urls.add((migration, uuid))
        return own

    async def serve(self, uuid: str, migration: str, address: str, secure: bool) -> TargetUrl:
        """The shared services' vdi_get_url."""
        await self._services.behind.done(uuid)
        datapath = await self._attach(uuid, TARGET)
        try:
            await datapath.activate(TARGET)
            serve = self._serve(secure)
            if datapath.of.keeps_discarded:
                serve = partial(self._services.nbd.add, holes=False)
            url = await serve(migration, uuid, datapath.view, address, scsi_id=uuid)
            if datapath.of.node is None:  # what has no file here may be on storage that hangs
                self._services.flushing.begin(uuid, Path(datapath.of.path))
            return url
        except BaseException:
            await self._services.datapaths.detach(uuid, TARGET)
            raise

    async def vdi_dummy_url(
        self, uuid: str, virtual_size: int, migration: str, address: str, secure: bool = False
    ) -> TargetUrl:
        self._require_attached()
        path = self._dummy(migration, uuid)
        await threads.deferToThread(_make_sparse, path, virtual_size)
        try:
            return await self._serve(secure)(migration, uuid, path, address, scsi_id=self.uuid, read_only=True)
        except BaseException:
            path.unlink(missing_ok=True)
            raise

    async def vdi_close_url(self, uuid: str, migration: str) -> None:
        await self._backend.vdi_close_url(uuid, migration)
        self._own_urls.discard((migration, uuid))
        await self.end_serving(uuid, migration)

    async def end_serving(self, uuid: str, migration: str) -> None:
        """The shared services' vdi_close_url."""
        services = self._services
        services.flushing.end(uuid)
        await services.iscsi.close_lun(migration, uuid)
        await services.nbd.close(migration, uuid)
        self._dummy(migration, uuid).unlink(missing_ok=True)
        await services.behind.done(uuid)

        async def tidy() -> None:
            try:
                await services.datapaths.detach(uuid, TARGET)  # whether or not the target can be removed
            finally:
                await services.iscsi.tidy(migration)

        datapath = services.datapaths.get(uuid)
        if datapath is not None and DOMAIN in datapath.users:
            # A guest may be waiting for this disk, and nothing writes to it any more.
            await datapath.end_view()
            services.behind.later(uuid, tidy)
        else:
            await tidy()

    async def vdi_is_served(self, uuid: str, migration: str) -> bool:
        if (migration, uuid) in self._own_urls:
            return True
        services = self._services
        if not (services.iscsi.serves(migration, uuid) or services.nbd.serves(migration, uuid)):
            return False
        if self._dummy(migration, uuid).exists():
            return True
        datapath = services.datapaths.get(uuid)
        return datapath is not None and TARGET in datapath.users

    async def same_disk_proof(self, migration: str) -> SameDiskProof:
        proof = SameDiskProof(migration_id(migration), secrets.token_hex(16))
        await self._backend.nonce_write(proof.name, proof.value)
        return proof

    async def proof_is_seen(self, migration: str) -> bool:
        name = migration_id(migration)
        own, answer = await self._backend.nonce_read(name), await self._backend.nonce_read(seen_name(name))
        return bool(own) and secrets.compare_digest(own.encode(), answer.encode())

    async def forget_proof(self, migration: str) -> None:
        for name in (migration_id(migration), seen_name(migration_id(migration))):
            await self._backend.nonce_write(name, "")

    def _serve(self, secure: bool) -> Callable[..., Awaitable[TargetUrl]]:
        return self._services.nbd.add if secure else self._services.iscsi.add_lun

    def _dummy(self, migration: str, uuid: str) -> Path:
        return self._services.state_dir / "tgt" / f"dummy-{migration_id(migration)}-{uuid}"


def _make_sparse(path: Path, size: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with path.open("wb") as file:
        file.truncate(size)
