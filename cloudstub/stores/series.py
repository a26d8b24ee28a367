"""Machine data over time. Embedded default: one SQLite file; the protocols are what another store has to offer.

Values are kept exactly: integers up to 64 bits signed or unsigned, floats bit by bit (NaN and -0.0 too), text,
booleans, and the quality. Each sample has its corrected time (X37); its block row keeps what the gateway's own
clock said, so the original time is `time_us - epoch_us + offset_us`.
"""

# ruff: noqa: S608 - statements are put together from constants only; every value is a parameter

from __future__ import annotations

import math
import sqlite3
import struct
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from cloudstub.stores.ledger import Change, Known, SqliteLedger
from cloudstub.stores.sqlite import connect_readonly, transaction
from firmware.wire.block import BlockId, Header, Kind, Sample, Value

_SCHEMA = """
CREATE INDEX IF NOT EXISTS blocks_boot ON blocks (device, boot, last_us);
CREATE TABLE IF NOT EXISTS tags (
    id INTEGER PRIMARY KEY, device TEXT NOT NULL, stream TEXT NOT NULL, name TEXT NOT NULL,
    type TEXT NOT NULL, count INTEGER NOT NULL DEFAULT 0, UNIQUE (device, stream, name));
CREATE TABLE IF NOT EXISTS samples (
    tag INTEGER NOT NULL, time_us INTEGER NOT NULL, block INTEGER NOT NULL, n INTEGER NOT NULL,
    type TEXT NOT NULL, quality INTEGER NOT NULL, value,
    PRIMARY KEY (tag, time_us, block, n)) WITHOUT ROWID;
"""


class StampedBlock(NamedTuple):
    """A decoded block with the epoch that its times count from."""

    header: Header
    samples: Sequence[Sample]
    epoch_us: int
    estimated: bool
    received_us: int


class Tag(NamedTuple):
    stream: str
    name: str
    type: str
    """Type letter of the latest sample (firmware.wire.block.VALUE_TYPES)."""
    samples: int
    last: Point | None


class Point(NamedTuple):
    """One stored sample."""

    time_us: int
    """Corrected time, since 1970."""
    original_us: int
    """What the gateway's wall clock said."""
    value: Value | None
    quality: int
    type: str
    estimated: bool


class LivePoint(NamedTuple):
    stream: str
    name: str
    point: Point


class SeriesWriter(Protocol):
    """What the ingest needs of a store of machine data. Every call is one transaction, and may be repeated."""

    def put(self, blocks: Iterable[StampedBlock]) -> int:
        """Store blocks; one that is there already is skipped. Returns how many samples were new."""

    def known(self, device: str, boot: bytes, span_us: tuple[int, int]) -> list[Known]:
        """Blocks of a gateway's boot that touch a span of its monotonic time."""

    def estimated(self, device: str) -> Iterator[BlockId]:
        """The latest block of each stream and boot of a gateway that have estimated times."""

    def reestimate(self, latest: BlockId, wall_error_us: int, tolerance_us: int) -> int:
        """Let estimated times of the block's stream and boot assume this error of the wall clock.

        Those that do within a tolerance stay. Changes a limited number of blocks; returns how many. 0: all are right.
        """

    def restamp(self, changes: Sequence[Change], clock: int) -> None:
        """Give blocks other epochs, and note that clock report number `clock` is dealt with."""

    def clock_done(self) -> int:
        """Number of the latest clock report that was dealt with."""


class SeriesReader(Protocol):
    """What the API needs."""

    def tags(self, device: str) -> list[Tag]: ...
    def read(
        self,
        device: str,
        stream: str,
        name: str,
        *,
        start_us: int | None = None,
        end_us: int | None = None,
        limit: int = 1000,
    ) -> list[Point]: ...
    def newer(self, device: str, cursor: int) -> tuple[int, list[LivePoint]]: ...
    def position(self) -> int: ...
    def count(self) -> int: ...


