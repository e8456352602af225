"""What the soak takes for growth."""

from __future__ import annotations

import random
from typing import Any

import attrs
import pytest

from tests.faults.soak import MORE, Measured, flat

BASE = Measured(descriptors=35, memory=321_000, records=17, images=6_300_000, state=40_000, processes=3)


def series(**more: Any) -> list[Measured]:
    """Forty samples; `more` of each from sample to sample, on average, whole numbers only."""
    return [
        attrs.evolve(BASE, **{name: getattr(BASE, name) + int(each * number) for name, each in more.items()})
        for number in range(40)
    ]


@pytest.mark.parametrize(
    ("name", "each"),
    [
        ("descriptors", 0.08),
        ("memory", 700),
        ("records", 0.05),
        ("images", 50_000),
        ("state", 25_000),
        ("processes", 0.05),
    ],
)
def test_what_grows_slowly_is_told(name: str, each: float) -> None:
    assert flat(series(**{name: each})) == [MORE[name][0]]


def test_records_that_become_fewer_are_told() -> None:
    assert flat(series(records=-0.05)) == ["records"]


def test_what_only_wavers_is_flat() -> None:
    dice = random.Random(1)
    wavering = [
        attrs.evolve(one, memory=one.memory + dice.randrange(6000), descriptors=one.descriptors + dice.randrange(2))
        for one in series()
    ]
    wavering[3] = attrs.evolve(BASE, processes=4)
    wavering[-1] = attrs.evolve(BASE, descriptors=60, memory=500_000)
    assert flat(wavering) == []


def test_few_samples_are_enough() -> None:
    assert flat([BASE]) == []
    assert flat([BASE, attrs.evolve(BASE, records=18)]) == ["records"]
