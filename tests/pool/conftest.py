"""Databases that several members share: an SQLite file, and a PostgreSQL of the tests' own. A lab of one pool."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.pool.pool_world import PoolWorld
from tests.system import labs
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
    with labs.lab(one_pool=True, **OF_A_POOL) as lab:
        yield PoolWorld(lab)


@pytest.fixture
def pool(pool_lab: PoolWorld) -> Iterator[PoolWorld]:
    """Two members of one pool, without VMs at the beginning and at the end of each test, both running."""
    yield pool_lab
    labs.all_run(pool_lab.lab)
    pool_lab.both_live()
    pool_lab.empty()


@pytest.fixture
def postgresql_pool(postgresql: PostgreSQL) -> Iterator[PoolWorld]:
    """The same on a PostgreSQL."""
    with labs.lab(one_pool=True, database=postgresql.new_database(), **OF_A_POOL) as lab:
        yield PoolWorld(lab)