class SqliteSeriesWriter(SqliteLedger):
    """`SeriesWriter` on one SQLite file. Raises sqlite3.Error when the file can't be written: nothing was kept."""

    def __init__(self, path: Path, *, busy_s: float = 10.0) -> None:
        super().__init__(path, "blocks", Kind.SAMPLES, _SCHEMA, busy_s=busy_s)
        self._tags: dict[tuple[str, str, str], int] = {}

    def put(self, blocks: Iterable[StampedBlock]) -> int:
        try:
            with transaction(self._db):
                return sum(self._put(block) for block in blocks)
        except BaseException:
            self._tags.clear()  # some may have been made in the transaction that is gone
            raise

    def _put(self, block: StampedBlock) -> int:
        header = block.header
        number = self._enter(header, block.epoch_us, block.estimated, block.received_us)
        if number is None:
            return 0
        counts: dict[int, tuple[int, str]] = {}
        rows = []
        for n, sample in enumerate(block.samples):
            tag = self._tag(header.id, sample)
            counts[tag] = (counts.get(tag, (0, ""))[0] + 1, sample.type)
            rows.append(
                (
                    tag,
                    block.epoch_us + sample.time_us,
                    number,
                    n,
                    sample.type,
                    int(sample.quality),
                    _to_sql(sample.value, sample.type),
                )
            )
        self._db.executemany("INSERT INTO samples VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
        self._db.executemany(
            "UPDATE tags SET count = count + ?, type = ? WHERE id = ?",
            [(count, type_, tag) for tag, (count, type_) in counts.items()],
        )
        return len(rows)

    def _tag(self, block: BlockId, sample: Sample) -> int:
        key = (block.device, block.stream, sample.tag)
        number = self._tags.get(key)
        if number is None:
            self._db.execute(
                "INSERT OR IGNORE INTO tags (device, stream, name, type) VALUES (?, ?, ?, ?)",
                (*key, sample.type),
            )
            row = self._db.execute(
                "SELECT id FROM tags WHERE device = ? AND stream = ? AND name = ?", key
            ).fetchone()
            number = self._tags[key] = int(row[0])
        return number

    def _shift(self, number: int, before: Known, by_us: int) -> None:
        header = before.header
        first, last = before.epoch_us + header.first_us, before.epoch_us + header.last_us
        tags = self._db.execute(
            "SELECT id FROM tags WHERE device = ? AND stream = ?", (header.id.device, header.id.stream)
        ).fetchall()
        self._db.executemany(
            "UPDATE samples SET time_us = time_us + ? WHERE tag = ? AND time_us BETWEEN ? AND ? AND block = ?",
            [(by_us, tag, first, last, number) for (tag,) in tags],
        )


class SqliteSeriesReader:
    """`SeriesReader` on the same file; never waits for the writer."""

    def __init__(self, path: Path) -> None:
        self._db = connect_readonly(path)

    def close(self) -> None:
        self._db.close()

    def tags(self, device: str) -> list[Tag]:
        rows = self._db.execute(
            "SELECT id, stream, name, type, count FROM tags WHERE device = ? ORDER BY stream, name", (device,)
        ).fetchall()
        return [
            Tag(
                r["stream"],
                r["name"],
                r["type"],
                r["count"],
                next(self._points(r["id"], None, None, 1, newest=True), None),
            )
            for r in rows
        ]

    def read(
        self,
        device: str,
        stream: str,
        name: str,
        *,
        start_us: int | None = None,
        end_us: int | None = None,
        limit: int = 1000,
    ) -> list[Point]:
        """Samples with start_us <= time < end_us, oldest first. Over `limit`: the first ones from a given start,
        the latest ones without a start. An unknown tag has no samples."""
        row = self._db.execute(
            "SELECT id FROM tags WHERE device = ? AND stream = ? AND name = ?", (device, stream, name)
        ).fetchone()
        if row is None:
            return []
        newest = start_us is None
        points = list(self._points(row["id"], start_us, end_us, limit, newest=newest))
        return points[::-1] if newest else points

    def _points(
        self, tag: int, start_us: int | None, end_us: int | None, limit: int, *, newest: bool
    ) -> Iterator[Point]:
        order = "DESC" if newest else "ASC"
        rows = self._db.execute(
            "SELECT s.time_us, s.type, s.quality, s.value, b.offset_us - b.epoch_us AS shift, b.estimated"
            " FROM samples s JOIN blocks b ON b.id = s.block WHERE s.tag = ? AND s.time_us >= ? AND s.time_us < ?"
            f" ORDER BY s.time_us {order}, s.block {order}, s.n {order} LIMIT ?",
            (
                tag,
                -(2**63) if start_us is None else start_us,
                2**63 - 1 if end_us is None else end_us,
                limit,
            ),
        )
        return map(_point, rows)

    def position(self) -> int:
        """Where `newer` starts to see only what is stored from now on."""
        return int(self._db.execute("SELECT coalesce(max(id), 0) FROM blocks").fetchone()[0])

    def newer(self, device: str, cursor: int) -> tuple[int, list[LivePoint]]:
        """Samples of blocks stored after a position, and the new position."""
        end = self.position()
        blocks = self._db.execute(
            "SELECT * FROM blocks WHERE device = ? AND id > ? AND id <= ? ORDER BY id LIMIT 100",
            (device, cursor, end),
        ).fetchall()
        if len(blocks) == 100:
            end = blocks[-1]["id"]
        tags: dict[str, list[tuple[int, str]]] = defaultdict(list)
        for r in self._db.execute("SELECT id, stream, name FROM tags WHERE device = ?", (device,)):
            tags[r["stream"]].append((r["id"], r["name"]))
        found = []
        for block in blocks:
            epoch = block["epoch_us"]
            for tag, name in tags[block["stream"]]:
                rows = self._db.execute(
                    "SELECT time_us, type, quality, value, ? AS shift, ? AS estimated FROM samples"
                    " WHERE tag = ? AND time_us BETWEEN ? AND ? AND block = ?",
                    (
                        block["offset_us"] - epoch,
                        block["estimated"],
                        tag,
                        epoch + block["first_us"],
                        epoch + block["last_us"],
                        block["id"],
                    ),
                )
                found += [LivePoint(block["stream"], name, _point(row)) for row in rows]
        return end, found

    def count(self) -> int:
        """Samples of all gateways."""
        return int(self._db.execute("SELECT coalesce(sum(count), 0) FROM tags").fetchone()[0])


def _point(row: sqlite3.Row) -> Point:
    return Point(
        row["time_us"],
        row["time_us"] + row["shift"],
        _from_sql(row["value"], row["type"]),
        row["quality"],
        row["type"],
        bool(row["estimated"]),
    )


# SQLite has 64-bit signed integers and floats, but turns NaN into NULL and -0.0 into 0.0.


def _to_sql(value: Value | None, type_: str) -> object:
    if value is None:
        return None
    if type_ in "fd" and (math.isnan(value) or value == 0):  # type: ignore[arg-type]
        return struct.pack("<d", value)
    if type_ == "Q" and value >= 2**63:  # type: ignore[operator]
        return int(value) - 2**64
    return value


def _from_sql(value: object, type_: str) -> Value | None:
    if value is None:
        return None
    if type_ in "fd":
        return float(struct.unpack("<d", value)[0]) if isinstance(value, bytes) else float(value)  # type: ignore[arg-type]
    if type_ == "?":
        return bool(value)
    if type_ == "Q":
        return int(value) % 2**64  # type: ignore[call-overload,no-any-return]
    return value  # type: ignore[return-value]
