"""SQLite's own traps."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path

from xapi_migrate.store.commits import open_engine


def test_a_database_that_another_process_holds_is_waited_for(tmp_path: Path) -> None:
    """SQLite's own time-out does not cover the change to write-ahead logging."""
    path = tmp_path / "records.db"
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute("CREATE TABLE held (value INTEGER)")
    other.execute("BEGIN IMMEDIATE")
    other.execute("INSERT INTO held VALUES (1)")
    release = threading.Timer(0.3, lambda: other.execute("COMMIT"))
    release.start()
    engine = open_engine(f"sqlite:///{path}")
    try:
        with engine.connect() as connection:
            assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
    finally:
        release.join()
        other.close()
        engine.dispose()


def test_a_commit_is_on_the_disk_when_it_is_done(tmp_path: Path) -> None:
    """Journals go on from records that were flushed before them: these outlive a loss of power, or those are wrong."""
    engine = open_engine(f"sqlite:///{tmp_path}/records.db")
    try:
        with engine.connect() as connection:
            assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2  # FULL
    finally:
        engine.dispose()
