"""Second stage: buffer -> stores, with time correction (X37). One process per store, so that one store's trouble
leaves the other alone.

A store's transaction comes first, the row's removal from the buffer second, and storing is idempotent: killed at
any place, the work goes on where it was. While a store can't be written, its rows wait in the buffer.
"""

from __future__ import annotations

import logging
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

from cloudstub.ingest.buffer import Buffer, Row, Waiting
from cloudstub.ingest.times import RESTAMP_US, Epoch, epoch_of
from cloudstub.process import ready, serve_until_terminated
from cloudstub.state import State
from cloudstub.stores.ledger import Change, Known
from cloudstub.stores.platform import PlatformWriter, StampedEvents, StampedStatus
from cloudstub.stores.series import SqliteSeriesWriter, StampedBlock
from firmware.wire import messages
from firmware.wire.block import Block, BlockError, BlockId, Header, decode

log = logging.getLogger(__name__)

POLL_S = 0.1
RETRY_S = (0.5, 10.0)


class Stamped(Protocol):
    """What both stores do alike: remember epochs of blocks, and change them."""

    def known(self, device: str, boot: bytes, span_us: tuple[int, int]) -> list[Known]: ...
    def estimated(self, device: str) -> Iterator[BlockId]: ...
    def reestimate(self, latest: BlockId, wall_error_us: int, tolerance_us: int) -> int: ...
    def restamp(self, changes: Sequence[Change], clock: int) -> None: ...
    def clock_done(self) -> int: ...


class Mover:
    """Moves rows of some kinds out of the buffer. `store(rows)` keeps them and returns those it can't read."""

    def __init__(
        self,
        buffer: Buffer,
        kinds: Sequence[Row],
        stamped: Stamped,
        store: Callable[[list[Waiting]], list[tuple[Waiting, str]]],
    ) -> None:
        self._buffer = buffer
        self._kinds = kinds
        self._stamped = stamped
        self._store = store

    def step(self) -> int:
        """Deal with new clock reports, then with some waiting rows. Returns how many rows. Raises sqlite3.Error."""
        restamp(self._buffer, self._stamped)
        rows = self._buffer.waiting(self._kinds)
        if rows:
            unreadable = self._store(rows)
            for row, reason in unreadable:
                log.warning("row %d of %s is set aside: %s", row.id, row.device, reason)
            self._buffer.done(rows, unreadable)
        return len(rows)


def epoch(buffer: Buffer, header: Header) -> Epoch:
    """Epoch of a block from what is known now."""
    device, stream, boot, seq = header.id
    reports = buffer.clocks_near(device, boot, (header.first_us + header.last_us) // 2)
    return epoch_of(header, reports, None if reports else buffer.next_wall_error(device, stream, boot, seq))


def restamp(buffer: Buffer, store: Stamped) -> None:
    """Correct what is stored by reports that came later: estimated times, and times that a nearer report improves."""
    for number, device, clock in buffer.clocks_since(store.clock_done()):
        for latest in store.estimated(device):
            if not buffer.clocks_near(device, latest.boot, 0):  # a boot with reports is dealt with by those
                wall_error_us = buffer.next_wall_error(*latest) or 0
                while store.reestimate(latest, wall_error_us, RESTAMP_US):
                    pass
        blocks = store.known(device, clock.boot, buffer.report_gap(device, clock))
        store.restamp(_changes(buffer, blocks), number)


def _changes(buffer: Buffer, blocks: list[Known]) -> list[Change]:
    changes = {}
    for header, epoch_us, estimated in blocks:
        now = epoch(buffer, header)
        if estimated != now.estimated or abs(now.epoch_us - epoch_us) > RESTAMP_US:
            changes[header.id] = Change(header.id, now.epoch_us, now.estimated)
    return list(changes.values())


def series_mover(buffer: Buffer, store: SqliteSeriesWriter) -> Mover:
    def keep(rows: list[Waiting]) -> list[tuple[Waiting, str]]:
        blocks, unreadable = [], []
        for row in rows:
            try:
                block = _decode(row)
            except (BlockError, OverflowError) as error:
                unreadable.append((row, str(error)))
                continue
            at = epoch(buffer, block.header)
            blocks.append(
                StampedBlock(block.header, block.samples, at.epoch_us, at.estimated, row.received_us)
            )
        store.put(blocks)
        return unreadable

    return Mover(buffer, [Row.SAMPLES], store, keep)


def platform_mover(buffer: Buffer, store: PlatformWriter) -> Mover:
    def keep(rows: list[Waiting]) -> list[tuple[Waiting, str]]:
        statuses, blocks, unreadable = [], [], []
        for row in rows:
            try:
                if row.kind == Row.STATUS:
                    status = messages.decode(row.data, messages.Status)
                    statuses.append(StampedStatus.of(row.device, row.received_us, status))
                else:
                    block = _decode(row)
                    at = epoch(buffer, block.header)
                    blocks.append(
                        StampedEvents(block.header, block.events, at.epoch_us, at.estimated, row.received_us)
                    )
            except (BlockError, OverflowError, RecursionError, messages.MessageError) as error:
                unreadable.append((row, str(error)))
        store.put(statuses, blocks)
        return unreadable

    return Mover(buffer, [Row.EVENTS, Row.STATUS], store, keep)


def _decode(row: Waiting) -> Block:
    block = decode(row.data)
    entries = block.samples or block.events
    if any(not block.header.first_us <= e.time_us <= block.header.last_us for e in entries):
        raise BlockError("a time lies outside of what the header says")
    return block


def run(which: str, state: State) -> None:
    """Process entry: `which` is "series" or "platform"."""
    work = _series if which == "series" else _platform
    with serve_until_terminated():
        ready()
        pause = RETRY_S[0]
        while True:
            try:
                work(state)
            except sqlite3.Error as error:
                log.warning(
                    "the %s store or the buffer can't be used (%s); data waits in the buffer", which, error
                )
                time.sleep(pause)
                pause = min(pause * 2, RETRY_S[1])


def _series(state: State) -> None:
    _loop(series_mover(Buffer(state.buffer, durable=False), SqliteSeriesWriter(state.series)), lambda: None)


def _platform(state: State) -> None:
    buffer, store = Buffer(state.buffer, durable=False), PlatformWriter(state.platform)
    _loop(platform_mover(buffer, store), lambda: store.seen(buffer.heard()))


def _loop(mover: Mover, every_second: Callable[[], None]) -> None:
    due = 0.0
    while True:
        moved = mover.step()
        if time.monotonic() >= due:
            every_second()
            due = time.monotonic() + 1
        if not moved:
            time.sleep(POLL_S)


if __name__ == "__main__":
    run(sys.argv[1], State(Path(sys.argv[2])))
