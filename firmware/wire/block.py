"""The block: what is sealed on flash is what goes over the wire, byte for byte.

Format version 1 (little endian; docs/block-format.md describes it byte by byte)::

    magic     4s   "SPB1"
    kind      u8   0 samples, 1 events
    codec     u8   0 plain, 1 zstd
    flags     u16  0
    boot      16s  boot id
    seq       u64  counts up per stream, over boots
    first_us  i64  monotonic time of the earliest entry
    last_us   i64  monotonic time of the latest entry
    offset_us i64  wall clock minus monotonic clock when sealed
    count     u32  entries
    raw_len   u32  body bytes before compression
    body_len  u32  body bytes as stored
    device    u8 length + UTF-8
    stream    u8 length + UTF-8
    body      body_len bytes
    crc       u32  CRC-32 of all before

A block names its own device, stream, boot and sequence, and carries its own tag table, so that a
damaged neighbour costs nothing and the cloud can tell a duplicate by the header alone.
"""

from __future__ import annotations

import struct
import sys
import zlib
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from itertools import accumulate, pairwise
from operator import sub
from typing import Any, NamedTuple, TypeAlias

import msgspec

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

MAGIC = b"SPB1"
MAX_BLOCK = 4 * 1024 * 1024
"""Bytes of a whole block."""
MAX_RAW = 4 * MAX_BLOCK
"""Bytes of an unpacked body. With MAX_COUNT it bounds what a hostile block can make a reader allocate."""
MAX_COUNT = 65_536
"""Entries of a block."""

_HEAD = struct.Struct("<4sBBH16sQqqqIII")
_CRC = struct.Struct("<I")
_UNPACK_OPTIONS = {int(zstd.DecompressionParameter.window_log_max): (MAX_RAW - 1).bit_length()}
_SWAP = sys.byteorder == "big"
HEAD_SIZE = _HEAD.size
"""Bytes of the fixed part that every block starts with; see `peek`."""

Value: TypeAlias = bool | int | float | str


class BlockError(ValueError):
    """The bytes are not a block that this version can read; the text says where and why."""


class Kind(IntEnum):
    SAMPLES = 0
    EVENTS = 1


class Quality(IntEnum):
    """Below 128 there is a value; from 128 on there is none."""

    GOOD = 0
    UNCERTAIN = 64
    BAD = 128
    NO_CONNECTION = 129
    DEVICE_ERROR = 130


VALUE_TYPES = "?bBhHiIqQfds"


class Sample(NamedTuple):
    """One value of one tag."""

    tag: str
    time_us: int
    """Monotonic microseconds of the boot that the block names."""
    value: Value | None
    """None exactly when the quality is 128 or more."""
    quality: int = Quality.GOOD
    type: str = "d"
    """One of VALUE_TYPES."""


class Event(msgspec.Struct, frozen=True):
    """Something that happened, for people and alarms."""

    time_us: int
    name: str
    severity: str = "info"
    """info, warning or error."""
    data: dict[str, bool | int | float | str] = {}


class BlockId(NamedTuple):
    """Names a block in the whole world; two blocks with one id are the same block."""

    device: str
    stream: str
    boot: bytes
    seq: int


class Head(NamedTuple):
    """The fixed part of a block, as `peek` reads it: nothing is checked."""

    kind: int
    boot: bytes
    seq: int
    first_us: int
    last_us: int
    entries: int


@dataclass(frozen=True)
class Header:
    id: BlockId
    kind: Kind
    first_us: int
    last_us: int
    offset_us: int
    count: int


@dataclass(frozen=True)
class Block:
    header: Header
    samples: Sequence[Sample] = ()
    events: Sequence[Event] = ()


def encode_samples(block: BlockId, samples: Sequence[Sample], offset_us: int) -> bytes:
    """Seal samples (1 to MAX_COUNT) into a block.

    They are stored tag by tag, tags in order of appearance, the order within one tag kept. "f" values
    are rounded to the nearest single-precision number.
    `offset_us` is wall clock minus monotonic clock. Raises BlockError that names the sample which does
    not fit its type, or says that the block would be too long.
    """
    _check_count(samples)
    times = [s.time_us for s in samples]
    try:
        raw = _pack_samples(samples, min(times))
    except (ValueError, TypeError, OverflowError, struct.error) as error:
        raise BlockError(_name_culprit(samples) or f"samples can't be sealed: {error}") from error
    return _seal(block, Kind.SAMPLES, raw, times, offset_us)


