"""The fault matrix: every blow at every point where it can fall, on real processes. `make faults` runs all of it;
without FAULTS=all a sample is run, in which every step and every blow comes at least once."""

from __future__ import annotations

import os
import random
import re
from pathlib import Path

import pytest

from tests.faults.blows import BLOWS, Blow
from tests.faults.clients import Client
from tests.faults.ground import Ground
from tests.faults.points import EVERY, NOT_STRUCK, STEPS, Point, expected

ROOT = Path(__file__).resolve().parent.parent.parent
CASES = [(point, blow) for point in EVERY for blow in BLOWS if blow.falls_on(point)]


def sample(seed: int) -> list[tuple[Point, Blow]]:
    """For each step a case, and for each blow that is not among them."""
    chance = random.Random(seed)
    chosen = [chance.choice([case for case in CASES if case[0].name == step.id]) for step in STEPS]
    for blow in BLOWS:
        if not any(blow is one for _, one in chosen):
            chosen.append(chance.choice([case for case in CASES if case[1] is blow]))
    return chosen


SEED = int(os.environ.get("FAULTS_SEED", random.randrange(10_000)))
RUN = CASES if os.environ.get("FAULTS") == "all" else sample(SEED)


@pytest.mark.system
@pytest.mark.parametrize(("point", "blow"), RUN, ids=str)
def test_struck(ground: Ground, point: Point, blow: Blow) -> None:
    client = Client()
    try:
        where = ground.run(point, blow, client)
    except BaseException as failure:
        print(f"\nFAILED {point} {blow}: {failure}", flush=True)
        raise
    error = " ".join(client.told.get("error_info", ()))
    print(f"\n{point} {blow}: {where}, {ground.healing:.1f} s; {error}", flush=True)


def test_the_matrix_is_complete() -> None:
    """Every state, journal entry and step of the code is a point, or it is said why it is none."""
    struck = {(point.role, point.name) for point in EVERY}
    assert {f"{role} {name}" for role, name in expected() - struck} == set(NOT_STRUCK)
    assert {name for _, name in struck if name[0].isdigit()} == {step.id for step in STEPS}
    assert struck - expected() == {(role, name) for role, name in struck if name[0].isdigit()}


def test_what_is_not_struck_is_tested_where_it_is_said() -> None:
    for reason in NOT_STRUCK.values():
        for path, name in re.findall(r"(tests/[\w/.]+)(?:::(\w+))?", reason):
            assert name, f"{path}: which test?"
            assert f"def {name}(" in (ROOT / path).read_text()


def test_a_sample_has_every_step_and_every_blow() -> None:
    for seed in range(20):
        chosen = sample(seed)
        assert {point.name for point, _ in chosen} >= {step.id for step in STEPS}
        assert {blow.name for _, blow in chosen} == {blow.name for blow in BLOWS}
