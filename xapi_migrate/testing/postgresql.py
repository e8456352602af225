"""A private PostgreSQL: a server of its own in a folder of its own, on a unix socket only."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

USER = "postgres"
BINARIES = Path("/usr/lib/postgresql")


class PostgreSQL:
    """`with PostgreSQL() as server:` runs it as the user that Debian's package makes (initdb refuses root).
    Everything here blocks."""

    def __init__(self) -> None:
        # where root is, TMPDIR may be a folder that the server's user cannot enter
        self.folder = Path(tempfile.mkdtemp(prefix="xm-pg-", dir="/tmp"))
        self._process: subprocess.Popen[bytes] | None = None
        versions = sorted(BINARIES.glob("*/bin"), key=lambda path: int(path.parent.name))
        if not versions:
            raise RuntimeError("PostgreSQL is not installed: apt-get install postgresql")
        self._bin = versions[-1]
        self._number = 0

    @property
    def user(self) -> str:
        return USER if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name

    def url(self, database: str = "postgres") -> str:
        return f"postgresql://{self.user}@/{database}?host={self.folder}"

    def new_database(self) -> str:
        """An empty database's URL."""
        self._number += 1
        name = f"pool{self._number}"
        self._sql("postgres", f"CREATE DATABASE {name}")
        return self.url(name)

    def __enter__(self) -> PostgreSQL:
        try:
            if os.geteuid() == 0:
                shutil.chown(self.folder, USER, USER)
            self._run([self._bin / "initdb", "-D", self.data, "-A", "trust", "-U", self.user, "-N", "--locale=C.UTF-8"])
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def data(self) -> Path:
        return self.folder / "data"

    def start(self) -> None:
        """Start it; ready when this returns."""
        options = ["-c", "listen_addresses=", "-c", f"unix_socket_directories={self.folder}", "-c", "fsync=off"]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._bin / "postgres", "-D", self.data, *options], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                cwd=self.folder, **self._as_user(),
            )  # fmt: skip
        deadline = time.monotonic() + 60
        while not self._ready():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"PostgreSQL did not start: {(self.folder / 'log').read_text()[-2000:]}")
            time.sleep(0.1)

    def stop(self, patience: float = 20.0) -> None:
        """End it at once, its clients' connections with it."""
        process, self._process = self._process, None
        if process is None or process.poll() is not None:
            return
        process.send_signal(signal.SIGINT)
        try:
            process.wait(patience)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _ready(self) -> bool:
        done = subprocess.run([self._bin / "pg_isready", "-q", "-h", self.folder], check=False)
        return done.returncode == 0

    def _sql(self, database: str, statement: str) -> None:
        psql = next(iter(sorted(BINARIES.glob("*/bin/psql"))))
        self._run([psql, "-q", "-h", self.folder, "-U", self.user, "-d", database, "-c", statement])

    def _run(self, argv: list[str | Path]) -> None:
        done = subprocess.run(
            argv, check=False, stdin=subprocess.DEVNULL, capture_output=True, text=True, cwd=self.folder,
            **self._as_user(),
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"{argv[0]} failed: {done.stderr[-2000:]}")

    def _as_user(self) -> dict[str, Any]:
        return {"user": USER, "group": USER} if os.geteuid() == 0 else {}
