"""The memory of a host whose kernel runs domains as its own processes."""

from __future__ import annotations

from pathlib import Path

from xapi_migrate.domains.interfaces import HostMemory


def linux_memory() -> HostMemory:
    """What there is, and what could be used now without swapping."""
    lines = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
    told = {words[0].rstrip(":"): int(words[1]) << 10 for words in lines if len(words) > 1}
    return HostMemory(told["MemTotal"], told["MemAvailable"])
