"""The same move by plain QEMU over QMP, as one would do it by hand: disks by blockdev-mirror over NBD, memory over tcp,
QEMU's pause before the switch-over."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.gap import Gap
from xapi_migrate.domains.interfaces import DomainSpec
from xapi_migrate.domains.qemu_arguments import arguments
from xapi_migrate.domains.qemu_config import QEMUConfig
from xapi_migrate.lab.console import wait_for_counters
from xapi_migrate.lab.host import free_port
from xapi_migrate.lab.provisioning import MIB, Guest, fill_boot_disk

NAME = "QEMU by hand"
_CONFIG = QEMUConfig()
_PATIENCE = 300.0


class Monitor:
    """A blocking QMP connection."""

    def __init__(self, path: Path) -> None:
        deadline = time.monotonic() + 20
        self._socket = socket.socket(socket.AF_UNIX)
        while True:
            try:
                self._socket.connect(os.path.relpath(path))
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.005)
        self._socket.settimeout(_PATIENCE)
        self._lines = self._socket.makefile("rb")
        self._events: list[dict[str, Any]] = []
        self._read()
        self.ask("qmp_capabilities")

    def _read(self) -> dict[str, Any]:
        line = self._lines.readline()
        if not line:
            raise EOFError("QEMU has ended")
        message: dict[str, Any] = json.loads(line)
        return message

    def ask(self, command: str, **arguments: Any) -> Any:
        """Underscores in argument names become dashes."""
        named = {name.replace("_", "-"): value for name, value in arguments.items()}
        self._socket.sendall(json.dumps({"execute": command, "arguments": named}).encode() + b"\n")
        while True:
            message = self._read()
            if "event" in message:
                self._events.append(message)
            elif "error" in message:
                raise RuntimeError(f"{command}: {message['error']}")
            else:
                return message["return"]

    def event(self, name: str, **data: str) -> float:
        """Wait for an event with this data; its moment, seconds since 1970."""
        seen = 0
        while True:
            for event in self._events[seen:]:
                if event["event"] == name and data.items() <= event.get("data", {}).items():
                    self._events.remove(event)
                    return float(event["timestamp"]["seconds"]) + float(event["timestamp"]["microseconds"]) / 1e6
            seen = len(self._events)
            message = self._read()
            if "event" in message:
                self._events.append(message)

    def migration(self, status: str) -> None:
        """Wait until QEMU's migration has this status."""
        self.event("MIGRATION", status=status)

    def close(self) -> None:
        self._lines.close()
        self._socket.close()


class Side:
    """One QEMU with its images, in a folder."""

    def __init__(self, folder: Path, guest: Guest, incoming: bool) -> None:
        self.folder = folder
        self.sizes = (guest.disk * MIB, guest.second_disk * MIB)
        self.console = folder.parent / f"{folder.name}.console"
        folder.mkdir(parents=True, exist_ok=True)
        for number, size in enumerate(self.sizes):
            with self.image(number).open("wb") as file:
                file.truncate(size)
        if not incoming:
            fill_boot_disk(self.image(0), guest)
        spec = DomainSpec("", str(uuid.UUID(int=1)), "guest", guest.memory * MIB, 1, console_path=str(self.console))
        argv = arguments(spec, _CONFIG, incoming=incoming)
        for number in range(len(self.sizes)):
            argv += ["-blockdev", f"driver=file,node-name=file{number},filename={self.image(number)},discard=unmap"]
            argv += ["-blockdev", f"driver=raw,node-name=disk{number},file=file{number},discard=unmap"]
            argv += ["-device", f"virtio-blk-pci,drive=disk{number},id=vbd{number},addr={9 + number:#x},"
                     f"share-rw=on,cyls=16383,heads=16,secs=63,bootindex={number}"]  # fmt: skip
        self._process = subprocess.Popen(argv, cwd=folder, stdin=subprocess.DEVNULL)
        self.monitor = Monitor(folder / "qmp.sock")

    def image(self, number: int) -> Path:
        return self.folder / f"disk{number}.raw"

    def end(self) -> None:
        """Quit, and remove the images."""
        self.monitor.close()
        self._process.kill()
        self._process.wait()
        for number in range(len(self.sizes)):
            self.image(number).unlink()
        (self.folder / "qmp.sock").unlink(missing_ok=True)


