"""The two lanes out of the flash log: live (sealed since we are connected) and history (everything before)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from firmware.wire import topics
from services.flashlog import BEGIN, AckBook, Cursor, Reader, Record
from services.uplink.core import Key


@dataclass
class _Stream:
    live: Cursor
    """Live data goes on behind this."""
    history: Iterator[Record] | None
    """What is left of the blocks from before the connection."""


class Room(Protocol):
    """Says how much may still be taken (`core.Outbox` without its clock)."""

    def live(self) -> bool: ...
    def history(self) -> bool: ...
    def take(self, key: Key, lane: str, data: bytes) -> None: ...


class Source:
    """Reads blocks that the cloud has not stored yet. `taken(key)`: in flight or refused, so to be left out."""

    def __init__(self, reader: Reader, acks: AckBook, taken: Callable[[Key], bool]) -> None:
        self._reader = reader
        self._acks = acks
        self._taken = taken
        self._streams: dict[str, _Stream] = {}

    def connected(self, boot: bytes) -> None:
        """From now on what is sealed is live; all before that is not acknowledged is history."""
        self._streams = {}
        for stream in self._reader.streams():
            self._acks.forget(stream, keep={boot, *self._reader.boots(stream)})
            end = self._reader.end(stream)
            self._streams[stream] = _Stream(end, self._records(stream, BEGIN, end))

    @property
    def history_left(self) -> bool:
        return any(s.history for s in self._streams.values())

    def fill(self, room: Room) -> None:
        """Hand over blocks while there is room: live ones first, then history, one stream after the other."""
        for name in self._reader.streams():
            stream = self._streams.setdefault(name, _Stream(BEGIN, None))
            if not room.live():
                return
            for record in self._records(name, stream.live, None):
                stream.live = record.cursor
                room.take(_key(record), topics.LIVE, record.raw)
                if not room.live():
                    return
        waiting = [s for s in self._streams.values() if s.history]
        while waiting and room.history():
            stream = waiting.pop(0)
            assert stream.history
            history = next(stream.history, None)
            if history is None:
                stream.history = None
            else:
                room.take(_key(history), topics.BACKFILL, history.raw)
                waiting.append(stream)

    def _records(self, stream: str, after: Cursor, until: Cursor | None) -> Iterator[Record]:
        def skip(boot: bytes, seq: int) -> bool:
            return self._acks.has(stream, boot, seq) or self._taken(Key(stream, boot, seq))

        return self._reader.records(stream, after, until=until, skip=skip)


def _key(record: Record) -> Key:
    return Key(record.stream, record.boot, record.seq)
