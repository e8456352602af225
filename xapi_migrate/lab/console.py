"""Waiting for what a guest prints."""

from __future__ import annotations

import time
from pathlib import Path

from ..cli.failures import Refused
from ..testing.guests import ticker


def wait_for_counters(console: Path, count: int, patience: float = 120.0) -> int:
    """Until that many counters are in the console log; the last one. Refused after `patience` seconds."""
    deadline = time.monotonic() + patience
    while True:
        counters = ticker.read(console).counters
        if len(counters) >= count:
            return counters[-1]
        if time.monotonic() > deadline:
            raise Refused(f"The guest printed {len(counters)} lines in {patience:.0f} s; {count} were expected.")
        time.sleep(0.05)
