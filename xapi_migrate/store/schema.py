"""The database's tables and their numbered upgrades.

One row per record: its fields as JSON in the data model's terms, internal fields apart, `seq`, which keeps the order of
creation, and the generation of the commit that wrote it last. A record that is gone leaves its name in `removed` for a
while, so that other daemons on the same database hear of it. Nothing here knows a class or a field, so a new data model
needs no upgrade of the tables.
"""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Callable
from pathlib import Path

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Engine,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    insert,
    inspect,
    select,
    text,
    update,
)

from xapi_migrate.errors import InternalError

METADATA = MetaData()

VERSION = Table("schema_version", METADATA, Column("number", Integer, nullable=False))

RECORDS = Table(
    "records",
    METADATA,
    Column("cls", String(64), primary_key=True),
    Column("ref", String(255), primary_key=True),
    Column("uuid", String(255), nullable=False),
    Column("seq", BigInteger, nullable=False),
    Column("fields", Text, nullable=False),
    Column("internal", Text, nullable=False),
    Column("generation", BigInteger, nullable=False, server_default="0"),
    Index("records_by_generation", "generation"),
)

REMOVED = Table(
    "removed",
    METADATA,
    Column("cls", String(64), primary_key=True),
    Column("ref", String(255), primary_key=True),
    Column("generation", BigInteger, nullable=False),
    Index("removed_by_generation", "generation"),
)

COUNTERS = Table(
    "counters",
    METADATA,
    Column("name", String(64), primary_key=True),
    Column("value", BigInteger, nullable=False),
)
SECRETS = Table(
    "secrets",
    METADATA,
    Column("name", String(64), primary_key=True),
    Column("value", String(255), nullable=False),
)
MEMBERS = "members"
"""What the members of a pool know each other by: whoever reads the database is one of them."""

GENERATION, HORIZON, SEED = "generation", "horizon", "seed"
"""generation: of the latest commit. horizon: removals up to here are forgotten. seed: from it the members of a pool
make the same references for what belongs to all of them."""


def _first_tables(connection: Connection) -> None:
    METADATA.create_all(connection)


def _generations(connection: Connection) -> None:
    if "generation" not in {column["name"] for column in inspect(connection).get_columns(RECORDS.name)}:
        connection.execute(text("ALTER TABLE records ADD COLUMN generation BIGINT NOT NULL DEFAULT 0"))
        next(iter(RECORDS.indexes)).create(connection)
    REMOVED.create(connection, checkfirst=True)
    known = {row.name for row in connection.execute(select(COUNTERS))}
    for name, value in ((GENERATION, 0), (HORIZON, 0), (SEED, secrets.randbits(62))):
        if name not in known:
            connection.execute(insert(COUNTERS).values(name=name, value=value))


def _members(connection: Connection) -> None:
    SECRETS.create(connection, checkfirst=True)
    connection.execute(insert(SECRETS).values(name=MEMBERS, value=secrets.token_hex(32)))


UPGRADES: tuple[Callable[[Connection], None], ...] = (_first_tables, _generations, _members)
"""UPGRADES[n] makes schema n+1 out of schema n. Only ever appended to."""


def _number(connection: Connection) -> int:
    if not connection.dialect.has_table(connection, VERSION.name):
        return 0
    return connection.execute(select(VERSION.c.number)).scalar() or 0


def upgrade(engine: Engine) -> int:
    """Bring the database to this program's schema, a copy of an SQLite file first (FILE.schema-N). Its number. Several
    daemons may do this at once.

    InternalError if the database was written by a newer program.
    """
    with engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(7240167)"))
        number = _number(connection)
        if number > len(UPGRADES):
            raise InternalError(
                f"The database has schema {number} and this program knows up to {len(UPGRADES)}: "
                "use the newer program that wrote it."
            )
        if number == len(UPGRADES):
            return number
        database = engine.url.database
        if number and engine.dialect.name == "sqlite" and database and database != ":memory:":
            shutil.copyfile(database, Path(f"{database}.schema-{number}"))
        for step in UPGRADES[number:]:
            step(connection)
        if number:
            connection.execute(update(VERSION).values(number=len(UPGRADES)))
        else:
            connection.execute(insert(VERSION).values(number=len(UPGRADES)))
    return len(UPGRADES)
