"""One call of libxl, in a process of its own: `python -m xapi_migrate.domains.xen_call VERB NAME FOLDER`.

NAME is the domain's in Xen, FOLDER its folder on this host, whose lock the process holds: calls for one domain follow
one another, whichever daemon began them. The configuration of `create` and `restore` is FOLDER/config.json.
`suspend`, `suspend-live` and `restore` have their stream as descriptor 3, end it when stdin ends, and say on stdout how
many bytes of it have gone, a number to a line. What goes wrong is on stderr; the status is 1 then.
"""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from xapi_migrate.domains.folders import SPEC
from xapi_migrate.domains.libxl import Libxl, XenError, Xenstore
from xapi_migrate.domains.xen_stream import GivenUp, carry
from xapi_migrate.domains.xen_watch import SUSPENDED, doing

STREAM_FD = 3
CONFIG = "config.json"
LOCK = "lock"
_GRACE = 5.0
"""Seconds for libxl to end by itself once its stream has broken."""


class Call:
    """What a verb does; each takes a while, and raises XenError or OSError."""

    def __init__(self, name: str, folder: Path) -> None:
        self._name = name
        self._folder = folder
        self._xl = Libxl()

    def _domid(self) -> int:
        domid = self._xl.domid(self._name)
        if domid is None:
            raise XenError("Xen has no such domain")
        return domid

    def _config(self) -> str:
        return (self._folder / CONFIG).read_text()

    def create(self) -> None:
        domid = self._xl.create(self._config())
        self._keep_console(domid)
        self._xl.unpause(domid)

    def _keep_console(self, domid: int) -> None:
        """Append what the guest says to the console's file; this ends with the domain."""
        path = json.loads((self._folder / SPEC).read_text())["console_path"]
        with Xenstore() as store:
            terminal = store.read(f"/local/domain/{domid}/console/tty")
        if path and terminal:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            with Path(path).open("ab") as console:
                subprocess.Popen(
                    ["cat", terminal], stdin=subprocess.DEVNULL, stdout=console, stderr=subprocess.DEVNULL,
                    start_new_session=True, cwd="/",
                )  # fmt: skip

    def pause(self) -> None:
        self._xl.pause(self._domid())

    def unpause(self) -> None:
        self._xl.unpause(self._domid())

    def resume(self) -> None:
        """What does not stand still after a suspend stays as it is. The lock has been waited for: no suspend is under
        way, and none of an earlier daemon either."""
        domid = self._domid()
        if doing(self._xl.info(domid) or {}) == SUSPENDED:
            self._xl.resume(domid)

    def shutdown(self) -> None:
        self._xl.shutdown(self._domid())

    def destroy(self) -> None:
        domid = self._xl.domid(self._name)
        if domid is not None:
            self._xl.destroy(domid)

    def suspend(self) -> None:
        self._send(live=False)

    def suspend_live(self) -> None:
        self._send(live=True)

    def _send(self, live: bool) -> None:
        domid = self._domid()
        read, write = os.pipe()
        carrier = _Carrier(read, STREAM_FD, lambda: os.close(read))
        try:
            self._xl.suspend(domid, write, live)
        except XenError as failure:
            raise XenError(carrier.failure or str(failure)) from failure
        finally:
            os.close(write)
        carrier.join()
        if carrier.failure:
            raise XenError(carrier.failure)

    def restore(self) -> None:
        read, write = os.pipe()
        carrier = _Carrier(STREAM_FD, write, lambda: os.close(write))
        try:
            self._keep_console(self._xl.restore(self._config(), read))
        except XenError as failure:
            raise XenError(carrier.failure or str(failure)) from failure


class _Carrier(threading.Thread):
    """Carries until an end; `close` is then called, by which libxl notices. `failure`: why it ended early."""

    def __init__(self, source: int, sink: int, close: Callable[[], None]) -> None:
        super().__init__(daemon=True)
        self.failure = ""
        self._ends = source, sink
        self._close = close
        self.start()

    def run(self) -> None:
        source, sink = self._ends
        try:
            carry(source, sink, 0, lambda count: print(count, flush=True))
        except GivenUp as end:
            self.failure = str(end)
            threading.Timer(_GRACE, os._exit, [1]).start()
        except OSError as failure:
            self.failure = f"its stream broke off: {failure.strerror or failure}"
        self._close()


def main(verb: str, name: str, folder: str) -> int:
    os.set_inheritable(STREAM_FD, False) if verb in ("suspend", "suspend-live", "restore") else None
    with (Path(folder) / LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            getattr(Call(name, Path(folder)), verb.replace("-", "_"))()
        except (XenError, OSError) as failure:
            print(failure, file=sys.stderr, flush=True)
            return 1
    return 0


if __name__ == "__main__":
    os._exit(main(*sys.argv[1:4]))
