"""One lab of two hosts for all system tests; each test makes its own guest and leaves both hosts empty."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.world import World
from xapi_migrate.lab.lab import Lab

SETTINGS = {
    "heartbeat_interval": 1.0,
    "heartbeat_lost": 6.0,
    "connect": 2.0,
    "request": 20.0,
    "poll": 0.1,
    "ask": 0.5,
    "test_options": True,
}


@pytest.fixture(scope="session")
def lab_world() -> Iterator[World]:
    folder = Path(tempfile.mkdtemp(prefix="xm-"))
    try:
        with Lab(folder, settings=SETTINGS) as lab:
            yield World(lab)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def world(lab_world: World) -> Iterator[World]:
    """The lab, empty at the beginning and at the end of each test, with both daemons running."""
    yield lab_world
    for host in lab_world.lab.hosts:
        if not host.alive:
            host.start()
            host.wait_ready()
        for uuid, record in lab_world.vms(host).items():
            if not record["is_control_domain"]:
                lab_world.destroy(host, uuid)