class ByHand:
    """Start it with `with`; each `move` takes the guest to the other folder."""

    def __init__(self, folder: Path, guest: Guest) -> None:
        self._guest = guest
        self._folders = [folder / "a", folder / "b"]
        self._side: Side | None = None

    def __enter__(self) -> ByHand:
        self._side = Side(self._folders[0], self._guest, incoming=False)
        return self

    def __exit__(self, *_: Any) -> None:
        if self._side is not None:
            self._side.end()

    @property
    def _here(self) -> Side:
        assert self._side is not None
        return self._side

    def settled(self) -> None:
        """Wait until the guest prints."""
        console = self._here.console
        printed = len(console.read_bytes().split()) if console.exists() else 0
        wait_for_counters(console, printed + 50)

    def move(self) -> dict[str, Any]:
        """Seconds from making the other QEMU to the end of this one, milliseconds of silence, and from STOP to
        RESUME."""
        self._folders.reverse()
        here = self._here
        new_console = self._folders[0].parent / f"{self._folders[0].name}.console"
        with Gap(here.console, new_console) as gap:
            began = time.time()
            there = Side(self._folders[0], self._guest, incoming=True)
            self._side = there
            try:
                stopped, resumed = _hand_over(here, there)
            finally:
                here.end()
            total = time.time() - began
        return {"total_s": total, "gap_ms": gap.seconds * 1000, "stop_to_resume_ms": (resumed - stopped) * 1000}


def _hand_over(here: Side, there: Side) -> tuple[float, float]:
    """Disks, then memory, then the switch; the moments of STOP and RESUME."""
    disks = [f"disk{number}" for number in range(len(here.sizes))]
    nbd, memory = free_port(), free_port()
    old, new = here.monitor, there.monitor
    new.ask("migrate-set-capabilities", capabilities=_on("events", "late-block-activate"))
    address = {"host": "127.0.0.1", "port": str(nbd)}
    new.ask("nbd-server-start", addr={"type": "inet", "data": address})
    for disk in disks:
        new.ask("block-export-add", type="nbd", id=disk, node_name=disk, writable=True)
    for disk in disks:
        server = {"type": "inet", **address}
        old.ask("blockdev-add", driver="nbd", node_name=f"to-{disk}", server=server, export=disk,
                discard="unmap", detect_zeroes="unmap")  # fmt: skip
        old.ask("blockdev-mirror", job_id=disk, device=disk, target=f"to-{disk}", sync="full", auto_dismiss=True)
    for disk in disks:
        old.event("BLOCK_JOB_READY", device=disk)
    new.ask("migrate-incoming", uri=f"tcp:127.0.0.1:{memory}")
    old.ask("migrate-set-capabilities", capabilities=_on("events", "pause-before-switchover"))
    limits = {"max_bandwidth": _CONFIG.bandwidth, "downtime_limit": _CONFIG.downtime_limits[0][1]}
    old.ask("migrate-set-parameters", **limits)
    old.ask("migrate", uri=f"tcp:127.0.0.1:{memory}")
    old.migration("pre-switchover")
    stopped = old.event("STOP")
    _end_mirrors(disks, old)
    old.ask("migrate-continue", state="pre-switchover")
    new.migration("completed")
    new.ask("nbd-server-stop")
    new.ask("cont")
    resumed = new.event("RESUME")
    old.migration("completed")
    return stopped, resumed


def _end_mirrors(disks: list[str], monitor: Monitor) -> None:
    for disk in disks:
        monitor.ask("block-job-cancel", device=disk)
    completed: Callable[[str], float] = lambda disk: monitor.event("BLOCK_JOB_COMPLETED", device=disk)  # noqa: E731
    for disk in disks:
        completed(disk)


def _on(*names: str) -> list[dict[str, Any]]:
    return [{"capability": name, "state": True} for name in names]
