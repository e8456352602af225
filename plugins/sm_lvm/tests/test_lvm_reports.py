"""Answers of LVM 2.03.16 as they were recorded, and answers that are none."""

from __future__ import annotations

from pathlib import Path

import pytest
from sm_lvm.reports import read_group, read_volumes

RECORDED = Path(__file__).with_name("recorded")


def test_a_kernel_without_device_mapper() -> None:
    (volume,) = read_volumes((RECORDED / "lvs_no_kernel.json").read_text())
    assert not volume.active and volume.size == 8388608


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
