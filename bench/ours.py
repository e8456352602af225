"""A guest that xapi_migrate moves between two hosts of a lab."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from bench.dark_window import moments
from bench.gap import Gap
from xapi_migrate.lab.console import wait_for_counters
from xapi_migrate.lab.lab import Lab
from xapi_migrate.lab.provisioning import Guest

NAME = "xapi_migrate"


class Ours:
    """Start it with `with`; each `move` takes the guest to the other host. `tree`: another tree of this project, whose
    daemons are started instead."""

    def __init__(self, folder: Path, guest: Guest, tree: Path | None = None) -> None:
        self._lab = Lab(folder, guest=guest)
        self._tree = tree

    def __enter__(self) -> Ours:
        usual = os.environ.get("PYTHONPATH")
        if self._tree is not None:
            os.environ["PYTHONPATH"] = str(self._tree.absolute())
        try:
            self._lab.__enter__()
        finally:
            if usual is not None:
                os.environ["PYTHONPATH"] = usual
            else:
                os.environ.pop("PYTHONPATH", None)
        self._here, self._there = self._lab.hosts
        self._uuid = self._lab.vms[0]["uuid"]
        return self

    def __exit__(self, *_: Any) -> None:
        self._lab.end()

    def settled(self) -> None:
        """Wait until the guest prints."""
        console = self._here.console(self._uuid)
        wait_for_counters(console, len(console.read_bytes().split()) + 50)

    def move(self) -> dict[str, Any]:
        """One migration: seconds from VM.migrate to its answer, milliseconds of silence, the dark window."""
        with self._there.server.session() as there, self._here.server.session() as here:
            sr = there.xenapi.SR.get_by_uuid(self._there.srs["local-raw"])
            uris = there.xenapi.VM.receive(sr)
            vm = here.xenapi.VM.get_by_uuid(self._uuid)
            with Gap(self._here.console(self._uuid), self._there.console(self._uuid)) as gap:
                began = time.time()
                here.xenapi.VM.migrate(vm, uris, {}, {})
                total = time.time() - began
        window = moments(self._here.state_dir, self._there.state_dir)
        self._here, self._there = self._there, self._here
        return {"total_s": total, "gap_ms": gap.seconds * 1000, "window_ms": window}
