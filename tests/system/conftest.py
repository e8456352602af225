"""One lab of two hosts for all system tests; each test makes its own guest and leaves both hosts empty."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.system import labs
from tests.system.world import World


@pytest.fixture(scope="session")
def lab_world() -> Iterator[World]:
    with labs.lab() as lab:
        yield World(lab)


@pytest.fixture
def world(lab_world: World) -> Iterator[World]:
    """The lab, empty at the beginning and at the end of each test, with both daemons running."""
    yield lab_world
    labs.all_run(lab_world.lab)
    lab_world.empty()
