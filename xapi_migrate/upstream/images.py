"""Which toolstack can resume a suspend image: one of the same software that is not older than who wrote it.

The form of an upstream's images travels as `stream` in a VM's metadata, as that of memory streams does: a daemon that
stands alone reads its own hypervisor's form, and so refuses them by the same comparison.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_PARTS = ("product_brand", "product_version", "xen")


def image_form(software: Any) -> str:
    """Of a host's software_version: BRAND_VERSION_XEN, each in lower case. "" where that does not say enough, as for a
    toolstack without Xen."""
    told = software if isinstance(software, Mapping) else {}
    parts = [re.sub(r"[^a-z0-9.]+", "-", str(told.get(name) or "").lower())[:20].strip("-.") for name in _PARTS]
    return "_".join(parts) if all(parts) else ""


def can_resume(mine: str, theirs: str) -> bool:
    """Whether a toolstack with images of the form `mine` resumes `theirs`. Whether its processors do, it says itself
    when it is asked to."""
    here, there = mine.split("_"), theirs.split("_")
    if len(here) != len(_PARTS) or len(there) != len(_PARTS) or here[0] != there[0]:
        return False
    return all(_numbers(a) >= _numbers(b) for a, b in zip(here[1:], there[1:], strict=True))


def _numbers(version: str) -> list[int]:
    """Up to the first part that is none: 4.17.5-3 is 4, 17, 5."""
    matched = re.match(r"\d+(\.\d+)*", version)
    return [int(one) for one in matched[0].split(".")] if matched else []
