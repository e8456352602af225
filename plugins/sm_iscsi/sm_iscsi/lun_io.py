"""The child process that speaks to the target: `python -m sm_iscsi.lun_io`, a request as JSON on stdin, the answer as
JSON on stdout. It can be killed at any time; the end of its session frees what it has reserved.

Requests: {"do": "capacities", "luns": [..]}, {"do": "read"}, {"do": "change", "call": .., "with": [..]}, each with
"session" (portal, target, initiator, username, password), "catalogue" (a LUN) and "patience" (seconds).
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Callable
from typing import Any, TypeVar

from sm_iscsi.catalogue import SPAN, Catalogue, Foreign, Full, Taken
from sm_iscsi.libiscsi import Conflict, LunError, Session

_T = TypeVar("_T")


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Carry it out."""
    session = Session(**request["session"])
    try:
        if request["do"] == "capacities":
            return {"capacities": {lun: session.capacity(lun) for lun in request["luns"]}}
        lun, patience = request["catalogue"], request["patience"]
        if request["do"] == "read":
            return {"catalogue": patiently(patience, lambda: _read(session, lun)).plain()}
        patiently(patience, lambda: session.reserve(lun))
        try:
            table = _read(session, lun)
            _changed(table, request["call"], request["with"])
            table.turn += 1
            session.write(lun, table.offset, table.packed())
        finally:
            session.release(lun)
        return {"catalogue": table.plain()}
    finally:
        session.close()


def _read(session: Session, lun: int) -> Catalogue:
    return Catalogue.read(session.read(lun, 0, SPAN))


def _changed(table: Catalogue, call: str, arguments: list[Any]) -> None:
    match call:
        case "claim":
            uuid, size, luns, now, stale = arguments
            table.claim(uuid, size, {int(lun): capacity for lun, capacity in luns.items()}, now, stale)
        case "finish":
            table.finish(*arguments)
        case "release":
            table.release(*arguments)
        case "leave":
            table.leave(*arguments)
        case "begin":
            pass
        case _:
            raise ValueError(call)


def patiently(patience: float, work: Callable[[], _T]) -> _T:
    """Other hosts hold the LUN for a few milliseconds each."""
    deadline = time.monotonic() + patience
    while True:
        try:
            return work()
        except Conflict:
            if time.monotonic() > deadline:
                raise
            time.sleep(random.uniform(0.005, 0.05))


def main() -> None:
    try:
        told = answer(json.load(sys.stdin))
    except Foreign:
        told = {"foreign": True}
    except Full as failure:
        told = {"full": failure.available}
    except Taken as failure:
        told = {"taken": failure.size}
    except (LunError, OSError, ValueError) as failure:
        told = {"error": f"{failure}"}
    json.dump(told, sys.stdout)


if __name__ == "__main__":
    main()
