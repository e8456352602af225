"""The account of a copy, kept in its folder as long as it runs: a restarted daemon goes on with it, and can replace its
copier."""

from __future__ import annotations

import json
from pathlib import Path

import attrs

from xapi_migrate.sm.interfaces import CopyState, CopyStatus, TargetUrl
from xapi_migrate.sm.with_room import write_with_room

_STATE = "copy.json"


@attrs.frozen
class CopyOf:
    """What is copied where, and under which name."""

    ref: str
    sr: str
    vdi: str


@attrs.frozen
class Kept:
    """`url` is kept while the copy runs. `begun`: its mirror runs, or has run."""

    of: CopyOf
    url: TargetUrl | None
    status: CopyStatus
    begun: bool


def keep_copy(folder: Path, kept: Kept) -> None:
    """For `read_copy`. OSError."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_with_room(folder / _STATE, json.dumps(attrs.asdict(kept, value_serializer=_plain)))


def _plain(_: object, __: object, value: object) -> object:
    return value.value if isinstance(value, CopyState) else value


def read_copy(folder: Path) -> Kept | None:
    """What a copy's folder says of it, None if that cannot be read."""
    try:
        kept = json.loads((folder / _STATE).read_text())
        status = CopyStatus(**{**kept["status"], "state": CopyState(kept["status"]["state"])})
        url = TargetUrl(**kept["url"]) if kept["url"] else None
        return Kept(CopyOf(**kept["of"]), url, status, bool(kept.get("begun", True)))  # once it was not told
    except (OSError, ValueError, KeyError, TypeError):
        return None


def has_account(folder: Path) -> bool:
    """Whether a copy of this folder has been kept, readable or not."""
    return (folder / _STATE).exists()


def forget_copy(folder: Path) -> None:
    """The first thing to go when a copy is forgotten: a folder without it is removed at the next start."""
    (folder / _STATE).unlink(missing_ok=True)
