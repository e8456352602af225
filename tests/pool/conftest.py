"""Databases that several members share: an SQLite file, and a PostgreSQL of the tests' own. A lab of one pool."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.pool.pool_world import PoolWorld
from tests.system.conftest import SETTINGS
from xapi_migrate.lab.lab import Lab
from xapi_migrate.testing.postgresql import PostgreSQL

OF_A_POOL = {"member_interval": 0.5, "member_lost": 4.0}


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgreSQL]:
    with PostgreSQL() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A new database's URL."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/records.db"
    server: PostgreSQL = request.getfixturevalue("postgresql")
    return server.new_database()


@pytest.fixture(scope="session")
def pool_lab() -> Iterator[PoolWorld]:
    folder = Path(tempfile.mkdtemp(prefix="xp-"))
    try:
        with Lab(folder, settings={**SETTINGS, **OF_A_POOL}, one_pool=True) as lab:
            yield PoolWorld(lab)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def pool(pool_lab: PoolWorld) -> Iterator[PoolWorld]:
    """Two members of one pool, without VMs at the beginning and at the end of each test, both running."""
    yield pool_lab
    for host in pool_lab.lab.hosts:
        if not host.alive:
            host.start()
            host.wait_ready()
    pool_lab.both_live()
    pool_lab.empty()


@pytest.fixture
def postgresql_pool(postgresql: PostgreSQL) -> Iterator[PoolWorld]:
    """The same on a PostgreSQL."""
    folder = Path(tempfile.mkdtemp(prefix="xp-"))
    settings = {**SETTINGS, **OF_A_POOL}
    try:
        with Lab(folder, settings=settings, one_pool=True, database=postgresql.new_database()) as lab:
            yield PoolWorld(lab)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
