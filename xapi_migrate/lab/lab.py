"""A lab: its hosts, its guest, the file that describes them, and its end."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ..cli.failures import Refused
from ..processes import remains
from ..processes.child import ProcessName, boot_id, start_time
from ..whole_file import write_whole
from .console import wait_for_counters
from .host import USER, LabHost
from .provisioning import Guest, create_sr, join_sr, start_guest

DESCRIPTION = "lab.json"
SRS = {"local-raw": "raw", "local-qcow2": "qcow2"}
"""SR label -> image format, on each host."""
SHARED = {"shared": "raw", "shared-qcow2": "qcow2"}
"""The same of the SRs that all hosts of one pool see."""


class Lab:
    """`with Lab(folder) as lab:` starts everything and in the end leaves no process and no mount behind; the
    folder stays. Everything here blocks.

    `guest` None: no guest. `one_pool`: the hosts have one database, `database` (a URL) or an SQLite file, and SRs that
    all of them see. `settings` are attributes of Config and MigrationTimes, for all hosts.
    """

    def __init__(
        self, folder: Path, hosts: int = 2, guest: Guest | None = None, settings: Mapping[str, Any] | None = None,
        one_pool: bool = False, database: str = "",
    ) -> None:  # fmt: skip
        self.folder = folder.absolute()
        self.one_pool = one_pool
        self._database = database or f"sqlite:///{self.folder / 'pool.db'}"
        self.guest = guest
        self.vms: list[dict[str, str]] = []
        self._settings = settings or {}
        self._identity: tuple[int, int] | None = None
        self.hosts = [
            LabHost(f"host{number}", self.folder / f"host{number}", secrets.token_urlsafe(12))
            for number in range(1, hosts + 1)
        ]

    def __enter__(self) -> Self:
        self._claim()
        try:
            self.start()
        except BaseException:
            self.end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    def start(self) -> None:
        """Hosts, SRs, guest, description. Refused if something does not come up."""
        for host in self.hosts:
            host.configure({**self._settings, **({"database": self._database} if self.one_pool else {})})
            host.start()
        self.write()
        for host in self.hosts:
            host.wait_ready()
            self._equip(host)
        if self.guest is not None:
            self._start_guest(self.hosts[0], self.guest)
        self.write()

    def end(self) -> None:
        """End all daemons and everything that they started; repeatable. In a folder that was taken away, and may be
        another lab's by now, only the processes that were started here: the others have the same command lines."""
        self.vms = []
        if self._identity != _identity(self.folder):
            remains.end([host.process for host in self.hosts if host.process])
            return
        for host in self.hosts:
            host.end()
        (self.folder / DESCRIPTION).unlink(missing_ok=True)

    def host(self, name: str) -> LabHost:
        """The host of this name."""
        return next(host for host in self.hosts if host.name == name)

    def sr_location(self, host: LabHost, label: str) -> Path:
        """Where the images of one of the host's SRs are."""
        if label in SHARED:
            return self.folder / "srs" / label
        return self.folder / "srs" / host.name / label

    def description(self) -> dict[str, Any]:
        """What lab.json says."""
        return {
            "pid": os.getpid(),
            "started": start_time(os.getpid()),
            "boot": boot_id(),
            "hosts": [
                {
                    "name": host.name, "url": host.url, "https_url": host.https_url, "username": USER,
                    "password": host.password, "state_dir": str(host.state_dir),
                    "pid": host.process.pid if host.process else 0, "argv": host.argv, "srs": host.srs,
                    "ca_file": str(host.state_dir / "tls" / "host.crt"), "log": str(host.log_path),
                }
                for host in self.hosts
            ],
            "vms": self.vms,
        }  # fmt: skip

    def write(self) -> None:
        """Write lab.json, readable by its owner alone: it holds the passwords."""
        write_whole(self.folder / DESCRIPTION, json.dumps(self.description(), indent=2) + "\n", durable=False)

    def _claim(self) -> None:
        """Take the folder: a new or empty one, or that of an earlier lab, whose remains are ended and removed."""
        self.folder.mkdir(parents=True, exist_ok=True)
        ours = [self.folder / "srs", *self.folder.glob("host[0-9]*"), *self.folder.glob(f"{DESCRIPTION}*")]
        ours += self.folder.glob("pool.db*")
        strangers = set(self.folder.iterdir()) - set(ours)
        if strangers:
            raise Refused(f"{self.folder} holds other things ({min(strangers).name}): name a new or empty directory.")
        owner = self._owner()
        if owner is not None and owner.alive():
            raise Refused(f"A lab runs in {self.folder} already (process {owner.pid}).")
        for host in json.loads((self.folder / DESCRIPTION).read_text())["hosts"] if owner else ():
            remains.end(remains.with_command_line(host["argv"]))
        remains.end(remains.children(self.folder))
        remains.unmount(self.folder)
        for path in ours:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

        self._identity = _identity(self.folder)

    def _owner(self) -> ProcessName | None:
        """The process of the lab that lab.json tells of."""
        try:
            said = json.loads((self.folder / DESCRIPTION).read_text())
            return ProcessName(said["pid"], said["started"], said["boot"])
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError):
            raise Refused(f"{self.folder / DESCRIPTION} is not a lab's: name another directory.") from None

    def _equip(self, host: LabHost) -> None:
        with host.server.session() as session:
            api = session.xenapi
            api.host.set_name_label(api.session.get_this_host(session.handle), host.name)
            for label, format in SRS.items():
                sr = create_sr(session, label, self.sr_location(host, label), format)
                host.srs[label] = api.SR.get_uuid(sr)
                if len(host.srs) == 1 and not self.one_pool:
                    api.pool.set_default_SR(api.pool.get_all()[0], sr)
            for label, format in SHARED.items() if self.one_pool else ():
                self._share(session, host, label, format)

    def _share(self, session: Any, host: LabHost, label: str, format: str) -> None:
        first = self.hosts[0]
        location = self.sr_location(host, label)
        if host is first:
            sr = create_sr(session, label, location, format, shared=True)
            host.srs[label] = session.xenapi.SR.get_uuid(sr)
            if label == "shared":
                session.xenapi.pool.set_default_SR(session.xenapi.pool.get_all()[0], sr)
        else:
            host.srs[label] = first.srs[label]
            join_sr(session, first.srs[label], location, format)

    def _start_guest(self, host: LabHost, guest: Guest) -> None:
        label = "shared" if self.one_pool else "local-raw"
        with host.server.session() as session:
            sr = session.xenapi.SR.get_by_uuid(host.srs[label])
            _, uuid = start_guest(session, sr, self.sr_location(host, label), guest)
        wait_for_counters(host.console(uuid), 1)
        self.vms.append({"name_label": guest.name_label, "uuid": uuid, "host": host.name})


def _identity(folder: Path) -> tuple[int, int] | None:
    """Tells a folder from a later one of the same name."""
    try:
        stat = folder.stat()
    except FileNotFoundError:
        return None
    return stat.st_dev, stat.st_ino
