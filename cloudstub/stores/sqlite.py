"""One way to open an SQLite file: WAL, so that readers never wait for the writer, and explicit transactions."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

BUSY_S = 10.0
"""How long a writer waits for another one before it gives up (sqlite3.OperationalError)."""


def connect(path: Path, schema: str, *, durable: bool = True, busy_s: float = BUSY_S) -> sqlite3.Connection:
    """Open for writing; make the tables when missing. `durable`: a commit has reached the disk (FULL)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    db = sqlite3.connect(path, timeout=busy_s, isolation_level=None, check_same_thread=False)
    db.execute("PRAGMA journal_mode = WAL")
    db.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
    db.executescript(schema)
    return db


def connect_readonly(path: Path) -> sqlite3.Connection:
    """Open for reading; rows by name. Raises sqlite3.OperationalError when there is no such file."""
    db = sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=BUSY_S, check_same_thread=False)
    db.row_factory = sqlite3.Row
    return db


@contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[None]:
    """All or nothing."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        db.rollback()
        raise
    db.commit()
