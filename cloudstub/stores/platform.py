"""What the platform knows of gateways: presence, what their services report, events. Not machine data (D10, L20)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from cloudstub.stores.ledger import Known, SqliteLedger
from cloudstub.stores.sqlite import connect_readonly, transaction
from firmware.wire.block import Event, Header, Kind
from firmware.wire.messages import Status

_SCHEMA = """
CREATE TABLE IF NOT EXISTS gateways (
    device TEXT PRIMARY KEY, online INTEGER NOT NULL DEFAULT 0, since_us INTEGER NOT NULL DEFAULT 0,
    seen_us INTEGER NOT NULL DEFAULT 0, version TEXT NOT NULL DEFAULT '', boot TEXT NOT NULL DEFAULT '',
    observed TEXT NOT NULL DEFAULT '{}', observed_us INTEGER NOT NULL DEFAULT 0) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS events (
    device TEXT NOT NULL, time_us INTEGER NOT NULL, block INTEGER NOT NULL, n INTEGER NOT NULL,
    stream TEXT NOT NULL, name TEXT NOT NULL, severity TEXT NOT NULL, data TEXT NOT NULL,
    PRIMARY KEY (device, time_us, block, n)) WITHOUT ROWID;
"""


class StampedStatus(NamedTuple):
    """A status as it is stored."""

    device: str
    received_us: int
    status: Status
    observed: str

    @classmethod
    def of(cls, device: str, received_us: int, status: Status) -> StampedStatus:
        """Raises RecursionError when the observed documents are nested too deep."""
        return cls(device, received_us, status, msgspec.json.encode(status.observed).decode())


class StampedEvents(NamedTuple):
    """A decoded block of events with the epoch that its times count from."""

    header: Header
    events: Sequence[Event]
    epoch_us: int
    estimated: bool
    received_us: int


class Gateway(NamedTuple):
    device: str
    online: bool
    since_us: int
    """Since when it is online or offline."""
    seen_us: int
    """When it was heard of last."""
    version: str
    boot: str
    observed: dict[str, Any]
    """Observed documents of its services by name; the last known ones while it is offline."""
    observed_us: int


class StoredEvent(NamedTuple):
    time_us: int
    service: str
    name: str
    severity: str
    data: dict[str, Any]


class PlatformWriter(SqliteLedger):
    """The mover's side. Every call is one transaction and may be repeated."""

    def __init__(self, path: Path, *, busy_s: float = 10.0) -> None:
        super().__init__(path, "event_blocks", Kind.EVENTS, _SCHEMA, busy_s=busy_s)

    def put(self, statuses: Sequence[StampedStatus], blocks: Sequence[StampedEvents]) -> int:
        """Store statuses and events. Returns how many events were new."""
        with transaction(self._db):
            for status in statuses:
                self._put_status(*status)
            return sum(self._put_events(block) for block in blocks)

    def seen(self, devices: dict[str, int]) -> None:
        """Note when gateways were last heard of."""
        with transaction(self._db):
            self._db.executemany(
                "INSERT INTO gateways (device, seen_us) VALUES (?, ?) ON CONFLICT (device) DO UPDATE SET"
                " seen_us = max(seen_us, excluded.seen_us)",
                devices.items(),
            )

    def _put_status(self, device: str, received_us: int, status: Status, observed: str) -> None:
        self._db.execute("INSERT OR IGNORE INTO gateways (device) VALUES (?)", (device,))
        self._db.execute(
            "UPDATE gateways SET since_us = CASE WHEN online = ?1 AND since_us THEN since_us ELSE ?2 END,"
            " online = ?1, seen_us = max(seen_us, CASE WHEN ?1 THEN ?2 ELSE 0 END) WHERE device = ?3",
            (status.online, received_us, device),
        )
        if status.online:  # the last will knows nothing of the services
            self._db.execute(
                "UPDATE gateways SET version = ?, boot = ?, observed = ?, observed_us = ? WHERE device = ?",
                (status.version, status.boot, observed, received_us, device),
            )

    def _put_events(self, block: StampedEvents) -> int:
        header = block.header
        number = self._enter(header, block.epoch_us, block.estimated, block.received_us)
        if number is None:
            return 0
        self._db.executemany(
            "INSERT INTO events VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            [
                (
                    header.id.device,
                    block.epoch_us + event.time_us,
                    number,
                    n,
                    header.id.stream,
                    event.name,
                    event.severity,
                    msgspec.json.encode(event.data).decode(),
                )
                for n, event in enumerate(block.events)
            ],
        )
        return len(block.events)

    def _shift(self, number: int, before: Known, by_us: int) -> None:
        self._db.execute(
            "UPDATE events SET time_us = time_us + ? WHERE device = ? AND block = ?",
            (by_us, before.header.id.device, number),
        )


class PlatformReader:
    """The API's side; never waits for the writer."""

    def __init__(self, path: Path) -> None:
        self._db = connect_readonly(path)

    def close(self) -> None:
        self._db.close()

    def gateways(self, device: str | None = None) -> list[Gateway]:
        """All gateways, or the one with this id (none, or one)."""
        rows = self._db.execute(
            "SELECT * FROM gateways WHERE ?1 IS NULL OR device = ?1 ORDER BY device", (device,)
        )
        return [
            Gateway(
                r["device"],
                bool(r["online"]),
                r["since_us"],
                r["seen_us"],
                r["version"],
                r["boot"],
                msgspec.json.decode(r["observed"]),
                r["observed_us"],
            )
            for r in rows
        ]

    def events(self, device: str, *, before_us: int | None = None, limit: int = 100) -> list[StoredEvent]:
        """The latest events, newest first."""
        rows = self._db.execute(
            "SELECT * FROM events WHERE device = ? AND time_us < ? ORDER BY time_us DESC, block DESC, n DESC LIMIT ?",
            (device, 2**63 - 1 if before_us is None else before_us, limit),
        )
        return [
            StoredEvent(
                r["time_us"],
                r["stream"].removeprefix("events-"),
                r["name"],
                r["severity"],
                msgspec.json.decode(r["data"]),
            )
            for r in rows
        ]
