"""Which blocks the cloud has stored. The uplink writes it, the writers of the log read it.

One file per stream, `/flash/acks/<stream>.json`: `{"boots": {"<32 hex digits>": [[first, last], ...]}}`,
ranges with both ends, sorted and apart. Losing it costs only that blocks are sent again: the cloud knows
them by their identity. It is replaced as a whole, so a reader sees the old or the new one.
"""

from __future__ import annotations

import logging
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from firmware import paths
from firmware.status import write_atomic

log = logging.getLogger(__name__)


class Ranges:
    """A set of integers, kept as ranges: cheap as long as they come mostly in order."""

    def __init__(self, ranges: Iterable[tuple[int, int]] = ()) -> None:
        self._first: list[int] = []
        self._last: list[int] = []
        for first, last in ranges:
            self.add(first, last)

    def add(self, first: int, last: int) -> bool:
        """Add first..last, both included. False if all were there before."""
        if last < first:
            raise ValueError(f"range {first}..{last} runs backwards")
        if first in self and self._last[bisect_right(self._first, first) - 1] >= last:
            return False
        # All ranges that touch or overlap the new one melt into it.
        low = bisect_right(self._last, first - 2)
        high = bisect_right(self._first, last + 1)
        if low < high:
            first, last = min(first, self._first[low]), max(last, self._last[high - 1])
        self._first[low:high] = [first]
        self._last[low:high] = [last]
        return True

    def __contains__(self, number: int) -> bool:
        at = bisect_right(self._first, number) - 1
        return at >= 0 and number <= self._last[at]

    def overlaps(self, first: int, last: int) -> bool:
        at = bisect_right(self._first, last) - 1
        return at >= 0 and self._last[at] >= first

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return zip(self._first, self._last, strict=True)

    def __len__(self) -> int:
        """How many ranges."""
        return len(self._first)

    @property
    def highest(self) -> int | None:
        return self._last[-1] if self._last else None


class _File(msgspec.Struct):
    boots: dict[str, list[tuple[int, int]]]


class AckBook:
    """All acknowledgements under one folder (default `/flash/acks`), by stream and boot.

    Writing side: `add`, then `save` at most every second or so (saving needs no care: an ack that was
    not saved only costs a block sent twice). Reading side: `refresh` before each look.
    Not for two threads at once.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder or paths.ACKS
        self._books: dict[str, dict[bytes, Ranges]] = {}
        self._marks: dict[str, tuple[int, int, int] | None] = {}
        self._dirty: set[str] = set()

    def add(self, stream: str, boot: bytes, first: int, last: int) -> bool:
        """The cloud has stored first..last (both included). False if that was known."""
        new = self._book(stream).setdefault(boot, Ranges()).add(first, last)
        if new:
            self._dirty.add(stream)
        return new

    def has(self, stream: str, boot: bytes, seq: int) -> bool:
        ranges = self._book(stream).get(boot)
        return ranges is not None and seq in ranges

    def overlaps(self, stream: str, boot: bytes, first: int, last: int) -> bool:
        """Whether any of first..last is stored."""
        ranges = self._book(stream).get(boot)
        return ranges is not None and ranges.overlaps(first, last)

    def highest(self, stream: str, boot: bytes) -> int | None:
        ranges = self._book(stream).get(boot)
        return ranges.highest if ranges else None

    def forget(self, stream: str, keep: Iterable[bytes]) -> None:
        """Drop the boots that no longer occur in the log; `keep` must name those that do, and this boot."""
        book = self._book(stream)
        keep = set(keep)
        for boot in [b for b in book if b not in keep]:
            del book[boot]
            self._dirty.add(stream)

    def save(self) -> None:
        """Write what changed. Raises OSError (and keeps it for the next time)."""
        for stream in sorted(self._dirty):
            book = {boot.hex(): [*ranges] for boot, ranges in self._book(stream).items()}
            self._folder.mkdir(parents=True, exist_ok=True)
            # Not synced: see the top of this file, and spare the flash.
            write_atomic(self._path(stream), msgspec.json.encode(_File(book)))
            self._marks[stream] = self._mark(stream)
            self._dirty.discard(stream)

    def refresh(self, stream: str) -> bool:
        """Read the stream's file again if another process replaced it. True if it was."""
        known = stream in self._books
        if known and (stream in self._dirty or self._mark(stream) == self._marks[stream]):
            return False
        self._books.pop(stream, None)
        self._book(stream)
        return True

    def _book(self, stream: str) -> dict[bytes, Ranges]:
        if stream not in self._books:
            self._marks[stream] = self._mark(stream)
            self._books[stream] = self._load(stream)
        return self._books[stream]

    def _load(self, stream: str) -> dict[bytes, Ranges]:
        path = self._path(stream)
        try:
            content = msgspec.json.decode(path.read_bytes(), type=_File)
            return {bytes.fromhex(boot): Ranges(ranges) for boot, ranges in content.boots.items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            log.warning(
                "%s can't be read (%s): its blocks are sent again, the cloud drops doubles", path, error
            )
            return {}

    def _mark(self, stream: str) -> tuple[int, int, int] | None:
        try:
            stat = self._path(stream).stat()
        except OSError:
            return None
        return stat.st_ino, stat.st_mtime_ns, stat.st_size

    def _path(self, stream: str) -> Path:
        return self._folder / f"{stream}.json"
