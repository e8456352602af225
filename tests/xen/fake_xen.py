"""A Xen of this process: domains whose guests count. `fake_libxl` asks it, from the processes that would call libxl.

With it the driver is under the domain contract in every run of the tests; that the real one behaves so is shown by
`make test-xen`.
"""

from __future__ import annotations

import json
import os
import socketserver
import threading
import time
from pathlib import Path
from typing import Any

import attrs

_TICK = 0.02
_POWERS_OFF = 0.1
MEMORY = 1 << 20


@attrs.define
class Guest:
    """`state`: running, paused, or why it is shut down."""

    domid: int
    config: dict[str, Any]
    console: Path
    state: str = "paused"
    counter: int = 0
    off_at: float | None = None
    terminal: int = -1

    @property
    def name(self) -> str:
        return str(self.config["c_info"]["name"])


class FakeXen:
    """`with FakeXen(folder) as xen:`; `address` is its socket."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.address = folder / "xen.sock"
        self.guests: dict[int, Guest] = {}
        self._last = 0
        self._lock = threading.RLock()
        self._watching: list[Any] = []
        self._ends = threading.Event()

    def __enter__(self) -> FakeXen:
        xen = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                call, *arguments = json.loads(self.rfile.readline())
                if call == "watch":
                    xen._watching.append(self.connection)
                    xen._ends.wait()
                    return
                try:
                    with xen._lock:
                        answer = {"result": getattr(xen, f"do_{call}")(*arguments)}
                except LookupError:
                    answer = {"error": "there is no such domain"}
                self.wfile.write(json.dumps(answer).encode() + b"\n")

        self._server = socketserver.ThreadingUnixStreamServer(str(self.address), Handler)
        self._server.daemon_threads = True
        self._threads = [
            threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}),
            threading.Thread(target=self._time_passes),
        ]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.set()
        self._server.shutdown()
        self._server.server_close()
        for thread in self._threads:
            thread.join()
        for domid in list(self.guests):
            self.do_destroy(domid)

    def _time_passes(self) -> None:
        while not self._ends.wait(_TICK):
            with self._lock:
                for guest in list(self.guests.values()):
                    if guest.off_at is not None and time.monotonic() > guest.off_at and guest.state == "running":
                        guest.state = "poweroff"
                        self._tell()
                    if guest.state == "running":
                        guest.counter += 1
                        os.write(guest.terminal, f"TICK {guest.counter}\n".encode())

    def _tell(self) -> None:
        for connection in self._watching:
            try:
                connection.sendall(b"@")
            except OSError:
                pass  # its process has ended

    # -- what is asked ------------------------------------------------------------------------

    def do_names(self) -> dict[str, int]:
        return {"Domain-0": 0, "somebody else's": 9999} | {guest.name: domid for domid, guest in self.guests.items()}

    def do_domid(self, name: str) -> int | None:
        return next((domid for domid, guest in self.guests.items() if guest.name == name), None)

    def do_info(self, domid: int) -> dict[str, Any] | None:
        guest = self.guests.get(domid)
        if guest is None:
            return None
        if guest.state in ("running", "paused"):
            return {"domid": domid, guest.state: True}
        return {"domid": domid, "shutdown": True, "shutdown_reason": guest.state}

    def do_console(self, domid: int) -> str:
        return str(self.guests[domid].console)

    def do_create(self, config: str) -> int:
        self._last += 1
        console = self.folder / f"console-{self._last}"
        os.mkfifo(console)
        guest = self.guests[self._last] = Guest(self._last, json.loads(config), console)
        guest.terminal = os.open(console, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        return self._last

    def do_memory(self, domid: int) -> int:
        return MEMORY if self.guests[domid] else 0

    def do_stop(self, domid: int) -> dict[str, int]:
        guest = self.guests[domid]
        if guest.state == "running":
            guest.state = "suspend"
            self._tell()
        return {"counter": guest.counter}

    def do_load(self, domid: int, state: dict[str, int]) -> None:
        self.guests[domid].counter = state["counter"]

    def do_resume(self, domid: int) -> None:
        self.guests[domid].state = "running"

    def do_pause(self, domid: int) -> None:
        self.guests[domid].state = "paused"

    def do_unpause(self, domid: int) -> None:
        self.guests[domid].state = "running"

    def do_shutdown(self, domid: int) -> None:
        self.guests[domid].off_at = time.monotonic() + _POWERS_OFF

    def do_reset(self, domid: int) -> None:
        """Its guest asks for a reset."""
        self.guests[domid].state = "reboot"
        self._tell()

    def do_destroy(self, domid: int) -> None:
        guest = self.guests.pop(domid)
        # who reads its console comes to the end of it
        os.close(guest.terminal)
        self._tell()

    # -- what tests look at -------------------------------------------------------------------

    def on(self, bridge: str) -> int:
        """How many interfaces are on it."""
        with self._lock:
            return sum(nic["bridge"] == bridge for guest in self.guests.values() for nic in guest.config["nics"])

    def crash(self, name: str) -> None:
        with self._lock:
            domid = self.do_domid(name)
            if domid is not None:
                self.do_destroy(domid)

    def stop(self, name: str) -> None:
        """As at the end of a suspend."""
        with self._lock:
            self.do_stop(self.do_domid(name) or 0)

    def reset(self, name: str) -> None:
        with self._lock:
            self.do_reset(self.do_domid(name) or 0)
