"""One segment file: its name, its header, its frames, and how frames are found again after damage.

Format version 1 (little endian; docs/log-format.md)::

    magic      4s   "SPL1"
    version    u16  1
    header_len u16  bytes up to and with the CRC
    first_seq  u64  sequence of the first block
    boot       16s  boot id of the writer: all blocks of a segment are of one boot
    stream     u8 length + UTF-8
    crc        u32  CRC-32 of all before
    frames, each:
      length   u32  bytes of the block
      crc      u32  CRC-32 of `length` and the block's fixed head (block.HEAD_SIZE bytes)
      block    length bytes, with a CRC of its own

The frame's CRC makes length, boot and sequence trustworthy without reading the body; the block's own
CRC covers the rest.
"""

from __future__ import annotations

import os
import re
import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from firmware.wire import block

VERSION = 1
SUFFIX = ".seg"
_MAGIC = b"SPL1"
_HEADER = struct.Struct("<4sHHQ16s")
_CRC = struct.Struct("<I")
_FRAME = struct.Struct("<II")
_NAME = re.compile(r"([0-9a-f]{16})-([0-9a-f]{32})\.seg")
_LENGTH = struct.Struct("<I")


class Name(NamedTuple):
    """What a segment's file name says. Sorted by name, segments are in the order they were written."""

    first_seq: int
    boot: bytes

    def __str__(self) -> str:
        return f"{self.first_seq:016x}-{self.boot.hex()}{SUFFIX}"


def parse_name(name: str) -> Name | None:
    """None for any other file."""
    match = _NAME.fullmatch(name)
    return Name(int(match[1], 16), bytes.fromhex(match[2])) if match else None


def header(name: Name, stream: str) -> bytes:
    text = stream.encode()
    length = _HEADER.size + 1 + len(text) + _CRC.size
    data = _HEADER.pack(_MAGIC, VERSION, length, name.first_seq, name.boot) + bytes([len(text)]) + text
    return data + _CRC.pack(zlib.crc32(data))


def frame(data: bytes) -> bytes:
    """A block as it stands in a segment."""
    length = _LENGTH.pack(len(data))
    return length + _CRC.pack(zlib.crc32(length + data[: block.HEAD_SIZE])) + data


class Frame(NamedTuple):
    """A frame whose length and head are right; the body is not checked yet."""

    start: int
    """Byte of the segment at which the frame begins."""
    end: int
    head: block.Head


class Gap(NamedTuple):
    """Bytes in which no frame can be found: a torn tail, or damage."""

    start: int
    end: int
    reason: str


def scan(fd: int, start: int = 0, *, final: bool) -> Iterator[Frame | Gap]:
    """Frames of an open segment from a byte on, in order; each damaged stretch as one Gap.

    `final` says that nobody appends to the segment any more. Otherwise an end without a whole frame is
    taken as still being written: the scan stops before it without a word.
    Bodies are not read, except in search of the next frame behind damage. Raises OSError.
    """
    size = os.fstat(fd).st_size
    at = start
    if at == 0:
        first = _header_end(fd, size)
        if isinstance(first, Gap):
            if final or first.end == size:
                yield first
            if first.end == size:
                return
            at = first.end
        else:
            at = first
    while at < size:
        found = _frame_at(fd, at, size)
        if found is None:
            found = _next_frame(fd, at + 1, size)
            if found is None:
                if final:
                    yield Gap(at, size, "torn or damaged end")
                return
            yield Gap(at, found.start, "damaged")
        yield found
        at = found.end


def body(fd: int, found: Frame) -> bytes:
    """The block of a frame, as sealed. Check it with `block.read_header`. Raises OSError."""
    start = found.start + _FRAME.size
    return os.pread(fd, found.end - start, start)


def _header_end(fd: int, size: int) -> int | Gap:
    """Where the frames begin; a Gap over the header when it is damaged."""
    data = os.pread(fd, _HEADER.size + 1 + 255 + _CRC.size, 0)
    if len(data) >= _HEADER.size:
        magic, version, length, _, _ = _HEADER.unpack_from(data)
        whole = magic == _MAGIC and _HEADER.size < length <= len(data)
        if whole and zlib.crc32(data[: length - 4]) == _CRC.unpack_from(data, length - 4)[0]:
            if version == VERSION:
                return int(length)
            return Gap(0, size, f"format version {version}: written by a newer system")
    found = _next_frame(fd, 0, size)
    return Gap(0, found.start, "damaged header") if found else 0


def _frame_at(fd: int, at: int, size: int) -> Frame | None:
    return _parse(os.pread(fd, _FRAME.size + block.HEAD_SIZE, at), at, size)


def _parse(data: bytes, at: int, size: int) -> Frame | None:
    if len(data) < _FRAME.size + block.HEAD_SIZE:
        return None
    length, crc = _FRAME.unpack_from(data)
    end = at + _FRAME.size + length
    head = data[_FRAME.size : _FRAME.size + block.HEAD_SIZE]
    if not block.HEAD_SIZE < length <= block.MAX_BLOCK or end > size:
        return None
    if zlib.crc32(data[: _LENGTH.size] + head) != crc or not head.startswith(block.MAGIC):
        return None
    return Frame(at, end, block.peek(head))


def _next_frame(fd: int, start: int, size: int) -> Frame | None:
    """The first frame that begins at `start` or later."""
    data = os.pread(fd, size - start, start)
    at = data.find(block.MAGIC)
    while at >= 0:
        begin = at - _FRAME.size
        if begin >= 0:
            found = _parse(data[begin : at + block.HEAD_SIZE], start + begin, size)
            if found:
                return found
        at = data.find(block.MAGIC, at + 1)
    return None
