"""What `lvs` and `vgs` answer, as JSON, read into values. ValueError for what is no such answer."""

from __future__ import annotations

import json
from typing import Any

import attrs

VOLUME_FIELDS = "lv_name,lv_path,lv_size,lv_tags,lv_active,lv_attr,pool_lv,data_percent"
GROUP_FIELDS = "vg_name,vg_size,vg_free,vg_extent_size,vg_tags,vg_missing_pv_count"
FORMAT = ("--reportformat", "json", "--units", "b", "--nosuffix")
_ZEROES_NEW_BLOCKS = 7
"""Where lv_attr of a thin pool says "z"."""


@attrs.frozen
class Volume:
    """A logical volume. `size` bytes, whole extents; `used` bytes of a thin one that are allocated, as far as LVM knows
    (of an active one), else its size; `pool` the thin pool that it is in."""

    name: str
    path: str
    size: int
    used: int
    tags: frozenset[str]
    active: bool
    pool: str
    zeroes: bool

    def tagged(self, prefix: str) -> str | None:
        """What follows `prefix` in the volume's tag, None without such a tag."""
        return next((tag.removeprefix(prefix) for tag in sorted(self.tags) if tag.startswith(prefix)), None)


@attrs.frozen
class Group:
    """A volume group; `missing` physical volumes are not there. Bytes."""

    size: int
    free: int
    extent: int
    tags: frozenset[str]
    missing: int


def read_volumes(answer: str) -> list[Volume]:
    return [_volume(row) for row in _rows(answer, "lv")]


def read_group(answer: str) -> Group:
    rows = _rows(answer, "vg")
    if len(rows) != 1:
        raise ValueError(f"{len(rows)} volume groups")
    row = rows[0]
    return Group(
        _number(row, "vg_size"),
        _number(row, "vg_free"),
        _number(row, "vg_extent_size"),
        _tags(row, "vg_tags"),
        _number(row, "vg_missing_pv_count"),
    )


def _volume(row: dict[str, str]) -> Volume:
    size, percent, attributes = _number(row, "lv_size"), _text(row, "data_percent"), _text(row, "lv_attr")
    return Volume(
        _text(row, "lv_name"),
        _text(row, "lv_path"),
        size,
        int(size * float(percent) / 100) if percent else size,
        _tags(row, "lv_tags"),
        # "unknown": the kernel has no device-mapper, so nothing can be active
        _text(row, "lv_active") not in ("", "unknown"),
        _text(row, "pool_lv"),
        attributes[_ZEROES_NEW_BLOCKS : _ZEROES_NEW_BLOCKS + 1] == "z",
    )


def _rows(answer: str, kind: str) -> list[dict[str, str]]:
    found: Any = json.loads(answer)
    try:
        return [row for report in found["report"] for row in report[kind]]
    except (TypeError, KeyError) as failure:
        raise ValueError(f"no report of {kind}") from failure


def _text(row: dict[str, str], field: str) -> str:
    value = row.get(field) if isinstance(row, dict) else None
    if not isinstance(value, str):
        raise ValueError(f"no {field}")
    return value


def _number(row: dict[str, str], field: str) -> int:
    return int(_text(row, field))


def _tags(row: dict[str, str], field: str) -> frozenset[str]:
    return frozenset(tag for tag in _text(row, field).split(",") if tag)
