"""The durable buffer (X36): what was acknowledged to a gateway is in this file, on disk, until the stores have it.

`inbox` holds what waits, `seen` the identity of every block ever taken (as ranges, so it stays small when the
bytes have moved on), `clocks` the gateways' clock reports. One writer process (the ingest) adds; each mover
takes away its own kinds of rows.
"""

# ruff: noqa: S608 - statements are put together from constants only; every value is a parameter

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from enum import IntEnum
from pathlib import Path
from typing import NamedTuple

from cloudstub.ingest.core import Refuse, StoreBlock, StoreClock, StoreStatus
from cloudstub.ingest.times import Clock
from cloudstub.stores.sqlite import connect, transaction
from firmware.wire.block import HEAD_SIZE, BlockError, Kind, peek

_SCHEMA = """
CREATE TABLE IF NOT EXISTS inbox (
    id INTEGER PRIMARY KEY AUTOINCREMENT, received_us INTEGER NOT NULL, device TEXT NOT NULL,
    kind INTEGER NOT NULL, data BLOB NOT NULL);
CREATE INDEX IF NOT EXISTS inbox_kind ON inbox (kind, id);
CREATE TABLE IF NOT EXISTS seen (
    device TEXT NOT NULL, stream TEXT NOT NULL, boot BLOB NOT NULL, first INTEGER NOT NULL, last INTEGER NOT NULL,
    PRIMARY KEY (device, stream, boot, first)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS clocks (
    id INTEGER PRIMARY KEY AUTOINCREMENT, device TEXT NOT NULL, boot BLOB NOT NULL, measured_us INTEGER NOT NULL,
    boot_epoch_us INTEGER NOT NULL, error_us INTEGER NOT NULL, wall_error_us INTEGER NOT NULL,
    UNIQUE (device, boot, measured_us));
CREATE TABLE IF NOT EXISTS heard (device TEXT PRIMARY KEY, at_us INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS unreadable (
    id INTEGER PRIMARY KEY, received_us INTEGER NOT NULL, device TEXT NOT NULL, data BLOB NOT NULL,
    reason TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
"""


class Row(IntEnum):
    """Kinds of rows in the inbox."""

    SAMPLES = 0
    EVENTS = 1
    STATUS = 2


class Waiting(NamedTuple):
    """One row of the inbox."""

    id: int
    received_us: int
    device: str
    kind: int
    data: bytes


class Received(NamedTuple):
    """A decision with the time at which its message arrived."""

    received_us: int
    what: StoreBlock | StoreClock | StoreStatus | Refuse