def encode_events(block: BlockId, events: Sequence[Event], offset_us: int) -> bytes:
    """Seal events (1 to MAX_COUNT) into a block. Raises BlockError as `encode_samples` does."""
    _check_count(events)
    try:
        raw = msgspec.json.encode(list(events))
    except (ValueError, TypeError, OverflowError) as error:
        raise BlockError(f"events can't be sealed: {error}") from error
    return _seal(block, Kind.EVENTS, raw, [e.time_us for e in events], offset_us)


def peek(data: bytes | memoryview) -> Head:
    """Fixed part of a block from its first HEAD_SIZE bytes, unchecked. Raises BlockError if they are none."""
    if len(data) < HEAD_SIZE or bytes(data[:4]) != MAGIC:
        raise BlockError(f"not a block: {len(data)} bytes that start with {bytes(data[:4])!r}, not {MAGIC!r}")
    _, kind, _, _, boot, seq, first, last, _, count, _, _ = _HEAD.unpack_from(data)
    return Head(kind, boot, seq, first, last, count)


def read_header(data: bytes | memoryview) -> Header:
    """Header of a block without unpacking its body. The CRC is checked. Raises BlockError."""
    return _open(bytes(data))[0]


def decode(data: bytes | memoryview) -> Block:
    """Whole block. Raises BlockError, never anything else, whatever the bytes are."""
    header, codec, body, raw_len = _open(bytes(data))
    try:
        raw = _unpack(codec, body, raw_len)
        if header.kind is Kind.EVENTS:
            return Block(header, events=_unpack_events(raw, header))
        return Block(header, samples=_unpack_samples(raw, header))
    except BlockError:
        raise
    except (ValueError, struct.error, IndexError, OverflowError, RecursionError, zstd.ZstdError) as error:
        raise BlockError(f"body of block {header.id.seq} is damaged: {error}") from error


def _check_count(entries: Sequence[Sample] | Sequence[Event]) -> None:
    if not 1 <= len(entries) <= MAX_COUNT:
        raise BlockError(f"a block holds 1 to {MAX_COUNT} entries, not {len(entries)}")


def _name_culprit(samples: Sequence[Sample]) -> str | None:
    """The first sample that can't be packed alone, in words."""
    for sample in samples:
        try:
            _pack_samples([sample], sample.time_us)
        except (ValueError, TypeError, OverflowError, struct.error) as error:
            value = repr(sample.value)[:60]
            return f"tag {sample.tag[:100]!r}: {value} (quality {sample.quality}) as {sample.type!r}: {error}"
    return None


def _seal(block: BlockId, kind: Kind, raw: bytes, times: Sequence[int], offset_us: int) -> bytes:
    packed = zstd.compress(raw, level=3)
    codec, body = (1, packed) if len(packed) < len(raw) else (0, raw)
    device, stream = block.device.encode(), block.stream.encode()
    if max(len(device), len(stream)) > 255 or len(block.boot) != 16:
        raise BlockError(f"{block}: device and stream take at most 255 bytes, the boot takes 16")
    try:
        head = _HEAD.pack(
            MAGIC,
            kind,
            codec,
            0,
            block.boot,
            block.seq,
            min(times),
            max(times),
            offset_us,
            len(times),
            len(raw),
            len(body),
        )
    except struct.error as error:
        raise BlockError(f"sequence or times of block {block.seq} are out of range: {error}") from error
    data = b"".join((head, bytes([len(device)]), device, bytes([len(stream)]), stream, body))
    if len(data) + _CRC.size > MAX_BLOCK or len(raw) > MAX_RAW:
        raise BlockError(f"{len(times)} entries make a block of {len(data)} bytes; the most is {MAX_BLOCK}")
    return data + _CRC.pack(zlib.crc32(data))


