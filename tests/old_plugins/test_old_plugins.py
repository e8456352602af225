"""Backends that were written for older generations of the interface go on working, unchanged."""

from __future__ import annotations

import hashlib
import sys
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest

from xapi_migrate.sm.discovery import OLDEST, discover
from xapi_migrate.sm.interfaces import GENERATION, ISMDriver
from xapi_migrate.testing.adapters import for_pytest
from xapi_migrate.testing.folder_backend import FolderDriver
from xapi_migrate.testing.sm_contract import BACKEND_CHECKS, COPY_CHECKS, SR_CHECKS
from xapi_migrate.testing.sr_hosts import one_sr, two_srs

HERE = Path(__file__).parent
FROZEN = {"generation_1/closet.py": "921137ec99dbba4c3173a2754f98d952d603cc78587423a3e7cb4eca9256865f"}


def found(generation: int) -> ISMDriver:
    """As the daemon finds it."""
    package = ModuleType(f"old_plugins_{generation}")
    package.__path__ = [str(HERE / f"generation_{generation}")]
    sys.modules[package.__name__] = package
    drivers = discover(package)
    assert drivers.broken == ()
    (driver,) = drivers.usable.values()
    return driver


def scratch(folder: Path) -> dict[str, str]:
    return {"location": str(folder)}


OLD = (found(1), scratch)
NEW = (FolderDriver(), scratch)

test_backend = for_pytest(BACKEND_CHECKS, partial(one_sr, *OLD))
test_sender = pytest.mark.system(for_pytest(SR_CHECKS, partial(two_srs, OLD, NEW)))
test_receiver = pytest.mark.system(for_pytest(COPY_CHECKS, partial(two_srs, NEW, OLD)))


def test_there_is_one_for_each_generation() -> None:
    assert [found(number).generation for number in range(OLDEST, GENERATION + 1)] == [1]


@pytest.mark.parametrize("name", sorted(FROZEN))
def test_they_are_frozen(name: str) -> None:
    assert hashlib.sha256((HERE / name).read_bytes()).hexdigest() == FROZEN[name]