class Buffer:
    """Open the file, make it when missing. One instance per thread."""

    def __init__(self, path: Path, *, durable: bool = True, busy_s: float = 10.0) -> None:
        self._db = connect(path, _SCHEMA, durable=durable, busy_s=busy_s)

    def close(self) -> None:
        self._db.close()

    # The ingest's side.

    def commit(self, batch: Iterable[Received]) -> int:
        """Keep a batch, all or nothing; when this returns it is on disk. Returns how many were known already.

        Raises sqlite3.Error (full, locked, damaged): then nothing was kept and nothing may be acknowledged.
        """
        counts: Counter[str] = Counter()
        heard: dict[str, int] = {}
        with transaction(self._db):
            for received_us, what in batch:
                heard[what.id.device if isinstance(what, StoreBlock) else what.device] = received_us
                match what:
                    case StoreBlock():
                        self._keep_block(received_us, what, counts)
                    case StoreClock(device, report):
                        self._db.execute(
                            "INSERT OR IGNORE INTO clocks (device, boot, measured_us, boot_epoch_us, error_us,"
                            " wall_error_us) VALUES (?, ?, ?, ?, ?, ?)",
                            (
                                device,
                                bytes.fromhex(report.boot),
                                report.measured_us,
                                report.boot_epoch_us,
                                report.error_us,
                                report.wall_error_us,
                            ),
                        )
                        counts["clock_reports"] += 1
                    case StoreStatus(device, data):
                        self._put(received_us, device, Row.STATUS, data)
                        counts["statuses"] += 1
                    case Refuse():
                        counts["refused"] += 1
            self._db.executemany("INSERT OR REPLACE INTO heard VALUES (?, ?)", heard.items())
            self._count(counts)
        return counts["duplicates"]

    def _keep_block(self, received_us: int, block: StoreBlock, counts: Counter[str]) -> None:
        if self._note_seen(*block.id):
            self._put(
                received_us,
                block.id.device,
                Row.SAMPLES if block.kind is Kind.SAMPLES else Row.EVENTS,
                block.data,
            )
            counts["blocks"] += 1
            counts["bytes"] += len(block.data)
        else:
            counts["duplicates"] += 1

    def _put(self, received_us: int, device: str, kind: Row, data: bytes) -> None:
        self._db.execute(
            "INSERT INTO inbox (received_us, device, kind, data) VALUES (?, ?, ?, ?)",
            (received_us, device, int(kind), data),
        )

    def _note_seen(self, device: str, stream: str, boot: bytes, seq: int) -> bool:
        """Add an identity to the ranges. Returns whether it was new."""
        key = (device, stream, boot)
        where = "device = ? AND stream = ? AND boot = ?"
        before = self._db.execute(
            f"SELECT first, last FROM seen WHERE {where} AND first <= ? ORDER BY first DESC LIMIT 1",
            (*key, seq),
        ).fetchone()
        if before and seq <= before[1]:
            return False
        after = self._db.execute(
            f"SELECT last FROM seen WHERE {where} AND first = ?", (*key, seq + 1)
        ).fetchone()
        first = before[0] if before and before[1] == seq - 1 else seq
        last = after[0] if after else seq
        if after:
            self._db.execute(f"DELETE FROM seen WHERE {where} AND first = ?", (*key, seq + 1))
        self._db.execute("INSERT OR REPLACE INTO seen VALUES (?, ?, ?, ?, ?)", (*key, first, last))
        return True

    # The movers' side.

    def waiting(
        self, kinds: Sequence[Row], *, rows: int = 500, size: int = 8 << 20, entries: int = 200_000
    ) -> list[Waiting]:
        """The oldest rows of these kinds: at most so many, with so many unpacked bytes and entries; at least one."""
        marks = ", ".join("?" * len(kinds))
        found: list[Waiting] = []
        for row in self._db.execute(
            f"SELECT id, received_us, device, kind, data FROM inbox WHERE kind IN ({marks}) ORDER BY id LIMIT ?",
            (*map(int, kinds), rows),
        ):
            waiting = Waiting(*row)
            unpacked, count = _unpacked(waiting)
            size -= unpacked
            entries -= count
            if found and min(size, entries) < 0:
                break
            found.append(waiting)
        return found

    def done(self, rows: Iterable[Waiting], unreadable: Iterable[tuple[Waiting, str]] = ()) -> None:
        """Take rows that a store holds out of the inbox; set those aside that can't be read (with the reason)."""
        with transaction(self._db):
            aside = [(w.id, w.received_us, w.device, w.data, reason) for w, reason in unreadable]
            self._db.executemany("INSERT OR IGNORE INTO unreadable VALUES (?, ?, ?, ?, ?)", aside)
            self._db.executemany("DELETE FROM inbox WHERE id = ?", [(row.id,) for row in rows])
            self._count({"unreadable": len(aside)} if aside else {})

    def heard(self) -> dict[str, int]:
        """When each gateway was heard of last."""
        return dict(self._db.execute("SELECT device, at_us FROM heard").fetchall())

    def _count(self, counts: Mapping[str, int]) -> None:
        self._db.executemany(
            "INSERT INTO counters VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = value + excluded.value",
            counts.items(),
        )

    def version(self) -> int:
        """Changes whenever another connection committed something: cheap to poll."""
        return int(self._db.execute("PRAGMA data_version").fetchone()[0])

    def clocks_since(self, last: int) -> list[tuple[int, str, Clock]]:
        """Clock reports with a number above `last`: (number, device, report)."""
        return [
            (row[0], row[1], Clock(*row[2:]))
            for row in self._db.execute(
                "SELECT id, device, boot, measured_us, boot_epoch_us, error_us, wall_error_us FROM clocks"
                " WHERE id > ? ORDER BY id",
                (last,),
            )
        ]

    def report_gap(self, device: str, clock: Clock) -> tuple[int, int]:
        """The span of a boot's time between the reports before and after this one: where it may be the nearest."""
        before, after = self._db.execute(
            "SELECT (SELECT max(measured_us) FROM clocks WHERE device = ?1 AND boot = ?2 AND measured_us < ?3),"
            " (SELECT min(measured_us) FROM clocks WHERE device = ?1 AND boot = ?2 AND measured_us > ?3)",
            (device, clock.boot, clock.measured_us),
        ).fetchone()
        return -(2**62) if before is None else before, 2**62 if after is None else after

    def clocks_near(self, device: str, boot: bytes, at_us: int) -> list[Clock]:
        """The reports of a boot next before and next after a time of that boot: none, one or two."""
        found = []
        for comparison, order in (("<=", "DESC"), (">", "ASC")):
            row = self._db.execute(
                "SELECT boot, measured_us, boot_epoch_us, error_us, wall_error_us FROM clocks WHERE device = ? AND"
                f" boot = ? AND measured_us {comparison} ? ORDER BY measured_us {order} LIMIT 1",
                (device, boot, at_us),
            ).fetchone()
            if row:
                found.append(Clock(*row))
        return found

    def next_wall_error(self, device: str, stream: str, boot: bytes, seq: int) -> int | None:
        """Wall clock error that the gateway reported first in a boot after this block's. None: no report at all.

        Sequence numbers go on over boots, so `seen` tells the order of boots. Where it doesn't (yet), the latest
        report of the gateway is the next one: the block has only just arrived.
        """
        row = self._db.execute(
            "SELECT clocks.wall_error_us FROM seen JOIN clocks ON clocks.device = seen.device AND"
            " clocks.boot = seen.boot WHERE seen.device = ? AND seen.stream = ? AND seen.first > ? AND seen.boot != ?"
            " ORDER BY seen.first, clocks.id LIMIT 1",
            (device, stream, seq, boot),
        ).fetchone()
        row = (
            row
            or self._db.execute(
                "SELECT wall_error_us FROM clocks WHERE device = ? ORDER BY id DESC LIMIT 1", (device,)
            ).fetchone()
        )
        return int(row[0]) if row else None


def _unpacked(row: Waiting) -> tuple[int, int]:
    """Bytes and entries that a row has when unpacked: a block of 145 bytes may hold 65,536 values."""
    size = len(row.data)
    if row.kind == Row.STATUS:
        return size, 1
    try:
        entries = peek(row.data).entries
    except BlockError:  # the mover sets it aside
        return size, 1
    raw_len = int.from_bytes(row.data[HEAD_SIZE - 8 : HEAD_SIZE - 4], "little")  # docs/block-format.md
    return max(size, raw_len), entries


def health(db: sqlite3.Connection) -> dict[str, int]:
    """Counters since the beginning, and what waits now."""
    counts: dict[str, int] = dict(db.execute("SELECT name, value FROM counters").fetchall())
    depth, size = db.execute("SELECT count(*), coalesce(sum(length(data)), 0) FROM inbox").fetchone()
    return {**counts, "buffer_rows": depth, "buffer_bytes": size}
