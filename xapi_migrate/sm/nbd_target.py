"""The encrypted side of the receiving host: a disk as NBD over TLS, one nbdkit for each, with a key that dies with it.

Bytes go from the sender's copier to nbdkit and into the image's raw view, as they do through tgtd; iSCSI has no
encryption of its own. Both ends know the key (TLS-PSK), so neither needs a certificate.
"""

from __future__ import annotations

import json
import re
import secrets
import shutil
from pathlib import Path
from typing import Any

import attrs
from twisted.internet import defer, task, threads

from xapi_migrate.errors import SrBackendFailure
from xapi_migrate.processes.child import Child, find, spawn
from xapi_migrate.sm.addresses import NBDAddress, read_address
from xapi_migrate.sm.interfaces import TargetUrl
from xapi_migrate.sm.iscsi_target import migration_id
from xapi_migrate.sm.tgt_process import free_port
from xapi_migrate.sm.timeouts import SMTimeouts
from xapi_migrate.whole_file import write_whole

KEYS = "keys.psk"
_STATE, _UP = "export.json", "up"
_ATTEMPTS = 3


@attrs.define
class _Export:
    migration: str
    vdi: str
    url: TargetUrl
    child: Child | None = None

    @property
    def alive(self) -> bool:
        return self.child is not None and self.child.alive