def _open(data: bytes) -> tuple[Header, int, bytes, int]:
    if len(data) < _HEAD.size + 2 + _CRC.size or data[:4] != MAGIC:
        raise BlockError(f"not a block: {len(data)} bytes that start with {data[:4]!r}, expected {MAGIC!r}")
    if zlib.crc32(data[: -_CRC.size]) != _CRC.unpack(data[-_CRC.size :])[0]:
        raise BlockError("checksum does not match: the block was damaged or cut")
    _, kind, codec, flags, boot, seq, first, last, offset, count, raw_len, body_len = _HEAD.unpack_from(data)
    if flags or codec > 1 or kind > 1:
        raise BlockError(f"kind {kind}, codec {codec}, flags {flags:#x}: written by a newer version")
    try:
        device, at = _text(data, _HEAD.size)
        stream, at = _text(data, at)
    except (IndexError, UnicodeDecodeError) as error:
        raise BlockError(f"device or stream name is damaged: {error}") from error
    if at + body_len + _CRC.size != len(data):
        raise BlockError(f"lengths do not add up: body {body_len}, block {len(data)} bytes")
    if len(data) > MAX_BLOCK or raw_len > MAX_RAW or not 1 <= count <= MAX_COUNT:
        raise BlockError(f"too large: {len(data)} bytes, unpacked {raw_len}, {count} entries")
    header = Header(BlockId(device, stream, boot, seq), Kind(kind), first, last, offset, count)
    return header, codec, data[at : at + body_len], raw_len


def _text(data: bytes, at: int) -> tuple[str, int]:
    end = at + 1 + data[at]
    if end > len(data):
        raise IndexError("it ends behind the block")
    return data[at + 1 : end].decode(), end


def _unpack(codec: int, body: bytes, raw_len: int) -> bytes:
    if codec == 0:
        raw = body
    else:
        unpacker = zstd.ZstdDecompressor(options=_UNPACK_OPTIONS)
        raw = unpacker.decompress(body, max_length=raw_len)
        if not unpacker.eof or unpacker.unused_data:
            raise BlockError(f"body is not one zstd frame of the {raw_len} bytes that the header says")
    if len(raw) != raw_len:
        raise BlockError(f"body unpacks to {len(raw)} bytes, header says {raw_len}")
    return raw


# Body of a samples block: tag table, then one column each for times, qualities and values.
# Numbers are stored as differences, split into byte planes: zstd then finds the runs.


def _pack_samples(samples: Sequence[Sample], first_us: int) -> bytes:
    by_tag: dict[tuple[str, str], list[Sample]] = {}
    for sample in samples:
        if (sample.value is None) != (sample.quality >= Quality.BAD):
            raise ValueError("a sample has a value exactly when its quality is below 128")
        by_tag.setdefault((sample.tag, sample.type), []).append(sample)
    table = bytearray(struct.pack("<I", len(by_tag)))
    times: list[int] = []
    qualities = bytearray()
    values: dict[str, list[Value]] = {}
    for (tag, type_), group in by_tag.items():
        if type_ not in VALUE_TYPES or len(type_) != 1:
            raise ValueError(f"type is none of {VALUE_TYPES!r}")
        name = tag.encode()
        table += struct.pack("<BcI", len(name), type_.encode(), len(group)) + name
        times += [s.time_us - first_us for s in group]
        qualities += bytes(s.quality for s in group)
        values.setdefault(type_, []).extend(s.value for s in group if s.value is not None)
    parts = [bytes(table), _pack_ints("Q", times), bytes(qualities)]
    for type_ in VALUE_TYPES:
        if type_ in values:
            parts.append(_pack_values(type_, values[type_]))
    return b"".join(parts)


def _unpack_events(raw: bytes, header: Header) -> list[Event]:
    events = msgspec.json.decode(raw, type=list[Event])
    if len(events) != header.count:
        raise BlockError(f"body holds {len(events)} events, header says {header.count}")
    return events


def _unpack_samples(raw: bytes, header: Header) -> list[Sample]:
    tags, at = _read_table(raw, header.count)
    if sum(n for _, _, n in tags) != header.count:
        raise BlockError(f"tag table counts {sum(n for _, _, n in tags)} samples, header says {header.count}")
    times, at = _unpack_ints("Q", header.count, raw, at)
    qualities = raw[at : at + header.count]
    if len(qualities) != header.count:
        raise BlockError("quality column is cut")
    at += header.count
    held: dict[str, int] = {}
    start = 0
    for _, type_, count in tags:
        held[type_] = held.get(type_, 0) + sum(q < Quality.BAD for q in qualities[start : start + count])
        start += count
    columns: dict[str, Iterator[Value]] = {}
    for type_ in VALUE_TYPES:
        if type_ in held:
            column, at = _unpack_values(type_, held[type_], raw, at)
            columns[type_] = iter(column)
    if at != len(raw):
        raise BlockError(f"{len(raw) - at} bytes after the last column")
    samples = []
    start = 0
    for tag, type_, count in tags:
        values = columns[type_]
        for i in range(start, start + count):
            quality = qualities[i]
            value = next(values) if quality < Quality.BAD else None
            samples.append(Sample(tag, header.first_us + times[i], value, quality, type_))
        start += count
    return samples


