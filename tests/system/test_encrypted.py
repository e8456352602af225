"""Hosts that offer https alone and trust no network: memory and disks move encrypted."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system import labs
from tests.system.world import World, as_raw
from xapi_migrate.lab.provisioning import Guest

pytestmark = pytest.mark.system


@pytest.fixture
def careful() -> Iterator[World]:
    with labs.lab(schemes=("https",), insecure_storage=False) as lab:
        yield World(lab)


def test_a_running_guest_moves_there_and_back_and_nothing_crosses_in_clear(careful: World, tmp_path: Path) -> None:
    world = careful
    made = world.new_guest(world.source, Guest(filled=8))
    for there in (world.destination, world.source):
        uris = world.receive("local-qcow2" if there is world.destination else "local-raw")
        assert uris and all(uri.startswith("https:") for uri in uris)
        seen = world.follow(world.begin(made.uuid, uris))
        assert (seen.status, seen.error_info) == ("success", [])
        time.sleep(0.3)
        assert world.ticks(made.uuid, there)
        world.nothing_left(world.source)
        world.source, world.destination = world.destination, world.source
    said = "".join(host.log_path.read_text() for host in world.lab.hosts)
    assert said.count("is at nbds://") >= 2
    assert "is at iscsi://" not in said
    image = world.images(world.source, made.uuid)[0]
    world.shut_down(world.source, made.uuid)
    counters = world.console(made.uuid, world.source).counters
    assert counters
    assert made.guest.ticker.lost(as_raw(image, tmp_path), counters) == []
