"""The database's tables and their numbered upgrades.

One row per record: its fields as JSON in the data model's terms, internal fields apart, and `seq`, which keeps
the order of creation. Nothing here knows a class or a field, so a new data model needs no upgrade of the tables.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Engine,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    insert,
    select,
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
)

COUNTERS = Table(
    "counters",
    METADATA,
    Column("name", String(64), primary_key=True),
    Column("value", BigInteger, nullable=False),
)


def _first_tables(connection: Connection) -> None:
    METADATA.create_all(connection)


UPGRADES: tuple[Callable[[Connection], None], ...] = (_first_tables,)
"""UPGRADES[n] makes schema n+1 out of schema n. Only ever appended to."""


def _number(connection: Connection) -> int:
    if not connection.dialect.has_table(connection, VERSION.name):
        return 0
    return connection.execute(select(VERSION.c.number)).scalar() or 0


def upgrade(engine: Engine) -> int:
    """Bring the database to this program's schema, a copy of an SQLite file first (FILE.schema-N). Its number.

    InternalError if the database was written by a newer program.
    """
    with engine.begin() as connection:
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
    with engine.begin() as connection:
        for step in UPGRADES[number:]:
            step(connection)
        if number:
            connection.execute(update(VERSION).values(number=len(UPGRADES)))
        else:
            connection.execute(insert(VERSION).values(number=len(UPGRADES)))
    return len(UPGRADES)
