"""What happened while a guest stood still: the lines of both hosts' migration logs, by one clock."""

from __future__ import annotations

import json
import re
from pathlib import Path

from xapi_migrate.steps import Step

_BEGIN = Step.SUSPENDED.id
_MEASURED = (
    (r"disk \d+ is deactivated.*", "4.4 disks deactivated, copies finished"),
    (r"the receiver has the memory", "4.1 the receiver has the memory"),
    (r"all copies are finished.*", "4.5 all finished"),
    (r"DONE is in the journal", "DONE journaled"),
    (r"`done` came", "5.1 `done` at the receiver"),
    (r"the LUN of disk \d+ is closed", "LUNs closed"),
    (r"disk \d+ is active", "disks active"),
    (r"COMMIT is in the journal", "COMMIT journaled"),
    (r"domain .* runs", "unpaused"),
)
MOMENTS = tuple(name for _, name in _MEASURED)
"""In the order in which they come; the second one beside the first."""


def _latest(logs: Path, role: str) -> list[dict[str, str]]:
    path = max(logs.glob(f"{role}-*.log"), key=lambda log: log.stat().st_mtime)
    return [json.loads(line) for line in path.read_text().splitlines()]


def moments(sender: Path, receiver: Path) -> dict[str, float]:
    """Milliseconds from 4.3 (the domain has suspended) to each moment, for the latest migration; of moments that come
    once per disk the last. The arguments are the hosts' state folders."""
    lines = _latest(sender / "migrations", "sender") + _latest(receiver / "migrations", "receiver")
    began = next(float(line["at"]) for line in lines if line["step"] == _BEGIN)
    found: dict[str, float] = {}
    for pattern, name in _MEASURED:
        at = [float(line["at"]) for line in lines if re.fullmatch(pattern, line["text"])]
        if at:
            found[name] = (max(at) - began) * 1000
    return found
