"""Says which domains Xen has, at each change, now and then, and when it is asked:
`python -m xapi_migrate.domains.xen_watch`.

A line of JSON each time: how often it was asked so far (`asked`), name -> what it does for every domain but this one
(`domains`), the host's memory and what is free of it in bytes (`memory`). It is asked by a line on stdin, and ends with
stdin.
"""

from __future__ import annotations

import json
import os
import select
import sys
from typing import Any

from xapi_migrate.domains.libxl import Libxl, XenError, Xenstore

RUNNING, PAUSED, SUSPENDED, SHUTDOWN, REBOOT, CRASHED = (
    "running",
    "paused",
    "suspended",
    "shutdown",
    "reboot",
    "crashed",
)
_NOW_AND_THEN = 5000
"""Milliseconds: memory comes and goes without an event."""
_REASONS = {"poweroff": SHUTDOWN, "reboot": REBOOT, "suspend": SUSPENDED}


def doing(info: dict[str, Any]) -> str:
    """One word for a libxl_dominfo; "" for a domain that is being destroyed."""
    if info.get("dying"):
        return ""
    if info.get("shutdown"):
        return _REASONS.get(str(info.get("shutdown_reason")), CRASHED)
    return PAUSED if info.get("paused") else RUNNING


def main() -> int:
    libxl = Libxl()
    with Xenstore() as store:
        store.watch("@releaseDomain")
        poller = select.poll()
        poller.register(0, select.POLLIN)
        poller.register(store.fileno(), select.POLLIN)
        asked = 0
        while True:
            said = {}
            for name, domid in store.names().items():
                info = libxl.info(domid) if domid else None
                if info is not None and (word := doing(info)):
                    said[name] = word
            print(json.dumps({"asked": asked, "domains": said, "memory": libxl.memory()}), flush=True)
            ready = dict(poller.poll(_NOW_AND_THEN))
            if 0 in ready:
                lines = os.read(0, 1 << 16)
                if not lines:
                    return 0
                asked += lines.count(b"\n")
            if store.fileno() in ready:
                store.seen()


if __name__ == "__main__":
    try:
        sys.exit(main())
    except XenError as failure:
        print(failure, file=sys.stderr)
        sys.exit(1)