class NBDService:
    """`folder` has a folder for each disk that is served, found again after a restart of the daemon."""

    def __init__(self, reactor: Any, folder: Path, timeouts: SMTimeouts) -> None:
        self._reactor = reactor
        self._folder = folder
        self._timeouts = timeouts
        self._lock = defer.DeferredLock()
        self._exports: dict[str, _Export] = {}
        """By the name of its folder."""

    async def recover(self) -> None:
        """After a restart of the daemon: know again what is served; what is left of others is removed."""
        for folder in sorted(self._folder.glob("*")):
            child = find(self._reactor, folder)
            try:
                kept = json.loads((folder / _STATE).read_text())
                export = _Export(kept["migration"], kept["vdi"], TargetUrl(**kept["url"]), child)
            except (OSError, ValueError, TypeError, KeyError):
                if child is not None:
                    await child.kill()
                await threads.deferToThread(shutil.rmtree, folder, ignore_errors=True)
                continue
            self._exports[folder.name] = export

    async def add(
        self,
        migration: str,
        vdi: str,
        path: Path,
        address: str,
        *,
        scsi_id: str,
        read_only: bool = False,
        holes: bool = True,
    ) -> TargetUrl:
        """Serve the file at `path` at the local `address`; `vdi` and `scsi_id` name it. Zeroes are punched as `holes`,
        or written. Repeatable: what died is served again where it was. SrBackendFailure."""
        name = migration_id(migration)
        await self._lock.acquire()
        try:
            export = self._exports.get(f"{name}-{vdi}")
            if export is None:
                key = secrets.token_hex(32)
                url = TargetUrl(NBDAddress(address, free_port(address), vdi, scsi_id).url, f"migration-{name}", key)
                export = _Export(name, vdi, url)
            if not export.alive:
                await self._start(export, path, read_only, holes)
            return export.url
        finally:
            self._lock.release()

    async def close(self, migration: str, vdi: str) -> bool:
        """Take a disk away; when this fires no request is in flight and none can come. False: there was none."""
        return await self._close(f"{migration_id(migration)}-{vdi}")

    async def drop(self, name: str) -> None:
        """Take away all that is served under this migration_id."""
        for vdi in self.by_migration().get(name, []):
            await self._close(f"{name}-{vdi}")

    async def _close(self, folder: str) -> bool:
        export = self._exports.get(folder)
        if export is None:
            return False
        if export.child is not None:
            await export.child.kill()
        await threads.deferToThread(shutil.rmtree, self._folder / folder, ignore_errors=True)
        self._exports.pop(folder, None)
        return True

    def served(self) -> set[str]:
        """All VDIs that are served."""
        return {export.vdi for export in self._exports.values()}

    def by_migration(self) -> dict[str, list[str]]:
        """The VDIs that are served, by migration_id."""
        found: dict[str, list[str]] = {}
        for export in self._exports.values():
            found.setdefault(export.migration, []).append(export.vdi)
        return found

    def serves(self, migration: str, vdi: str) -> bool:
        """Whether a living process serves this disk of this migration."""
        export = self._exports.get(f"{migration_id(migration)}-{vdi}")
        return export is not None and export.alive

    def portals(self) -> list[str]:
        """Where a living process serves a disk."""
        return [read_address(export.url.url).portal for export in self._exports.values() if export.alive]

    async def stop(self) -> None:
        """End all of them."""
        for folder, export in list(self._exports.items()):
            if export.child is not None:
                await export.child.kill()
            await threads.deferToThread(shutil.rmtree, self._folder / folder, ignore_errors=True)
            self._exports.pop(folder, None)

    def let_go(self) -> None:
        """Stop watching; they live on."""
        for export in self._exports.values():
            if export.child is not None:
                export.child.abandon()

    async def _start(self, export: _Export, path: Path, read_only: bool, holes: bool) -> None:
        folder = self._folder / f"{export.migration}-{export.vdi}"
        for attempt in range(_ATTEMPTS):
            try:
                await self._spawn(export, folder, path, read_only, holes)
                self._exports[folder.name] = export
                return
            except BaseException as failure:
                await threads.deferToThread(shutil.rmtree, folder, ignore_errors=True)
                if not isinstance(failure, SrBackendFailure) or attempt + 1 == _ATTEMPTS:
                    raise
                address = read_address(export.url.url)  # somebody else was quicker to take the port
                assert isinstance(address, NBDAddress)
                moved = attrs.evolve(address, port=free_port(address.address))
                export.url = attrs.evolve(export.url, url=moved.url)

    async def _spawn(self, export: _Export, folder: Path, path: Path, read_only: bool, holes: bool) -> None:
        address = read_address(export.url.url)
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_key(folder / KEYS, export.url)
        (folder / _UP).unlink(missing_ok=True)
        state = {"migration": export.migration, "vdi": export.vdi, "url": attrs.asdict(export.url)}
        write_whole(folder / _STATE, json.dumps(state), durable=False)
        argv = [
            "nbdkit", "--foreground", "--ipaddr", address.address, "--port", str(address.port), "--pidfile", _UP,
            "--tls=require", f"--tls-psk={KEYS}", *(["--readonly"] if read_only else []),
            *([] if holes else ["--filter=nozero"]), "file", f"file={path}", *([] if holes else ["zeromode=notrim"]),
        ]  # fmt: skip
        try:
            child = await spawn(self._reactor, folder, argv)
        except OSError as failure:
            raise SrBackendFailure("NBD with TLS", f"nbdkit cannot be started: {failure}") from failure
        try:
            await self._until_up(child, folder / _UP)
        except BaseException:
            await child.kill()
            raise
        export.child = child

    async def _until_up(self, child: Child, mark: Path) -> None:
        deadline = self._reactor.seconds() + self._timeouts.start
        while not mark.exists():
            if not child.alive or self._reactor.seconds() > deadline:
                raise SrBackendFailure("NBD with TLS", f"nbdkit did not come up: {child.errors()}")
            await task.deferLater(self._reactor, 0.01)


def write_key(path: Path, url: TargetUrl) -> None:
    """The account of a TargetUrl as a file that GnuTLS reads. ValueError for what cannot be one."""
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,64}", url.username) or not re.fullmatch(r"[0-9a-f]{64}", url.password):
        raise ValueError(f"the key for {url.url} is not 64 hexadecimal digits")
    write_whole(path, f"{url.username}:{url.password}\n", durable=False)
