"""MAC addresses: what is one, and new ones for interfaces that come without."""

from __future__ import annotations

import re
import secrets

MAC = re.compile(r"[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}")


def new_mac() -> str:
    """A random one: locally administered, unicast."""
    return ":".join(f"{byte:02x}" for byte in (0x02, *secrets.token_bytes(5)))


def of_one_interface(text: str) -> bool:
    """Whether it is the address of one interface: not a group's, and not all noughts."""
    return bool(MAC.fullmatch(text)) and int(text[:2], 16) % 2 == 0 and any(digit not in "0:" for digit in text)
