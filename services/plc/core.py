"""What to read when, and what the answers mean. Pure: no I/O, no clock."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from firmware.config.schema import Plc, Tag
from firmware.wire.block import Quality, Sample, Value

REGISTER_BITS = 16
MAX_BITS = 2000
"""Coils or discrete inputs of one request (Modbus Application Protocol V1.1b3, 6.1)."""

_LETTERS = {
    "bool": "?",
    "int16": "h",
    "uint16": "H",
    "int32": "i",
    "uint32": "I",
    "int64": "q",
    "uint64": "Q",
    "float32": "f",
    "float64": "d",
    "string": "s",
}


def is_bits(table: str) -> bool:
    return table in ("coil", "discrete")


def width(tag: Tag) -> int:
    """Registers (or bits, in a table of bits) that a tag takes."""
    if is_bits(tag.table) or tag.type == "bool":
        return 1
    if tag.type == "string":
        return tag.length
    return struct.calcsize(">" + _LETTERS[tag.type]) // 2


def is_scaled(tag: Tag) -> bool:
    return (tag.scale, tag.offset) != (1.0, 0.0) and tag.type not in ("bool", "string")


def letter(tag: Tag) -> str:
    """Type of the tag's samples (block.VALUE_TYPES): its own, or "d" once it is scaled."""
    return "d" if is_scaled(tag) else _LETTERS[tag.type]


def decode(tag: Tag, words: Sequence[int]) -> Value:
    """Value of a tag from its registers (0 to 65535 each) or its one bit.

    Text ends at the first NUL; bytes that are not UTF-8 are taken as Latin-1.
    """
    if is_bits(tag.table) or tag.type == "bool":
        return words[0] != 0
    order = words if tag.word_order == "big" or tag.type == "string" else words[::-1]
    data = struct.pack((">" if tag.byte_order == "big" else "<") + f"{len(order)}H", *order)
    if tag.type == "string":
        text = data.split(b"\0", 1)[0]
        try:
            return text.decode()
        except UnicodeDecodeError:
            return text.decode("latin-1")
    (raw,) = struct.unpack(">" + _LETTERS[tag.type], data)
    return raw * tag.scale + tag.offset if is_scaled(tag) else raw  # type: ignore[no-any-return]


# Requests


class Request(NamedTuple):
    """One read of neighbouring registers or bits that serves one or more tags."""

    table: str
    address: int
    length: int
    tags: tuple[Tag, ...]

    def values(self, words: Sequence[int]) -> Iterator[tuple[Tag, Value]]:
        """Values of the tags from the answer, which must be `length` long."""
        for tag in self.tags:
            start = tag.address - self.address
            yield tag, decode(tag, words[start : start + width(tag)])

    def halves(self) -> tuple[Request, Request]:
        """The same in two requests; at least two tags."""
        middle = len(self.tags) // 2
        return _request(self.tags[:middle]), _request(self.tags[middle:])


def coalesce(tags: Iterable[Tag], *, max_registers: int, max_gap: int) -> list[Request]:
    """As few requests as the limits allow. A tag is never split, nor dropped when it alone is too long.

    In tables of bits, 16 bits count as one register, at most MAX_BITS to a request.
    """
    requests = []
    by_table: dict[str, list[Tag]] = {}
    for tag in tags:
        by_table.setdefault(tag.table, []).append(tag)
    for table, members in by_table.items():
        bits = is_bits(table)
        limit = min(max_registers * REGISTER_BITS, MAX_BITS) if bits else max_registers
        gap = max_gap * REGISTER_BITS if bits else max_gap
        together: list[Tag] = []
        start = end = 0
        for tag in sorted(members, key=lambda t: (t.address, width(t))):
            behind = tag.address + width(tag)
            if together and (tag.address - end > gap or max(end, behind) - start > limit):
                requests.append(_request(together))
                together = []
            if not together:
                start = end = tag.address
            together.append(tag)
            end = max(end, behind)
        requests.append(_request(together))
    return requests


def _request(tags: Sequence[Tag]) -> Request:
    start = min(t.address for t in tags)
    end = max(t.address + width(t) for t in tags)
    return Request(tags[0].table, start, end - start, tuple(tags))


# Schedule


class Group:
    """The tags of one interval: their requests, and when they are due. Times in microseconds.

    The times lie on multiples of the interval: no drift, and a poll that was missed is left out.
    """

    def __init__(self, interval_us: int, requests: list[Request], now_us: int) -> None:
        self.interval_us = interval_us
        self.requests = requests
        self.due_us = now_us
        """The first poll is at once."""
        self.missed = 0

    def done(self, now_us: int) -> None:
        """A poll has ended."""
        following = (self.due_us // self.interval_us + 1) * self.interval_us
        late = max(0, (now_us - following) // self.interval_us + (now_us > following))
        self.missed += late
        self.due_us = following + late * self.interval_us


def plan(plc: Plc, now_us: int) -> list[Group]:
    """Groups of a PLC's tags by interval, the fastest first."""
    by_interval: dict[int, list[Tag]] = {}
    for tag in plc.tags:
        by_interval.setdefault(tag.interval_ms or plc.interval_ms, []).append(tag)
    return [
        Group(interval * 1000, coalesce(tags, max_registers=plc.max_registers, max_gap=plc.max_gap), now_us)
        for interval, tags in sorted(by_interval.items())
    ]


# What is worth a sample


class Changes:
    """Decides which readings are logged: deadband for values, only the edge of a bad quality."""

    def __init__(self) -> None:
        self._last: dict[str, tuple[Value | None, int]] = {}

    def value(self, tag: Tag, time_us: int, value: Value) -> Sample | None:
        if tag.deadband:
            last, quality = self._last.get(tag.name, (None, Quality.BAD))
            if quality == Quality.GOOD and not _moved(last, value, tag.deadband):
                return None
        self._last[tag.name] = (value, Quality.GOOD)
        return Sample(tag.name, time_us, value, Quality.GOOD, letter(tag))

    def bad(self, tag: Tag, time_us: int, quality: Quality) -> Sample | None:
        if self._last.get(tag.name, (None, -1))[1] == quality:
            return None
        self._last[tag.name] = (None, quality)
        return Sample(tag.name, time_us, None, quality, letter(tag))


def _moved(last: Value | None, value: Value, deadband: float) -> bool:
    if isinstance(last, int | float) and isinstance(value, int | float) and not isinstance(value, bool):
        if last == value or (last != last and value != value):  # noqa: PLR0124 - both are no number
            return False
        return not abs(value - last) < deadband  # also true when one of them is no number
    return last != value


# Waiting


def backoff_s(failures: int, jitter: float) -> float:
    """Seconds after so many failures (1..) in a row: 0.5 to 10, doubling; jitter takes up to half."""
    return float(min(10.0, 0.5 * 2 ** min(failures - 1, 10)) * (1 - jitter / 2))
