"""Answers of LVM 2.03.16 as they were recorded, and answers that are none."""

from __future__ import annotations

from pathlib import Path

import pytest
from sm_lvm.reports import Group, read_group, read_volumes

RECORDED = Path(__file__).with_name("recorded")


def test_volumes() -> None:
    thick, draft, thin, pool = read_volumes((RECORDED / "lvs.json").read_text())
    assert thick.name == "11111111-2222-4333-8444-555555555555"
    assert thick.path == "/dev/vg_t/11111111-2222-4333-8444-555555555555"
    assert (thick.size, thick.used, thick.active, thick.pool) == (12582912, 12582912, True, "")
    assert thick.tagged("xapi_migrate.size=") == "8389120"
    assert (draft.tagged("xapi_migrate.size="), draft.tagged("xapi_migrate.draft=")) == (None, "host_1")
    assert not draft.active
    assert (pool.name, pool.zeroes, pool.pool) == ("pool", True, "")
    assert (thin.pool, thin.size, thin.used) == ("pool", 20971520, 0)
    assert thin.active


def test_a_kernel_without_device_mapper() -> None:
    (volume,) = read_volumes((RECORDED / "lvs_no_kernel.json").read_text())
    assert not volume.active and volume.size == 8388608


def test_a_group() -> None:
    tags = frozenset({"of_somebody", "xapi_migrate.nonce/ab-c=6f6e65"})
    assert read_group((RECORDED / "vgs.json").read_text()) == Group(331350016, 201326592, 4194304, tags, 0)


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "[]",
        "{}",
        '{"report": 1}',
        '{"report": [{"vg": []}]}',
        '{"report": [{"vg": [{"vg_size": 1}]}]}',
        '{"report": [{"vg": [{"vg_size": "8.00m", "vg_free": "0", "vg_extent_size": "1", "vg_tags": ""}]}]}',
        '{"report": [{"vg": ["vg0"]}]}',
    ],
)
def test_what_is_no_answer(answer: str) -> None:
    with pytest.raises(ValueError):
        read_group(answer)
    with pytest.raises(ValueError):
        read_volumes(answer)
