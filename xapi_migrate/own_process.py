"""What the daemon asks of its own process before it opens anything."""

from __future__ import annotations

import os
import resource
import stat
from pathlib import Path

from .errors import InvalidValue


def prepare() -> None:
    """What is made is this user's alone, and as many descriptors may be open as the administrator allows."""
    os.umask(0o077)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def descriptors() -> int:
    """How many may be open."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def check_private(folder: Path) -> str:
    """What an administrator should be told of who else may look into a folder of this daemon; "" if nobody may.
    InvalidValue if others may write into it: what they put there would be believed. Blocks."""
    mode = stat.S_IMODE(folder.stat().st_mode)
    if mode & stat.S_IWOTH:
        raise InvalidValue("state_dir", f"{folder}, into which everybody may write: chmod 700 {folder}")
    if mode & 0o077:
        return f"{folder} holds keys, sessions and what guests print, and others may look into it: chmod 700 {folder}"
    return ""
