"""MAC addresses for interfaces that come without one."""

from __future__ import annotations

import secrets


def new_mac() -> str:
    """A random one: locally administered, unicast."""
    return ":".join(f"{byte:02x}" for byte in (0x02, *secrets.token_bytes(5)))