def _read_table(raw: bytes, entries: int) -> tuple[list[tuple[str, str, int]], int]:
    (n,) = struct.unpack_from("<I", raw)
    if n > entries:
        raise BlockError(f"{n} tags, but only {entries} samples")
    at = 4
    tags = []
    for _ in range(n):
        name_len, letter, count = struct.unpack_from("<BcI", raw, at)
        at += 6
        type_ = letter.decode("ascii")
        if type_ not in VALUE_TYPES:
            raise BlockError(f"unknown value type {type_!r}")
        tags.append((raw[at : at + name_len].decode(), type_, count))
        at += name_len
    return tags, at


def _pack_values(type_: str, values: Sequence[Value]) -> bytes:
    if type_ == "s":
        texts = [str(v).encode() for v in values]
        return _to_little(array("I", map(len, texts))) + b"".join(texts)
    if type_ == "?":
        return bytes(map(bool, values))
    if type_ in "fd":
        return _planes(_to_little(array(type_, values)), array(type_).itemsize)
    return _pack_ints(type_, values)  # type: ignore[arg-type]


def _unpack_values(type_: str, count: int, raw: bytes, at: int) -> tuple[Sequence[Value], int]:
    if type_ == "s":
        lengths = _from_little("I", raw[at : at + 4 * count])
        at += 4 * count
        ends = list(accumulate(lengths, initial=at))
        if len(lengths) != count or ends[-1] > len(raw):
            raise BlockError("text column is cut")
        return [raw[a:b].decode() for a, b in pairwise(ends)], ends[-1]
    if type_ == "?":
        flags = raw[at : at + count]
        if len(flags) != count:
            raise BlockError("bool column is cut")
        return [b != 0 for b in flags], at + count
    if type_ in "fd":
        size = array(type_).itemsize
        floats = _from_little(type_, _unplanes(raw[at : at + size * count], size))
        if len(floats) != count:
            raise BlockError(f"column of {count} numbers is cut")
        return floats, at + size * count
    return _unpack_ints(type_, count, raw, at)


def _pack_ints(type_: str, values: Sequence[int]) -> bytes:
    size = array(type_).itemsize
    mask = (1 << 8 * size) - 1
    array(type_, values)  # refuses what does not fit, which the mask would hide
    deltas = [d & mask for d in map(sub, values, [0, *values[:-1]])]
    return _planes(_to_little(array(type_.upper(), deltas)), size)


def _unpack_ints(type_: str, count: int, raw: bytes, at: int) -> tuple[Sequence[int], int]:
    size = array(type_).itemsize
    end = at + size * count
    deltas = _from_little(type_.upper(), _unplanes(raw[at:end], size))
    if len(deltas) != count:
        raise BlockError(f"column of {count} numbers is cut")
    mask = (1 << 8 * size) - 1
    values = array(type_.upper(), (v & mask for v in accumulate(deltas)))
    return (values if type_.isupper() else array(type_, values.tobytes())), end


def _to_little(numbers: array[Any]) -> bytes:
    if _SWAP:
        numbers = numbers[:]
        numbers.byteswap()
    return numbers.tobytes()


def _from_little(type_: str, data: bytes) -> array[Any]:
    numbers = array(type_, data)
    if _SWAP:
        numbers.byteswap()
    return numbers


def _planes(data: bytes, size: int) -> bytes:
    return b"".join(data[i::size] for i in range(size))


def _unplanes(data: bytes, size: int) -> bytes:
    count = len(data) // size
    out = bytearray(count * size)
    for i in range(size):
        out[i::size] = data[i * count : (i + 1) * count]
    return bytes(out)
