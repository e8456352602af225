"""One host of a lab: a daemon in a process of its own, on loopback ports of its own."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from ..cli.connection import Server
from ..cli.failures import Refused
from ..config import MigrationTimes
from ..configuration import build, show
from ..processes import remains
from ..processes.child import ProcessName, boot_id, start_time
from ..xenapi.passwords import user_line

USER = "root"


PORTS = range(10240, 32768)
"""Below those from which Linux takes one for each connection that goes out: a host that is down would lose its own."""


def free_port() -> int:
    """A TCP port of the loopback address that nobody listens on now. Chosen by chance: several labs that start at once
    do not choose the same."""
    while True:
        port = secrets.choice(PORTS)
        try:
            socket.create_server(("127.0.0.1", port)).close()
        except OSError:
            continue
        return port


@attrs.define
class LabHost:
    """`srs` is label -> uuid. `process` is the daemon that was started last, dead or alive."""

    name: str
    state_dir: Path
    password: str = attrs.field(repr=False)
    port: int = attrs.field(factory=free_port)
    https_port: int = attrs.field(factory=free_port)
    iscsi_port: int = attrs.field(factory=free_port)
    srs: dict[str, str] = attrs.field(factory=dict)
    process: ProcessName | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def https_url(self) -> str:
        return f"https://127.0.0.1:{self.https_port}"

    @property
    def server(self) -> Server:
        """For XenAPI sessions: `with host.server.session() as session`."""
        return Server(self.url, USER, self.password)

    @property
    def argv(self) -> list[str]:
        """The daemon's command line; the same each time."""
        return [sys.executable, "-m", "xapi_migrate.cli", "serve", "--config", str(self.config_path)]

    @property
    def config_path(self) -> Path:
        return self.state_dir / "daemon.toml"

    @property
    def log_path(self) -> Path:
        return self.state_dir / "daemon.log"

    def console(self, vm_uuid: str) -> Path:
        """What the VM printed on its serial console while it ran here."""
        return self.state_dir / "consoles" / f"{vm_uuid}.log"

    def configure(self, settings: Mapping[str, Any]) -> None:
        """Write the daemon's configuration and its one user. `settings`: attributes of Config and MigrationTimes that
        differ from a lab's usual ones."""
        self.state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        times = {name: value for name, value in settings.items() if name in attrs.fields_dict(MigrationTimes)}
        config = build({
            "state_dir": str(self.state_dir),
            "listen": (f"tcp:{self.port}:interface=127.0.0.1", f"tls:{self.https_port}:interface=127.0.0.1"),
            "schemes": ("http", "https"),
            "insecure_storage": True,
            "iscsi_port": self.iscsi_port,
            **{name: value for name, value in settings.items() if name not in times},
            "times": times,
        })  # fmt: skip
        self.config_path.write_text(show(config))
        users = self.state_dir / "users"
        users.touch(mode=0o600)
        users.write_text(user_line(USER, self.password))

    def start(self) -> None:
        """Start the daemon; it is not ready yet when this returns."""
        with self.log_path.open("ab") as log:
            process = subprocess.Popen(
                self.argv, cwd=self.state_dir, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip
        process.returncode = 0  # reaped by `remains`; subprocess must not wait for it too
        self.process = ProcessName(process.pid, start_time(process.pid) or 0, boot_id())

    def wait_ready(self, patience: float = 60.0) -> None:
        """Until a login succeeds. Refused, with the end of its log, if the daemon ends or takes too long."""
        deadline = time.monotonic() + patience
        while True:
            try:
                with self.server.session():
                    return
            except Refused as refused:
                if self.alive and time.monotonic() < deadline:
                    time.sleep(0.1)
                    continue
                what = f"is not ready after {patience:.0f} s ({refused})" if self.alive else "ended at its start"
                what += f" ({remains.fate(self.process)})" if self.process else ""
                raise Refused(f"The daemon of {self.name} {what}; its log ends:\n{self.log_end()}") from None

    @property
    def alive(self) -> bool:
        return bool(self.daemons())

    def daemons(self) -> list[ProcessName]:
        """This host's daemon, also when somebody else started it again with the same argv."""
        found = remains.with_command_line(self.argv)
        if self.process is not None and self.process.alive() and self.process not in found:
            found.append(self.process)  # so young that it has no command line yet
        return found

    def kill(self) -> None:
        """kill -9: guests and copies go on without their daemon."""
        remains.end(self.daemons(), signal.SIGKILL)

    def stop(self, patience: float = 20.0) -> None:
        """SIGTERM, and SIGKILL for a daemon that does not end. Guests go on."""
        if not remains.end(self.daemons(), signal.SIGTERM, patience):
            self.kill()

    def end(self) -> None:
        """The daemon and all that it started."""
        self.stop()
        remains.end(remains.children(self.state_dir))
        remains.unmount(self.state_dir)

    def log_end(self, size: int = 3000) -> str:
        """The end of the daemon's log."""
        try:
            with self.log_path.open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - size))
                return file.read().decode("utf-8", "replace")
        except OSError:
            return ""
