"""Which blocks a store holds, and the epoch that the times of each count from."""

# ruff: noqa: S608 - statements are put together from constants only; every value is a parameter

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from cloudstub.stores.sqlite import connect, transaction
from firmware.wire.block import BlockId, Header, Kind

_SCHEMA = """
CREATE TABLE IF NOT EXISTS {table} (
    id INTEGER PRIMARY KEY AUTOINCREMENT, device TEXT NOT NULL, stream TEXT NOT NULL, boot BLOB NOT NULL,
    seq INTEGER NOT NULL, first_us INTEGER NOT NULL, last_us INTEGER NOT NULL, offset_us INTEGER NOT NULL,
    epoch_us INTEGER NOT NULL, estimated INTEGER NOT NULL, received_us INTEGER NOT NULL,
    UNIQUE (device, stream, boot, seq));
CREATE INDEX IF NOT EXISTS {table}_wall_error ON {table} (device, stream, boot, offset_us - epoch_us) WHERE estimated;
CREATE TABLE IF NOT EXISTS progress (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
"""
SLICE = 1000
"""Blocks that one transaction estimates anew."""


class Known(NamedTuple):
    """What a store remembers of a block, to correct its times later."""

    header: Header
    epoch_us: int
    estimated: bool


class Change(NamedTuple):
    """Another epoch for a block."""

    block: BlockId
    epoch_us: int
    estimated: bool


class SqliteLedger(ABC):
    """The block table of a store on one SQLite file; the store adds what the blocks contain."""

    def __init__(self, path: Path, table: str, kind: Kind, schema: str, *, busy_s: float) -> None:
        self._db = connect(path, _SCHEMA.format(table=table) + schema, busy_s=busy_s)
        self._table = table
        self._kind = kind

    def close(self) -> None:
        self._db.close()

    def known(self, device: str, boot: bytes, span_us: tuple[int, int]) -> list[Known]:
        """Blocks of a gateway's boot that touch a span of its monotonic time."""
        found = self._find(
            "device = ? AND boot = ? AND last_us >= ? AND first_us <= ?", device, boot, *span_us
        )
        return [block for _, block in found]

    def estimated(self, device: str) -> Iterator[BlockId]:
        """The latest block of each stream and boot of a gateway that have estimated times."""
        stream, boot = "", b""
        while row := self._db.execute(
            f"SELECT stream, boot FROM {self._table} WHERE device = ? AND estimated AND (stream, boot) > (?, ?)"
            " ORDER BY stream, boot LIMIT 1",
            (device, stream, boot),
        ).fetchone():
            stream, boot = row
            (seq,) = self._db.execute(
                f"SELECT max(seq) FROM {self._table} WHERE device = ? AND stream = ? AND boot = ?",
                (device, stream, boot),
            ).fetchone()
            yield BlockId(device, stream, boot, seq)

    def reestimate(self, latest: BlockId, wall_error_us: int, tolerance_us: int) -> int:
        """Let estimated times of the block's stream and boot assume this error of the wall clock.

        Those that do within a tolerance stay. Changes at most SLICE blocks; returns how many. 0: all are right.
        """
        with transaction(self._db):
            where = "device = ? AND stream = ? AND boot = ? AND estimated AND offset_us - epoch_us"
            found = self._find(f"{where} < ? LIMIT {SLICE}", *latest[:3], wall_error_us - tolerance_us)
            if not found:
                found = self._find(f"{where} > ? LIMIT {SLICE}", *latest[:3], wall_error_us + tolerance_us)
            for number, before in found:
                self._change(number, before, before.header.offset_us - wall_error_us, estimated=True)
        return len(found)

    def restamp(self, changes: Sequence[Change], clock: int) -> None:
        """Give blocks other epochs, and note that clock report number `clock` is dealt with."""
        with transaction(self._db):
            for block, epoch_us, estimated in changes:
                found = self._find("device = ? AND stream = ? AND boot = ? AND seq = ?", *block)
                for number, before in found:  # one, or none
                    self._change(number, before, epoch_us, estimated=estimated)
            self._db.execute("INSERT OR REPLACE INTO progress VALUES ('clock', ?)", (clock,))

    def clock_done(self) -> int:
        """Number of the latest clock report that was dealt with."""
        row = self._db.execute("SELECT value FROM progress WHERE name = 'clock'").fetchone()
        return int(row[0]) if row else 0

    def _change(self, number: int, before: Known, epoch_us: int, *, estimated: bool) -> None:
        self._db.execute(
            f"UPDATE {self._table} SET epoch_us = ?, estimated = ? WHERE id = ?",
            (epoch_us, estimated, number),
        )
        if epoch_us != before.epoch_us:
            self._shift(number, before, epoch_us - before.epoch_us)

    @abstractmethod
    def _shift(self, number: int, before: Known, by_us: int) -> None:
        """Move the times of what a block contains; `before` is the block with its old epoch."""

    def _enter(self, header: Header, epoch_us: int, estimated: bool, received_us: int) -> int | None:
        """Number of a new block; None when it is there already."""
        added = self._db.execute(
            f"INSERT OR IGNORE INTO {self._table} (device, stream, boot, seq, first_us, last_us, offset_us,"
            " epoch_us, estimated, received_us) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (*header.id, header.first_us, header.last_us, header.offset_us, epoch_us, estimated, received_us),
        )
        return added.lastrowid if added.rowcount else None

    def _find(self, where: str, *values: object) -> list[tuple[int, Known]]:
        """Blocks with their numbers."""
        found = []
        for number, first, last, offset, epoch_us, estimated, *block in self._db.execute(
            "SELECT id, first_us, last_us, offset_us, epoch_us, estimated, device, stream, boot, seq"
            f" FROM {self._table} WHERE {where}",
            values,
        ):
            header = Header(BlockId(*block), self._kind, first, last, offset, 0)
            found.append((number, Known(header, epoch_us, bool(estimated))))
        return found
